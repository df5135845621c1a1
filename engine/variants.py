"""Named lists of overrides beside a recipe: `train RECIPE @NAME` is RECIPE with the list NAME of variants.yaml.

The file maps shell patterns of recipe names (without .yaml) to names, and these to lists of `section.field=value`.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from engine.override import from_yaml, nearest_key

FILE = "variants.yaml"
Variants = dict[str, list[str]]


def expand(path: str | Path, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names that `words` ask for, and the words with every @NAME replaced by its list.

    What a paper published of the recipe does not hold for a variant: `published` begins empty.
    """
    names = [word[1:] for word in words if word.startswith("@")]
    if not names:
        return [], list(words)
    known = variants_of(path)
    expanded = ["published={}"]
    for word in words:
        expanded += _list_of(word[1:], known, path) if word.startswith("@") else [word]
    return names, expanded


def _list_of(name: str, known: Variants, path: str | Path) -> list[str]:
    if name in known:
        return known[name]
    if not known:
        raise ValueError(
            f"@{name}: recipe {path} has no variants ({FILE} beside it names none); drop it, or write the overrides"
        )
    raise ValueError(f"@{name} is no variant of {path}; did you mean @{nearest_key(name, known)}?")


def variants_of(path: str | Path) -> Variants:
    """The lists of overrides for the recipe at `path`, by name; empty where there is no file of them."""
    file = Path(path).with_name(FILE)
    if not file.is_file():
        return {}
    found: Variants = {}
    for pattern, lists in _mapping(from_yaml(file.read_text(encoding="utf-8"), str(file)), file).items():
        if fnmatchcase(Path(path).stem, pattern):
            for name, words in _mapping(lists, file).items():
                if name in found:
                    raise ValueError(f"{file}: {name} is there twice for {Path(path).stem}; rename one")
                found[name] = _words(words, name, file)
    return found


def _mapping(value: object, file: Path) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{file} must map recipes to names, and these to lists of overrides; correct it")
    return value


def _words(value: object, name: str, file: Path) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(word, str) and "=" in word for word in value):
        return value
    raise ValueError(f"{file}: {name} is {value!r}, but must be a list of section.field=value; correct it")
