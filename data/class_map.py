"""From the classes of an evaluation set to columns of a model's logits: by name, by number, or by a table.

A set's folders are never taken for the model's classes by their place: 200 sorted folders are not the first 200
labels, and `10` sorts before `2`. Whatever does not fit is one line that says what is missing or strange.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from data.classes import some
from data.suite import NotForThis, Suite
from data.wnids import NUM_CLASSES, wnids

Columns = tuple[tuple[int, ...], ...]
"""For each class of the set the columns that stand for it; () for a class that is not judged."""

_TABLES: Final = Path(__file__).with_name("class_maps")
_OBJECTNET: Final = "mappings"


def map_classes(suite: Suite, found: Sequence[str], trained: Sequence[str], *, folder: Path) -> Columns:
    """Of classes `found` in the shards in `folder`, for a model of classes `trained`, numbers where nobody named them.

    ValueError in one line for classes that the set or the model does not have.
    """
    places = {name: place for place, name in enumerate(_model_classes(suite, trained))}
    if suite.classes == "wnids":
        return _by_name(suite, found, places)
    if suite.classes == "numbers":
        return _by_number(suite, found, places)
    table = _read_objectnet(suite, folder) if suite.classes == "objectnet" else read_table(suite.id)
    return _by_table(suite, found, places, table)


def is_imagenet(trained: Sequence[str]) -> bool:
    """Whether a model of these classes is one of ImageNet's; 1000 that nobody named are taken for them."""
    return bool(set(trained) & set(wnids())) or (_are_numbers(trained) and len(trained) == NUM_CLASSES)


def label_columns(suite: Suite, trained: Sequence[str]) -> tuple[int, ...]:
    """The column of each of ImageNet's 1000 labels. ValueError for a model that lacks one."""
    places = {name: place for place, name in enumerate(_model_classes(suite, trained))}
    if unknown := [name for name in wnids() if name not in places]:
        raise NotForThis(
            f"suite {suite.id} has labels of all {NUM_CLASSES} classes, and the model lacks {len(unknown)} of them: "
            f"{some(unknown)}; choose other suites"
        )
    return tuple(places[name] for name in wnids())


def read_table(id: str) -> dict[str, tuple[int, ...]]:
    """Class -> labels of ImageNet, of the suite's file in data/class_maps. ValueError for one that is wrong."""
    path = _TABLES / f"{id}.yaml"
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        table = {str(name): tuple(labels) for name, labels in content["classes"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no class map ({' '.join(str(error).split())}); restore it") from None
    labels = [label for row in table.values() for label in row]
    if not all(isinstance(label, int) and 0 <= label < NUM_CLASSES for label in labels) or not all(
        table.values()
    ):
        raise ValueError(f"{path}: each class needs labels of ImageNet, 0 to {NUM_CLASSES - 1}; restore it")
    return table


def _model_classes(suite: Suite, trained: Sequence[str]) -> Sequence[str]:
    """Wnids in the order of the model's columns. Classes that nobody named are ImageNet's where they are 1000."""
    if _are_numbers(trained) and len(trained) == NUM_CLASSES:
        return wnids()
    if not is_imagenet(trained):
        what = (
            f"{len(trained)} unnamed classes"
            if _are_numbers(trained)
            else f"classes such as {some(trained[:2])}"
        )
        raise NotForThis(
            f"suite {suite.id} is for models of ImageNet's classes, and this one has {what}; choose other suites"
        )
    return trained


def _by_name(suite: Suite, found: Sequence[str], places: Mapping[str, int]) -> Columns:
    if _are_numbers(found) and len(found) == NUM_CLASSES == suite.num_classes:
        found = wnids()  # shards of somebody who kept labels alone
    wanted = None if suite.class_list is None else wnids(suite.class_list)
    if _are_numbers(found) or not set(found) & set(wnids()):
        raise ValueError(
            f"suite {suite.id}: its shards name their {len(found)} classes {some(found[:3])}, not by wnids; give the "
            f"names: shards index SHARDS --classes {suite.class_list or 'FILE'}"
        )
    if wanted is not None:
        _check_list(suite, found, wanted)
    judged = set(found) if wanted is None else set(wanted)
    if strange := [name for name in found if name in judged and name not in places]:
        raise NotForThis(
            f"suite {suite.id}: {len(strange)} of its {len(judged)} classes are none of the model's {len(places)}: "
            f"{some(strange)}; these images are not for this model"
        )
    return tuple((places[name],) if name in judged else () for name in found)


def _check_list(suite: Suite, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Shards made with ImageNet's whole class list have all of the set's classes, and others without images."""
    if missing := sorted(set(wanted) - set(found)):
        raise ValueError(
            f"suite {suite.id} has {len(wanted)} classes, these shards lack {len(missing)} of them: {some(missing)}; "
            "unpack the set again and make its shards again"
        )
    if len(found) != NUM_CLASSES and (strange := sorted(set(found) - set(wanted))):
        raise ValueError(
            f"suite {suite.id} has {len(wanted)} classes, and {some(strange)} {'is' if len(strange) == 1 else 'are'} "
            "none of them; take the right folder"
        )


def _by_number(suite: Suite, found: Sequence[str], places: Mapping[str, int]) -> Columns:
    """Folder 10 is label 10, wherever it is sorted."""
    names = wnids()
    if not _are_numbers(found):
        return _by_name(suite, found, places)
    numbers = [int(name) for name in found]
    if sorted(numbers) != list(range(suite.num_classes or NUM_CLASSES)):
        lacking = sorted(set(range(NUM_CLASSES)) - set(numbers))
        raise ValueError(
            f"suite {suite.id} has folders 0 to {NUM_CLASSES - 1}, these shards lack {len(lacking)} of them: "
            f"{some([str(n) for n in lacking])}; unpack the set again and make its shards again"
        )
    return _by_name(suite, [names[number] for number in numbers], places)


def _by_table(
    suite: Suite, found: Sequence[str], places: Mapping[str, int], table: Mapping[str, Sequence[int]]
) -> Columns:
    """Classes of the set that the table lacks are not judged where only a part of them has labels (ObjectNet)."""
    names = wnids()
    if lacking := sorted(set(table) - set(found)):
        raise ValueError(
            f"suite {suite.id} has {len(table)} classes, these shards lack {len(lacking)} of them: {some(lacking)}; "
            "unpack the set again and make its shards again"
        )
    strange = [name for name in found if name not in table]
    if strange and suite.classes != "objectnet":
        raise ValueError(
            f"suite {suite.id}: {some(strange)} are none of its {len(table)} classes; take the right folder"
        )
    if unknown := sorted({names[i] for row in table.values() for i in row} - places.keys()):
        raise NotForThis(
            f"suite {suite.id} stands for classes that the model lacks: {some(unknown)}; it is for models of all 1000"
        )
    return tuple(tuple(places[names[label]] for label in table.get(name, ())) for name in found)


def _read_objectnet(suite: Suite, folder: Path) -> dict[str, tuple[int, ...]]:
    """Folder -> labels, of the four files in the download's `mappings`, to be copied beside the shards."""
    place = folder / _OBJECTNET
    try:
        names = json.loads((place / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
        to_imagenet = json.loads((place / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8"))
        numbers = json.loads((place / "pytorch_to_imagenet_2012_id.json").read_text(encoding="utf-8"))
        lines = (place / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
        label_of = {int(line): int(label) for label, line in numbers.items()}
        by_words = {
            words.strip(): label_of[number] for number, words in enumerate(lines) if number in label_of
        }
        folders = {words: name for name, words in names.items()}
        return {
            folders[words]: tuple(by_words[part.strip()] for part in found.split(";"))
            for words, found in to_imagenet.items()
        }
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"suite {suite.id}: no {error.filename}; copy the folder `mappings` of ObjectNet's download to {place}"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"suite {suite.id}: {place} does not hold ObjectNet's mappings ({type(error).__name__}: {error}); copy "
            "them again"
        ) from None


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)
