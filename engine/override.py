"""From a recipe file and `key=value` words to one plain mapping: YAML, `base:`, overrides, nearest key."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import yaml

Tree = dict[str, object]  # what YAML can say: mappings, lists, text, numbers, true, false, null
NOT_INHERITED = ("name", "description", "published")  # they speak of one recipe, not of those built upon it


class _Core:
    """YAML 1.2's core types: 1e-3 is a number, `no` is text and 1:30 is not 90, unlike PyYAML's YAML 1.1."""

    resolvers = (
        ("tag:yaml.org,2002:null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("tag:yaml.org,2002:bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
        ("tag:yaml.org,2002:int", r"^[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
        (
            "tag:yaml.org,2002:float",
            r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$",
            list("-+.0123456789"),
        ),
    )

    @classmethod
    def install(cls, target: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
        target.yaml_implicit_resolvers = {}
        for tag, pattern, first in cls.resolvers:
            target.add_implicit_resolver(tag, re.compile(pattern), first)


class RecipeLoader(yaml.SafeLoader):
    """Core types, keys are text (pgd: {20: 45.1}), a key given twice is an error (PyYAML keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"{key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)


class RecipeDumper(yaml.SafeDumper):
    """Writes what RecipeLoader reads back unchanged; no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Core.install(RecipeLoader)
_Core.install(RecipeDumper)


def to_yaml(tree: Mapping[str, object]) -> str:
    return str(yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=1000))


def from_yaml(text: str, source: str) -> object:
    """The value `text` stands for; ValueError in one line, with line and column, where it is not YAML."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # a SafeLoader: builds plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{source}: not valid YAML{where}: {error.problem}; correct this place") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def load_tree(path: str | Path) -> Tree:
    """The file's mapping, laid over its `base:` where it names one (relative to the file, one level only)."""
    path = Path(path)
    tree = _read_mapping(path)
    base_name = tree.pop("base", None)
    if base_name is None:
        return tree
    if not isinstance(base_name, str):
        raise ValueError(
            f"recipe {path}: base is {base_name!r}, but must be the path of a recipe; write base: FILE.yaml"
        )
    base_path = path.parent / base_name
    if not base_path.is_file():
        raise FileNotFoundError(
            f"recipe {path}: base {base_name} is not a file; it is looked for at {base_path}"
        )
    base = _read_mapping(base_path)
    if base.pop("base", None) is not None:
        raise ValueError(
            f"recipe {path}: base {base_name} has a base itself, one level is allowed; merge the two files"
        )
    return merge({key: value for key, value in base.items() if key not in NOT_INHERITED}, tree)


def _read_mapping(path: Path) -> Tree:
    if not path.exists():
        raise FileNotFoundError(f"recipe {path} does not exist; give the path of a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    tree = from_yaml(text, f"recipe {path}")
    if not isinstance(tree, dict):
        raise ValueError(
            f"recipe {path} is not a mapping of sections; begin with data:, model:, optim:, run:"
        )
    return {str(key): value for key, value in tree.items()}


def merge(base: Tree, over: Mapping[str, object]) -> Tree:
    """`over` on top of `base`: mappings are merged key by key, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """`tree` with every `section.field=value` set, in order; values are YAML (1e-3, true, [1, 2], null)."""
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ValueError(f"override {override!r} is not key=value; write it as optim.lr=1e-3")
        if keys[0] == "base":
            raise ValueError(f"override {override!r}: base is read before the overrides; set it in the file")
        tree = _with_value(tree, keys, from_yaml(text, f"override {override!r}"), name.strip())
    return tree


def _with_value(tree: Tree, keys: Sequence[str], value: object, name: str) -> Tree:
    key, *rest = keys
    if not rest:
        return {**tree, key: value}
    below = tree.get(key)
    if below is not None and not isinstance(below, dict):
        whole = ".".join(name.split(".")[: -len(rest)])
        raise ValueError(
            f"override {name}: {whole} is {below!r}, which has no fields; set {whole} as a whole"
        )
    return {**tree, key: _with_value(below or {}, rest, value, name)}


def nearest_key(name: str, known: Iterable[str]) -> str:
    """The dotted name in `known` most like `name`, by spelling; a field of another section counts too."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, name, candidate).ratio()
        leaf = SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, leaf - 0.1)  # the penalty keeps a near miss inside its own section

    return max(sorted(known), key=likeness)
