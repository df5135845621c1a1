"""The words about the attacks stay in step with what there is."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from engine.eval_fields import AttackEval, AutoAttackEval, EvalSection
from engine.flags import make_parser
from robust.catalogue import ATTACKS, AttackInfo, list_attacks
from robust.pgd import PGD, pgd
from robust.threat import NORMS, THREATS

ROOT = Path(__file__).parents[2]
ENTRIES = {"pgd": AttackEval, "autoattack": AutoAttackEval}
NORMS_OF = {"pgd": set(THREATS), "autoattack": set(NORMS)}
EACH = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


def defaults(attack: AttackInfo) -> dict[str, object]:
    return {parameter.name: parameter.default for parameter in attack.parameters}


def test_names_and_norms_are_those_of_a_recipe() -> None:
    assert list_attacks() == ATTACKS
    assert [attack.name for attack in ATTACKS] == list(ENTRIES)
    for attack in ATTACKS:
        allowed = ENTRIES[attack.name].model_json_schema()["properties"]
        assert attack.name == allowed["attack"]["const"]
        assert set(attack.norms) == set(allowed["norm"]["enum"]) == NORMS_OF[attack.name]


@EACH
def test_parameters_are_the_fields_of_an_entry_and_flags_of_the_verb(attack: AttackInfo) -> None:
    words = defaults(attack)
    fields = ENTRIES[attack.name].model_fields
    own = {k: v for k, v in fields.items() if k not in EvalSection.model_fields}
    assert list(words) == [name for name in own if name not in ("attack", "norm")]
    flags = vars(make_parser("p").parse_args(["attack", "run", "--eps", "1/255"]))
    assert flags["attack"] == ATTACKS[0].name
    assert flags["norm"] in attack.norms
    flags["random_start"] = None if flags.pop("no_random_start") is False else "given"
    for name, default in words.items():
        if name == "eps":
            assert default is None
        elif default == "off":
            assert flags[name] is own[name].default is None
        elif name == "step_size":
            assert flags[name] is None
            assert default == "eps/4"
        else:
            assert flags[name] in (None, False), f"{name}: a flag that is not given says nothing"
            assert own[name].default in (default, PydanticUndefined), name


def test_parameters_are_those_of_pgd() -> None:
    words = defaults(ATTACKS[0])
    fields = {field.name: field.default for field in dataclasses.fields(PGD)}
    public = {name: p.default for name, p in inspect.signature(pgd).parameters.items()}
    for name in ("restarts", "best_iterate"):
        assert fields[name] == public[name] == words[name]
    assert public["random_start"] is words["random_start"] is (fields["start"] == "uniform")
    assert {"steps", "step_size"} <= fields.keys()  # of a person, the latter is `step`
    own = {"step" if name == "step_size" else name for name in words}
    assert own - {"preset"} <= public.keys()


@EACH
def test_words_are_complete(attack: AttackInfo) -> None:
    assert "arXiv:" in attack.source
    for parameter in attack.parameters:
        assert parameter.meaning
        assert not parameter.meaning.endswith(".")


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, robust.catalogue; print(sorted({'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
