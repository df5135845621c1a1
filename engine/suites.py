"""From an evaluation entry to an open set: a suite's shards, how they reach the model, and how they are judged."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.index import DatasetIndex
from data.remote import is_url, join
from data.suite import Suite
from data.suite_folders import find_parts, manifest_of, wanted_parts
from data.transform import EvalTransform
from engine.build import eval_transform
from engine.class_views import ClassViews, class_views
from engine.eval_fields import AnyEval, SuiteEval
from engine.eval_set import EvalSet
from engine.protocols import DEFAULT, way_of
from engine.recipe import Recipe
from engine.sources import Access, numbered, open_shards
from engine.suite_places import folder_of
from engine.view import PLAIN

CLEAN = "clean"
OWN_CORRUPTIONS = "made by `shards corrupt`, not the published files; numbers may differ by points"
_MADE_HERE = re.compile(r" severity \d, \d+ px, seed -?\d+")  # of its data sets' names
_NUM_NAMED = 6


def open_eval_set(
    recipe: Recipe, entry: AnyEval, access: Access, *, classes: Sequence[str] | None = None
) -> EvalSet:
    """The suite of `entry`; attacks start from the clean images. ValueError or OSError for shards that are not
    there, or that do not fit a model of `classes`, those of the training (None: nobody knows yet)."""
    suite = manifest_of(entry.suite if isinstance(entry, SuiteEval) else CLEAN)
    own = entry.data if isinstance(entry, SuiteEval) else None
    protocol = entry.protocol if isinstance(entry, SuiteEval) else DEFAULT
    transform = _transform(recipe, suite, protocol)
    folder, field = folder_of(recipe, suite, own)
    if suite.parts and not suite.on_the_fly:
        return _open_parts(suite, folder, access, classes, transform, protocol)
    index = _open(recipe, suite, folder, field, access, classes)
    whole = _set(suite, suite.id, index, folder, classes, transform, protocol)
    return _corrupting(suite, whole) if suite.on_the_fly else whole


def _open(
    recipe: Recipe, suite: Suite, folder: str, field: str, access: Access, classes: Sequence[str] | None
) -> DatasetIndex:
    if suite.is_imagenet:
        return open_shards(folder, access, field=field)
    # A stream has no class list; where data.val gave none either, its classes are numbers and can only be counted.
    is_named = recipe.data.indexed or classes is None or tuple(classes) != numbered(len(classes))
    return open_shards(folder, access, field=field, classes=classes, by_name=is_named)


def _set(
    suite: Suite,
    name: str,
    index: DatasetIndex,
    folder: str,
    classes: Sequence[str] | None,
    transform: EvalTransform,
    protocol: str,
) -> EvalSet:
    found = ClassViews((PLAIN,))
    if suite.is_imagenet and classes is not None:
        found = class_views(suite, index, classes, folder=Path(folder))
    is_own = suite.severities > 0 and _MADE_HERE.search(index.description.dataset) is not None
    return EvalSet(
        suite=name,
        index=index,
        transform=transform,
        protocol=protocol,
        views=found.views,
        judged=found.judged,
        notes=(*found.notes, *([OWN_CORRUPTIONS] if is_own else [])),
    )


def _open_parts(
    suite: Suite,
    folder: str,
    access: Access,
    classes: Sequence[str] | None,
    transform: EvalTransform,
    protocol: str,
) -> EvalSet:
    """All parts that are there. ValueError where there is none."""
    wanted, field = wanted_parts(suite), f"suite {suite.id}:"
    if is_url(folder):
        places = [(name, join(folder, name)) for name in wanted if access.has_index(join(folder, name))]
    else:
        places = [(part.name, str(part.folder)) for part in find_parts(Path(folder), suite)]
    if not places:
        raise ValueError(
            f"{field} no part of it in {folder}, such as {folder}/{(wanted or ['NAME'])[0]}; {suite.make}"
        )
    parts = tuple(
        _set(
            suite,
            f"{suite.id}/{name}",
            open_shards(place, access, field=field),
            place,
            classes,
            transform,
            protocol,
        )
        for name, place in places
    )
    missing = tuple(name for name in wanted if name not in dict(places))
    return EvalSet(
        suite=suite.id,
        index=parts[0].index,
        transform=transform,
        protocol=protocol,
        views=parts[0].views,
        parts=parts,
        missing=missing,
        notes=(*_missing_note(wanted, missing), *_notes_of(parts)),
    )


def _corrupting(suite: Suite, clean: EvalSet) -> EvalSet:
    """The parts of a suite that is made on the device, all of the same images."""
    from engine.corrupted import (
        change_of,
    )  # the corruptions of all kinds: half a second that no other suite needs

    names = wanted_parts(suite)
    parts = []
    for name in names:
        kind, _, severity = name.partition("/")
        change = change_of(kind, int(severity))
        parts.append(replace(clean, suite=f"{suite.id}/{name}", change=change, change_id="corrupted"))
    notes = (
        "made on the fly: not JPEG-compressed as ImageNet-C's files are, frost is generated; other numbers",
    )
    return replace(clean, parts=tuple(parts), change=parts[0].change, change_id="corrupted", notes=notes)


def _missing_note(wanted: Sequence[str], missing: Sequence[str]) -> tuple[str, ...]:
    if not missing:
        return ()
    named = ", ".join(missing[:_NUM_NAMED]) + (
        f" and {len(missing) - _NUM_NAMED} more" if missing[_NUM_NAMED:] else ""
    )
    return (
        f"{len(missing)} of {len(wanted)} parts are missing: {named}; a mean over the others is another number",
    )


def _notes_of(parts: Sequence[EvalSet]) -> tuple[str, ...]:
    """Each note once, with the parts it is about."""
    about: dict[str, list[str]] = {}
    for part in parts:
        for note in part.notes:
            about.setdefault(note, []).append(part.suite.partition("/")[2])
    return tuple(
        note if len(names) == len(parts) else f"{', '.join(names[:_NUM_NAMED])}: {note}"
        for note, names in about.items()
    )


def _transform(recipe: Recipe, suite: Suite, protocol: str) -> EvalTransform:
    """The recipe's own evaluation transform, with what protocol or manifest prescribe in its place."""
    way = way_of(protocol, suite, image_size=recipe.data.image_size)
    prescribed = {
        "eval_resize": way.resize,
        "crop_pct": way.crop_pct,
        "eval_interpolation": way.interpolation,
    }
    changes = {name: value for name, value in prescribed.items() if value is not None}
    own = eval_transform(recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)}))
    return replace(own, border=suite.border)
