"""Recipes: what is read, what is refused and in which words, and what stands for the same run."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.fields import SET_ELSEWHERE, WARMUP_PRESETS
from engine.mistake import known_fields
from engine.override import apply_overrides, from_yaml, merge, nearest_key, to_yaml
from engine.recipe import Recipe, load_recipe, parse_recipe, resume_diff

CLEAN = """
data: {train: shards/train, image_size: 32}
model: {name: resnet18}
optim: {lr: 1e-3}
run: {epochs: 20, batch_size: 64}
"""
ADVERSARIAL = """
description: PGD-1 as in Bai et al. 2021
published: {clean: 66.5, pgd: {5: 43.95}}
data: {train: shards/train, val: shards/val, image_size: 224, randaug: rand-m9-mstd0.5-inc1, ratio: [3/4, 2]}
model: {name: deit_small_patch16_224, args: {layer_scale: 0.1, gated: true, depth: 12, pool: avg}}
optim: {lr: 5e-4, lr_base_batch: 512, min_lr: 1e-5, warmup_epochs: 10, warmup_lr: 1e-6, accumulate: 4}
objective:
  kind: adversarial
  mixup: 0.8
  attack: {norm: linf, eps: 4/255, step_size: 4/255, steps: 1}
  warmup: bai2021
evals:
  - {suite: clean, every: 1}
  - {attack: pgd, norm: linf, eps: 4/255, step_size: 1/255, steps: 20, num_images: 1000}
run: {epochs: 100, batch_size: 1024, precision: bf16}
"""


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    path = tmp_path / "clean.yaml"
    path.write_text(CLEAN)
    return path


@pytest.fixture
def adversarial(tmp_path: Path) -> Path:
    path = tmp_path / "adversarial.yaml"
    path.write_text(ADVERSARIAL)
    return path


def one_line(action: Callable[[], object]) -> str | None:
    """What `action` is refused with, None when it is not."""
    try:
        action()
    except ValueError as error:
        line = str(error)
    else:
        return None
    assert len(line.splitlines()) == 1, line
    assert "pydantic" not in line
    return line


def refusal(path: Path, *overrides: str) -> str:
    """The line a user reads; fails when the recipe is accepted or the line is more than one."""
    line = one_line(lambda: load_recipe(path, overrides))
    assert line is not None, f"{path} with {overrides} is accepted"
    return line


def test_values_and_defaults(adversarial: Path) -> None:
    recipe = load_recipe(adversarial)
    assert recipe.name == "adversarial"
    assert recipe.optim.lr == 5e-4
    assert recipe.optim.betas == (0.9, 0.999)
    assert recipe.optim.name == "adamw"
    assert recipe.objective.attack is not None
    assert recipe.objective.attack.eps == 4 / 255
    assert recipe.data.ratio == (3 / 4, 2.0)
    assert recipe.data.scale == (0.08, 1.0)
    assert recipe.model.args == {"layer_scale": 0.1, "gated": True, "depth": 12, "pool": "avg"}
    assert [type(value) for value in recipe.model.args.values()] == [float, bool, int, str]
    assert [entry.name for entry in recipe.evals] == ["clean", "pgd20_linf4"]
    assert recipe.objective.warmup == WARMUP_PRESETS["bai2021"]
    assert recipe.mixes
    assert not load_recipe(adversarial, ["objective.mixup=0", "objective.warmup=null"]).mixes


def test_overrides_are_yaml(clean: Path) -> None:
    words = [
        "optim.lr=1e-4",
        "data.scale=[0.5, 1]",
        "data.val=null",
        "run.deterministic=true",
        "model.args.k=7",
    ]
    recipe = load_recipe(clean, [*words, "optim.betas=[0.9,.99]", "run.seed=1", "run.seed=2"])
    assert recipe.optim.lr == 1e-4
    assert recipe.data.scale == (0.5, 1.0)
    assert recipe.optim.betas == (0.9, 0.99)
    assert recipe.run.deterministic is True
    assert recipe.model.args == {"k": 7}
    assert recipe.run.seed == 2, "the later override counts"


YAML_TYPES: list[tuple[str, object]]
YAML_TYPES = [
    ("1e-3", 1e-3),
    ("-1E+2", -100.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("12", 12),
    ("no", "no"),
    ("on", "on"),
]
YAML_TYPES += [("1:30", "1:30"), ("010", "010"), ("2024-01-01", "2024-01-01"), ("null", None), ("", None)]
YAML_TYPES += [
    ("True", True),
    ("4/255", "4/255"),
    ("e5", "e5"),
    ("1_000", "1_000"),
    ("[1e-3, a]", [1e-3, "a"]),
]


@pytest.mark.parametrize(("text", "value"), YAML_TYPES)
def test_yaml_types(text: str, value: object) -> None:
    found = from_yaml(text, "test")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("optim.lrr=1", ["optim.lrr is not a field; did you mean optim.lr?"]),
        ("optim.epochs=3", ["did you mean run.epochs?"]),
        ("lr=3", ["did you mean optim.lr?"]),
        ("optimm.lr=3", ["did you mean optim?"]),
        ("objective.attack.epss=1", ["did you mean objective.attack.eps?"]),
        ("evals=[{suite: clean, ever: 3}]", ["evals[0].ever is not a field; did you mean evals[0].every?"]),
        ("evals=[{suite: clean, steps: 3}]", ["evals[0].steps does not belong"]),
        (
            "evals=[{attack: pgd, norm: linf, eps: 8, step_size: 0.1, steps: 1}]",
            ["evals[0].eps is 8", "8/255"],
        ),
        ("evals=clean", ["evals is 'clean'", "must be a list"]),
        ("evals=[{suite: clean}, {suite: clean, every: 2}]", ["two entries named clean"]),
        ("objective.attack.eps=4", ["objective.attack.eps is 4", "4/255"]),
        ("objective.attack.eps=1", ["1/255"]),
        ("objective.attack.eps=1.5", ["objective.attack.eps is 1.5"]),
        ("objective.attack.eps=300/255", ["objective.attack.eps is", "less than or equal to 1"]),
        ("objective.attack.eps=0", ["greater than 0"]),
        ("objective.attack.eps=4/0", ["'4/0'", "must be a number"]),
        ("objective=3", ["objective is 3", "must be a mapping"]),
        ("objective.attack=pgd", ["objective.attack is 'pgd'", "must be a mapping"]),
        ("optim.lr='1e-3'", ["optim.lr is '1e-3', but must be a number"]),
        ("optim.lr=-1", ["optim.lr is -1", "greater than 0"]),
        ("optim.lr=.nan", ["optim.lr is '.nan'"]),
        ("optim.clip_norm=none", ["write null"]),
        ("optim.name=lamb", ["'lamb'", "'adamw' or 'sgd'"]),
        ("optim.betas=[0.9]", ["optim.betas[1] is missing"]),
        ("optim.betas=[0.9, 1.0]", ["optim.betas[1] is 1.0", "less than 1"]),
        ("run.seed=true", ["run.seed is True", "must be a whole number"]),
        ("run.batch_size=64.0", ["must be a whole number"]),
        ("run.deterministic=1", ["true or false"]),
        ("name=3", ["name is 3", "must be text"]),
        ("data.scale=[1, 0.5]", ["data.scale is [1.0, 0.5]", "lower first"]),
        ("data.image_size.x=3", ["data.image_size is 224", "set data.image_size as a whole"]),
        ("model.args.k=[[1]]", ["model.args.k is [1]", "number, true, false or text"]),
        ("model.norm_stats=ghost:0", ["'ghost:0'"]),
        ("data.randaug=none", ["data.randaug is 'none'", "write null"]),
        ("data.randaug_on=gpu", ["'host' or 'device'"]),
        ("data.color_jitter=-0.4", ["data.color_jitter", "greater than or equal to 0"]),
        ("data.color_jitter=[0.1, 0.1, 0.1, 0.6]", ["data.color_jitter[3] is 0.6"]),
        ("data.color_jitter=[0.1]", ["data.color_jitter"]),
        ("data.erase_mode=blur", ["data.erase_mode", "'const'"]),
        ("data.erase_after_mix=true", ["does not both erase and mix"]),
        ("base=other.yaml", ["set it in the file"]),
        ("optim.lr", ["not key=value"]),
        ("optim..lr=1", ["not key=value"]),
        ("optim.lr=[1", ["not valid YAML"]),
        ("a\nb=1", ["is not a field"]),
        # contradictions between fields
        ("objective.attack=null", ["adversarial but objective.attack is null"]),
        ("objective.kind=clean", ["objective.kind is clean but objective.attack is given"]),
        (
            "objective.attack={norm: linf, eps: .1, step_size: .1, steps: 1, "
            "clean_prob: 1, random_start: false}",
            ["clean_prob is 1.0"],
        ),
        ("run.batch_size=1023", ["run.batch_size is 1023", "use 1024"]),
        ("objective.mix_group=3", ["objective.mix_group is 3"]),
        ("objective.mix_group=6", ["divide run.batch_size 1024"]),
        ("data.randaug=null", ["objective.warmup.magnitude", "data.randaug"]),
        ("objective.mixup=0", ["objective.warmup.switch_prob", "both"]),
        ("objective.warmup={eps: [[0, 0], [5, 8/255]]}", ["goes up to 0.0313725"]),
        ("objective.warmup={mix_prob: [[1, 0.5]]}", ["must begin at epoch 0"]),
        ("objective.warmup={mix_prob: []}", ["must begin at epoch 0"]),
        ("objective.warmup={mix_prob: [[0, 0.5], [2, 1], [1, 1]]}", ["[0, 2, 1]", "sort them"]),
        ("objective.warmup={mix_prob: [[0, 0.5], [0, 1]]}", ["[0, 0]", "drop repeats"]),
        ("objective.warmup={mix_prob: [[0, 1.5]]}", ["objective.warmup.mix_prob[0][1] is 1.5"]),
        ("objective.warmup=bai", ["bai2021, smooth"]),
        ("objective.warmup.eps=[[0, 0]]", ["objective.warmup is 'bai2021'"]),
        ("optim.min_lr=1", ["optim.min_lr is 1", "0.004"]),
        ("optim.warmup_epochs=101", ["optim.warmup_epochs is 101", "run.epochs is 100"]),
        ("data.val=null", ["evals", "data.val is null"]),
    ],
)
def test_refusals(adversarial: Path, override: str, fragments: list[str]) -> None:
    line = refusal(adversarial, override)
    assert all(fragment in line for fragment in fragments), line


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["data.decode=scaled", "data.resampler=pillow"], "use decode=full or resampler=torch"),
        (["data.decode=scaled", "data.repeats=3"], "each crop would decode its image again"),
        (["data.repeats=0"], "data.repeats is 0"),
        (["optim.scale_all_lr=true"], "lr_base_batch is null"),
        (["optim.name=sgd", "optim.momentum=0"], "nesterov=false"),
        (["objective.warmup={eps: [[0, 0]]}"], "objective.warmup.eps"),
        (["objective.warmup={mix_prob: [[0, 0]]}"], "objective.warmup.mix_prob"),
        (["objective.warmup={cutmix: [[0, 0], [6, 1]]}", "run.batch_size=63"], "use 64"),
    ],
)
def test_refusals_of_a_clean_recipe(clean: Path, overrides: list[str], fragment: str) -> None:
    assert fragment in refusal(clean, *overrides)


def test_a_suite_called_like_the_results_of_an_average(clean: Path) -> None:
    entries = "evals=[{suite: clean}, {suite: clean-ema, data: shards/x}]"
    load_recipe(clean, [entries, "data.val=shards/val"])
    assert "two entries named clean-ema" in refusal(clean, entries, "data.val=shards/val", "optim.ema=0.9")


def test_refusals_of_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_recipe(path)
    for text, fragment in {
        "": "not a mapping",
        "- 1": "not a mapping",
        "data: [": "not valid YAML at line 1, column 8",
        CLEAN + "run: {}": "'run' is given twice",
        "a: !!python/object/apply:os.system [ls]": "could not determine a constructor",
        "data: {train: a, image_size: 32}": "model is missing and has no default; add it (2 more",
    }.items():
        path.write_text(text)
        line = refusal(path)
        assert fragment in line, line
        assert f"recipe {path}" in line
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(path)


KNOWN = sorted(known_fields(Recipe))


@pytest.mark.parametrize("name", KNOWN)
def test_a_misspelling_finds_its_field(name: str) -> None:
    swapped = name[:-2] + name[-1] + name[-2]
    for wrong in (name + "x", swapped):
        assert wrong in KNOWN or nearest_key(wrong, KNOWN) == name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(min_size=1), inside, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(KNOWN), value=json_values)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: object) -> None:
    tree = copy.deepcopy(from_yaml(ADVERSARIAL, "test"))
    assert isinstance(tree, dict)
    tree["objective"]["warmup"] = None
    tree["evals"] = [{"suite": "clean"}]
    keys = name.split(".")
    place = tree
    for key in keys[:-1]:
        below = place.get(key)
        place[key] = below if isinstance(below, dict) else {}
        place = place[key]
    place[keys[-1]] = value
    if one_line(lambda: parse_recipe(tree)) is None:
        recipe = parse_recipe(tree)
        assert recipe.hash == parse_recipe(from_yaml(recipe.resolved_yaml(), "test")).hash  # type: ignore[arg-type]


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_text
looks_like = st.sampled_from(
    ["1e-3", "no", "null", "~", "0x10", "1:30", "true", "4/255", "- a", "a: b", "# x", ""]
)


@settings(max_examples=100, deadline=None)
@given(
    args=st.dictionaries(
        plain_text.filter(lambda name: name not in SET_ELSEWHERE), scalars | looks_like, max_size=4
    ),
    seed=st.integers(0, 2**63),
)
def test_resolved_form_reads_back_the_same(args: dict[str, object], seed: int) -> None:
    tree = from_yaml(CLEAN, "test")
    assert isinstance(tree, dict)
    recipe = parse_recipe(merge(tree, {"model": {"args": args}, "published": args, "run": {"seed": seed}}))
    again = parse_recipe(from_yaml(recipe.resolved_yaml(), "test"))  # type: ignore[arg-type]
    assert again == recipe
    assert again.hash == recipe.hash
    assert [type(value) for value in again.model.args.values()] == [type(value) for value in args.values()]


def test_resolved_file_is_a_fixed_point(adversarial: Path, tmp_path: Path) -> None:
    recipe = load_recipe(adversarial)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.resolved_yaml())
    again = load_recipe(path)
    assert again == recipe
    assert again.resolved_yaml() == recipe.resolved_yaml()
    assert set(from_yaml(recipe.resolved_yaml(), "test")) == set(Recipe.model_fields)  # type: ignore[call-overload]


def test_hash(adversarial: Path) -> None:
    recipe = load_recipe(adversarial)
    assert len(recipe.hash) >= 12
    assert int(recipe.hash, 16) >= 0
    assert load_recipe(adversarial, ["run.output=elsewhere"]).hash == recipe.hash
    written_out = to_yaml(WARMUP_PRESETS["bai2021"].model_dump(mode="json"))
    same = ["objective.attack.eps=0.01568627450980392", "data.flip=0.50", f"objective.warmup={written_out}"]
    assert load_recipe(adversarial, same).hash == recipe.hash, "only the value counts, not how it is written"
    for free in ("evals=[]", "run.report_every=7", "data.num_workers=5", "name=other"):
        assert load_recipe(adversarial, [free]).hash == recipe.hash, f"{free} changes no update"
    for change in ("run.seed=1", "optim.lr=1e-3", "model.args.depth=13", "objective.warmup=smooth"):
        assert load_recipe(adversarial, [change]).hash != recipe.hash, change


def test_frozen(clean: Path) -> None:
    recipe = load_recipe(clean)
    with pytest.raises(ValidationError):
        recipe.optim.lr = 1.0


def test_base(tmp_path: Path, adversarial: Path) -> None:
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text(
        "base: ../adversarial.yaml\noptim: {lr: 1e-3}\nevals: [{suite: clean}]\ndata: {scale: [0.5, 1]}\n"
    )
    recipe, base = load_recipe(child), load_recipe(adversarial)
    assert (recipe.optim.lr, recipe.optim.lr_base_batch) == (1e-3, 512), "mappings are merged"
    assert (len(recipe.evals), recipe.data.scale) == (1, (0.5, 1.0)), "lists are replaced"
    claims = (recipe.name, recipe.description, recipe.published)
    assert claims == ("child", "", {}), "what the base claims is not inherited"
    assert recipe.model == base.model

    grandchild = tmp_path / "grandchild.yaml"
    grandchild.write_text("base: sub/child.yaml\n")
    assert "one level is allowed" in refusal(grandchild)
    grandchild.write_text("base: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml is not a file"):
        load_recipe(grandchild)
    grandchild.write_text("base: [a]\n")
    assert "must be the path of a recipe" in refusal(grandchild)


def test_overrides_leave_the_tree_alone() -> None:
    tree: dict[str, object] = {"optim": {"lr": 1.0}}
    assert apply_overrides(tree, ["optim.lr=2"]) == {"optim": {"lr": 2}}
    assert tree == {"optim": {"lr": 1.0}}


def test_resume_diff(adversarial: Path) -> None:
    old = load_recipe(adversarial)
    free = [
        "run.output=x",
        "run.report_every=7",
        "run.checkpoint_every=9",
        "run.keep_checkpoints=3",
        "run.max_steps=5",
    ]
    free += [
        "data.num_workers=0",
        "data.train=elsewhere",
        "data.val=there",
        "evals=[]",
        "name=n",
        "description=d",
    ]
    assert resume_diff(old, load_recipe(adversarial, [*free, "published={clean: 1}"])) == []
    bound = [
        "run.epochs=101",
        "run.seed=1",
        "model.args.extra=1",
        "objective.attack.eps=8/255",
        "data.flip=0",
    ]
    expected = {word.partition("=")[0] for word in bound}
    assert set(resume_diff(old, load_recipe(adversarial, bound + free))) == expected
    assert "objective.warmup" in resume_diff(old, load_recipe(adversarial, ["objective.warmup=null"]))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text("{}[]:,-&*!|>'\"#%@`?~ \n\tab1<", max_size=12))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    line = one_line(lambda: from_yaml(text, "recipe"))
    assert line is None or "not valid YAML" in line


def test_keys_are_text(adversarial: Path) -> None:
    assert load_recipe(adversarial).published == {"clean": 66.5, "pgd": {"5": 43.95}}
    assert "data.1 is not a field" in refusal(adversarial, "data={1: 2}")
