"""What pydantic found wrong with a recipe, as one line: the field, its value, the rule, the remedy."""

import json
import re
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from engine.eval_fields import EVAL_TAGS
from engine.override import nearest_key
from engine.values import Section

_RULES = {
    "model_type": ("must be a mapping of fields", "write its fields below it"),
    "dict_type": ("must be a mapping", "write its keys below it"),
    "float_type": ("must be a number", "write one such as 0.1 or 1e-3"),
    "int_type": ("must be a whole number", "write one such as 8"),
    "bool_type": ("must be true or false", "write one of these, without quotes"),
    "string_type": ("must be text", "put it in quotes"),
    "invalid_key": ("must have text for keys", "put the key in quotes"),
    "tuple_type": ("must be a list", "write it as [a, b]"),
}


def known_fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted name below `model`; entries of a list count as one."""
    known: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        known[prefix + name] = field
        for section in _sections(field.annotation):
            known |= known_fields(section, f"{prefix}{name}.")
    return known


def _sections(annotation: object) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def one_line(error: ValidationError, known: Mapping[str, FieldInfo]) -> str:
    """The most telling of the errors; `known` is what known_fields gives."""
    # A misspelt required field is both unknown and missing: the unknown name is what helps.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    more = f" ({len(details) - 1} more after this one)" if len(details) > 1 else ""
    return " ".join(f"{_explain(details[0], known)}{more}".split())


def _explain(detail: ErrorDetails, known: Mapping[str, FieldInfo]) -> str:
    name = _dotted(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return _explain_unknown(name, known)
    if detail["type"] == "missing":
        return f"{name} is missing and has no default; add it"
    if detail["type"] == "value_error":
        return f"{name} {detail['ctx']['error']}".strip()
    given, default = detail["input"], _default(known.get(_without_index(name)))
    rule, remedy = _RULES.get(
        detail["type"], (re.sub("(Input|String|Tuple) should", "must", detail["msg"]), default)
    )
    if isinstance(given, str) and given.lower() == "none" and default.endswith("null"):
        remedy = "write null for none"
    return f"{name} is {_short(given)}, but {rule}; {remedy}"


def _explain_unknown(name: str, known: Mapping[str, FieldInfo]) -> str:
    plain = _without_index(name)
    if plain in known:
        return f"{name} does not belong to an entry of this kind; remove it"
    nearest = nearest_key(plain, known)
    if index := re.search(r"\[\d+\]\.", name):
        nearest = nearest.replace("evals.", f"evals{index[0]}")
    return f"{name} is not a field; did you mean {nearest}?"


def _without_index(name: str) -> str:
    """evals[0].eps as evals.eps; an index at the end stays, for such a value has no default of its own."""
    return re.sub(r"\[\d+\]\.", ".", name)


def _dotted(loc: tuple[int | str, ...]) -> str:
    """("evals", 0, "attack entry", "eps") as evals[0].eps."""
    if loc[:2] == ("model", "args"):
        loc = loc[:3]  # what follows names the types that were tried
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc if part not in EVAL_TAGS]
    return "".join(parts).removeprefix(".")


def _default(field: FieldInfo | None) -> str:
    value = None if field is None else field.get_default(call_default_factory=True)
    if field is None or field.is_required() or isinstance(value, BaseModel):
        return "choose another value"
    return f"the default is {json.dumps(value)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
