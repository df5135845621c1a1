"""recipes/published.yaml: the weight files that papers published and their numbers, as data. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT: Final = Path(__file__).parents[1]
PATH: Final = ROOT / "recipes" / "published.yaml"
Percent = float
Entry = TypeVar("Entry")


class PublishedFile(BaseModel):
    """One file, or a model without one whose numbers are known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    name: str  # as the paper's table, or its link, calls it
    paper: str
    file: str | None  # its name, a name of timm's, or None: none published, or not known
    container: str | None
    norm: str  # plain, none (no BatchNorm), or how ghost norms are held
    model: str
    recipe: str | None  # path in this repository
    words: list[str]  # key=value for `eval FILE --model MODEL`
    numbers: dict[str, Percent] = Field(min_length=1)
    missing: list[str] = Field(
        default_factory=list
    )  # measures of the paper's table whose number is not known
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The whole table."""

    papers: Mapping[str, str]  # id -> reference
    measures: Mapping[str, str]  # name of a number -> what was measured
    containers: Mapping[str, str]
    files: tuple[PublishedFile, ...]


def read_published(path: Path = PATH) -> Published:
    """The table, checked: names are unique and references lead somewhere. ValueError in one line."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        files = tuple(PublishedFile.model_validate(entry) for entry in tree["files"])
        table = Published(
            papers=tree["papers"], measures=tree["measures"], containers=tree["containers"], files=files
        )
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; restore it from the repository") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}; correct it") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the table of published files ({' '.join(str(error).split())}); restore it"
        ) from None
    _check(table, path)
    return table


def _check(table: Published, path: Path) -> None:
    seen: set[str] = set()
    for file in table.files:
        if file.name in seen:
            raise ValueError(f"{path}: {file.name} is there twice; rename one")
        seen.add(file.name)
        for what, name, known in (
            ("paper", file.paper, table.papers),
            ("container", file.container, table.containers),
            *(("number", number, table.measures) for number in [*file.numbers, *file.missing]),
        ):
            if name is not None and name not in known:
                raise ValueError(f"{path}: {file.name} has {what} {name!r}; known are {', '.join(known)}")
        if wrong := {number: value for number, value in file.numbers.items() if not 0 <= value <= 100}:
            raise ValueError(f"{path}: {file.name} has {wrong}; numbers are percent, 0 to 100")
        if file.recipe is not None and not (ROOT / file.recipe).is_file():
            raise ValueError(f"{path}: {file.name} names recipe {file.recipe}, which is no file; correct it")
