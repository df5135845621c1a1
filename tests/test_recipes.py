"""Every file in recipes/: it resolves, its model can be built, its header and numbers are there, its curves are the
papers' (numbers worked out by hand).
"""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from engine.build import augment_settings, check_model, eval_transform, mix_settings
from engine.cli import parse
from engine.flags import recipe_words
from engine.override import from_yaml, load_tree
from engine.published import read_published
from engine.recipe import Recipe, load_recipe, parse_recipe
from engine.schedule import lr_at, scaled_lr, warmup_at
from engine.variants import FILE, expand, variants_of
from models.norm import check_ghost

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
PUBLISHED = read_published()
EVERY = sorted(p for p in RECIPES.glob("*/*.yaml") if p.name != FILE)
OF_PAPERS = [p for p in EVERY if p.parent.name in PUBLISHED.papers]
BASES = ("base.yaml", "base_adversarial.yaml")
WITH_VARIANTS = [p for p in EVERY if variants_of(p)]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    last = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].strip() for line in lines[:last])


every = pytest.mark.parametrize("path", EVERY, ids=name_of)
of_papers = pytest.mark.parametrize("path", OF_PAPERS, ids=name_of)


# ---- the files


@every
def test_it_resolves_to_a_fixed_point_and_its_model_can_be_built(path: Path) -> None:
    recipe = load_recipe(path)
    again = load_recipe(path)
    resolved = parse_recipe(load_tree_of(recipe))
    assert resolved == again == recipe
    assert resolved.hash == again.hash == recipe.hash
    model = check_model(recipe)
    assert all(p.is_meta for p in model.parameters())
    for epoch in (0, recipe.run.epochs - 1):
        augment_settings(recipe, epoch)
        mix_settings(recipe, epoch)


def load_tree_of(recipe: Recipe) -> dict[str, Any]:
    tree = from_yaml(recipe.resolved_yaml(), "test")
    assert isinstance(tree, dict)
    return tree


@every
def test_it_opens_with_a_comment(path: Path) -> None:
    assert len(header(path)) > 20


@of_papers
def test_the_header_says_paper_command_hardware_and_what_was_inferred(path: Path) -> None:
    text, flat = header(path), header(path).replace("\n", " ")
    assert "arXiv:" in text or "blog post" in text
    if path.name in BASES:
        assert "Published" in text
        return
    assert f"launch_gpu.py train recipes/{path.parent.name}/{path.name}" in text
    assert "Hardware" in text
    assert re.search(r"Inferred|published field|[Ee]very field|all but|base.yaml|is theirs", flat), flat
    for name, value in load_recipe(path).published.items():
        assert re.search(rf"\b{name} {float(str(value)):g}0?\b", flat), f"{name} {value} is not in the header"


@of_papers
def test_its_numbers_are_those_of_the_table_of_published_files(path: Path) -> None:
    recipe = load_recipe(path)
    assert set(recipe.published) <= PUBLISHED.measures.keys()
    wanted = [file for file in PUBLISHED.files if file.recipe == path.relative_to(ROOT).as_posix()]
    if path.name in BASES:
        assert not recipe.published
        assert not wanted
    for file in wanted:
        assert recipe.published == file.numbers
        assert file.model == recipe.model.name.replace("_zeroinit", "")


def test_every_published_file_has_its_recipe() -> None:
    assert [file.name for file in PUBLISHED.files if file.recipe is None] == []


def test_names_differ_and_so_do_run_folders() -> None:
    names = [load_recipe(path).name for path in OF_PAPERS if path.name not in BASES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)
    assert [load_recipe(p).name for p in OF_PAPERS if p.name not in BASES] == [
        f"{p.parent.name}-{p.stem}" for p in OF_PAPERS if p.name not in BASES
    ]


@of_papers
def test_data_is_the_same_everywhere_and_can_be_replaced(path: Path) -> None:
    data = load_recipe(path).data
    assert (data.train, data.val) == ("shards/imagenet/train", "shards/imagenet/val")
    assert (data.image_size, data.num_classes, data.crop_pct) == (224, 1000, 0.875)
    changed = load_recipe(path, ["data.train=mine", "data.val=mine"])
    assert changed.hash == load_recipe(path).hash


@of_papers
def test_its_norm_groups_fit_the_devices_it_is_for(path: Path) -> None:
    recipe = load_recipe(path)
    words = re.search(r"--num_processes (\d+)", header(path))
    processes = int(words[1]) if words else 1
    assert recipe.run.batch_size % processes == 0
    check_ghost(recipe.model.norm_stats, recipe.run.batch_size // processes)
    if "groups" in recipe.model.norm_stats and words:
        groups, copies = map(int, re.findall(r"\d+", recipe.model.norm_stats))
        assert recipe.run.batch_size // processes == 64 * groups
        assert copies == recipe.optim.accumulate


# ---- parameters (million), batch and rate: numbers of the papers' tables

FACTS = {
    # recipe: parameters, images of an update, peak rate, epochs
    "bai2021/res50_ori": (25.56, 256, 0.1, 100),
    "bai2021/res50_align": (25.56, 256, 5e-4, 100),
    "bai2021/res50_best": (25.56, 256, 0.1, 100),
    "bai2021/res18_align": (11.69, 256, 5e-4, 100),
    "bai2021/res18_best": (11.69, 256, 0.1, 100),
    "bai2021/res101_align": (44.55, 256, 5e-4, 100),
    "bai2021/res101_best": (44.55, 256, 0.1, 100),
    "bai2021/deit_small": (22.05, 2048, 2e-3, 100),
    "bai2021/deit_mini": (9.98, 2048, 2e-3, 100),
    "bai2021/deit_small_300": (22.05, 1024, 1e-3, 300),
    "bai2021/res50_distill": (25.56, 256, 5e-4, 100),
    "bai2021/deit_small_distill": (22.05, 2048, 2e-3, 100),
    "bai2021/hybrid_deit": (21.06, 2048, 2e-3, 100),
    "bai2021/adv_res50_relu": (25.56, 4096, 1.6, 100),
    "bai2021/adv_res50_gelu": (25.56, 4096, 0.8, 100),
    "bai2021/adv_deit_small": (22.05, 4096, 4e-3, 100),
    "wang2023/deit_small": (22.05, 1024, 1e-3, 300),
    "wang2023/robust_resnet_dw_small": (38.558440, 1024, 1e-3, 300),
    "wang2023/robust_resnet_inverted_dw_small": (33.618088, 1024, 1e-3, 300),
    "wang2023/robust_resnet_up_inverted_dw_small": (34.432552, 1024, 1e-3, 300),
    "wang2023/robust_resnet_down_inverted_dw_small": (34.316776, 1024, 1e-3, 300),
    "xu2022/convnext_tiny": (28.6, 4096, 4e-3, 300),
    "xu2022/swin_tiny": (28.3, 4096, 4e-3, 300),
    "xu2022/poolformer_s36": (30.86, 4096, 4e-3, 300),
    "xu2022/deit_small": (22.05, 4096, 4e-3, 100),
    "xu2022/res50_gelu": (25.56, 512, 0.2, 100),
}


def test_every_recipe_of_a_paper_has_facts() -> None:
    assert FACTS.keys() == {name_of(path) for path in OF_PAPERS if path.name not in BASES}


@pytest.mark.parametrize("name", FACTS)
def test_size_batch_and_rate(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    parameters, images, rate, epochs = FACTS[name]
    model: nn.Module = check_model(recipe)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, rel=3e-3)
    assert recipe.run.batch_size * recipe.optim.accumulate == images
    assert scaled_lr(recipe.optim, recipe.run.batch_size) == pytest.approx(rate, rel=1e-12)
    assert recipe.run.epochs == epochs


# ---- curves over epochs

# The rate of the first update of an epoch. Warm-up: lw + t (lr - lw) / w; cosine: m + (lr - m) (1 + cos(pi t / T)) / 2,
# worked out with a table of cosines. In Bai et al.'s code epoch e runs with t = e - 1.
COS_9, COS_18, COS_3 = 0.98768834, 0.95105652, 0.99862953  # degrees: 180 * 5 / 100, * 10 / 100, * 5 / 300
RATES: dict[str, dict[int, float]] = {
    "bai2021/deit_small": {
        **{0: 1e-6, 1: 1e-6, 2: 4.008e-4, 5: 1.6002e-3},  # 1e-6 + t * 3.998e-4
        **{6: 1e-5 + 9.95e-4 * (1 + COS_9), 51: 1.005e-3, 99: 1.196340e-5},
    },
    "bai2021/res50_align": {
        **{0: 1e-6, 1: 1e-6, 2: 1.008e-4, 5: 4.002e-4},
        **{6: 1e-5 + 2.45e-4 * (1 + COS_9), 51: 2.55e-4, 99: 1.0483451e-5},
    },
    "bai2021/res50_ori": {
        0: 0,
        1: 0,
        2: 0.02,
        5: 0.08,
        6: 0.1,
        30: 0.1,
        31: 0.01,
        61: 1e-3,
        91: 1e-4,
        99: 1e-4,
    },
    "bai2021/res50_best": {0: 1e-6, 1: 1e-6, 6: 1e-5 + 0.049995 * (1 + COS_9), 51: 0.050005, 99: 1.086537e-4},
    "bai2021/deit_small_300": {
        **{0: 1e-6, 1: 1e-6, 2: 2.008e-4},
        **{6: 1e-5 + 4.95e-4 * (1 + COS_3), 151: 5.05e-4, 299: 1.01085634e-5},
    },
    "bai2021/adv_res50_relu": {
        **{0: 0.1, 1: 0.1, 2: 0.4, 5: 1.3, 6: 1.6, 30: 1.6, 31: 0.16, 61: 0.016, 91: 1.6e-3, 99: 1.6e-3}
    },
    "bai2021/adv_res50_gelu": {
        **{0: 0.1, 1: 0.1, 2: 0.24, 5: 0.66, 6: 0.8, 30: 0.8, 31: 0.08, 61: 8e-3, 91: 8e-4, 99: 8e-4}
    },
    "bai2021/adv_deit_small": {
        **{0: 1e-6, 1: 1e-6, 2: 4.009e-4, 10: 3.6001e-3},  # 1e-6 + t * 3.999e-4
        **{11: 1e-5 + 1.995e-3 * (1 + COS_18), 51: 2.005e-3, 99: 1.393667e-5},
    },
    "wang2023/robust_resnet_dw_small": {
        **{0: 1e-6, 1: 2.008e-4, 4: 8.002e-4, 5: 1e-5 + 4.95e-4 * (1 + COS_3), 150: 5.05e-4, 299: 1.002714e-5}
    },
    # by updates, and the cosine over the 290 epochs that the warm-up leaves
    "xu2022/convnext_tiny": {0: 0, 1: 4e-4, 5: 2e-3, 10: 4e-3, 155: 2.0005e-3, 299: 1.11733e-6},
    "xu2022/poolformer_s36": {0: 0, 1: 8e-4, 5: 4e-3, 299: 1.11338e-6},
    "xu2022/deit_small": {0: 1e-6, 5: 2.0005e-3, 10: 4e-3, 55: 2.005e-3, 99: 1.1215294e-5},
    "xu2022/res50_gelu": {0: 0.1, 1: 0.12, 4: 0.18, 5: 0.2, 29: 0.2, 30: 0.02, 60: 2e-3, 90: 2e-4, 99: 2e-4},
}
RATES["bai2021/deit_mini"] = RATES["bai2021/hybrid_deit"] = RATES["bai2021/deit_small"]
RATES["bai2021/deit_small_distill"] = RATES["bai2021/deit_small"]
RATES["wang2023/deit_small"] = RATES["wang2023/robust_resnet_dw_small"]
RATES["xu2022/swin_tiny"] = RATES["xu2022/convnext_tiny"]
for _kind in ("inverted_dw", "up_inverted_dw", "down_inverted_dw"):
    RATES[f"wang2023/robust_resnet_{_kind}_small"] = RATES["wang2023/robust_resnet_dw_small"]
for _name, _like in (("res18", "res50"), ("res101", "res50")):
    for _end in ("align", "best"):
        RATES[f"bai2021/{_name}_{_end}"] = RATES[f"bai2021/{_like}_{_end}"]
RATES["bai2021/res50_distill"] = RATES["bai2021/res50_align"]


@pytest.mark.parametrize("name", FACTS)
def test_the_rate_over_epochs(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    steps = 1_281_167 // recipe.run.batch_size / recipe.optim.accumulate

    def first_of(epoch: int) -> float:
        step = -int(-epoch * steps // 1)  # the first update at or behind the epoch's beginning
        batch = recipe.run.batch_size
        return lr_at(recipe.optim, step, steps_per_epoch=steps, epochs=recipe.run.epochs, global_batch=batch)

    # A rate for each update is met up to a part of an update.
    rel = 2e-3 if recipe.optim.update == "step" else 1e-5
    found = {epoch: first_of(epoch) for epoch in RATES[name]}
    assert found == pytest.approx(RATES[name], rel=rel, abs=1e-15)


# Bai et al.'s table, row by row: RandAugment's magnitude, mix probability, cutmix alpha, switch probability.
WARMUP = {
    0: (1, 0.5, 0, 0),
    1: (1, 0.6, 0, 0),
    2: (2, 0.7, 0, 0),
    3: (3, 0.8, 0, 0),
    4: (4, 0.9, 0, 0),
    5: (5, 1.0, 0, 0),
    6: (6, 1.0, 1, 0.1),
    7: (7, 1.0, 1, 0.2),
    8: (8, 0.9, 1, 0.3),
    9: (9, 0.95, 1, 0.4),
    10: (9, 1.0, 1, 0.5),
    11: (9, 1.0, 1, 0.5),
}
WARMED = (
    *("bai2021/adv_deit_small", "xu2022/convnext_tiny", "xu2022/swin_tiny", "xu2022/poolformer_s36"),
    "xu2022/deit_small",
)
# magnitude of the string, mixup, cutmix, mix probability, switch probability
STRONG, WEAK, LIGHT = (9, 0.8, 1.0, 1.0, 0.5), (None, 0, 0, 1.0, 0.5), (9, 0, 0, 1.0, 0.5)
OTHERS = dict.fromkeys(("bai2021/res50_ori", "bai2021/adv_res50_relu", "bai2021/adv_res50_gelu"), WEAK)
OTHERS["xu2022/res50_gelu"] = LIGHT


@pytest.mark.parametrize("name", FACTS)
def test_the_augmentation_over_epochs(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    last = recipe.run.epochs - 1
    for epoch in (*WARMUP, 50, last):
        values = warmup_at(recipe.objective, epoch)
        if name in WARMED:
            wanted = WARMUP.get(epoch, WARMUP[11])
            found = (values.magnitude, values.mix_prob, values.cutmix, values.switch_prob)
            assert found == pytest.approx(wanted), epoch
            assert (values.mixup, recipe.data.randaug) == (0.8, "rand-m9-mstd0.5-inc1")
            continue
        given = recipe.data.randaug
        magnitude = None if given is None else int(re.findall(r"-m(\d+)-", given)[0])
        found_all = (magnitude, values.mixup, values.cutmix, values.mix_prob, values.switch_prob)
        assert found_all == OTHERS.get(name, STRONG), epoch
        assert values.magnitude is None


ADVERSARIAL = {name for name in FACTS if name.startswith("xu2022/") or "/adv_" in name}


@pytest.mark.parametrize("name", FACTS)
def test_the_attack_over_epochs(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    attack = recipe.objective.attack
    assert (attack is not None) == (name in ADVERSARIAL) == (recipe.objective.kind == "adversarial")
    if attack is None:
        return
    assert (attack.norm, attack.eps, attack.step_size, attack.steps) == ("linf", 4 / 255, 4 / 255, 1)
    for epoch in (0, 5, 10, recipe.run.epochs - 1):
        values = warmup_at(recipe.objective, epoch)
        assert (values.eps_scale, values.steps) == (1.0, 1)
    starts = {"bai2021/adv_deit_small": (0.0, "batch_normal", "eval")}
    starts |= dict.fromkeys(
        ("bai2021/adv_res50_relu", "bai2021/adv_res50_gelu"), (0.2, "batch_normal", "groups")
    )
    assert (attack.clean_prob, attack.start_rule, attack.mode) == starts.get(name, (0.0, "sample", "eval"))
    (pgd5,) = [e for e in recipe.evals if e.name == "pgd5_linf4"]
    assert pgd5.step_size == pytest.approx(1 / 255)  # type: ignore[union-attr]


# ---- variants


@pytest.mark.parametrize("path", WITH_VARIANTS, ids=name_of)
def test_every_variant_resolves_and_changes_something(path: Path) -> None:
    plain = load_recipe(path)
    for name in variants_of(path):
        recipe = load_recipe(path, [f"@{name}"])
        assert recipe.name == f"{plain.name}-{name}"
        assert set(recipe.published) <= PUBLISHED.measures.keys()
        assert recipe.published != plain.published
        kernel = f"kernel_{7 if 'robust_resnet_inverted' in plain.model.name else 11}"
        spelled_out = path.parent.name == "wang2023" and (name in ("stem_16", kernel) or recipe.model.args)
        assert recipe.hash != plain.hash or spelled_out


@pytest.mark.parametrize("kind", ["dw", "inverted_dw", "up_inverted_dw", "down_inverted_dw"])
def test_the_grid_of_blocks_can_be_built(kind: str) -> None:
    path = RECIPES / f"wang2023/robust_resnet_{kind}_small.yaml"
    published = sum(p.numel() for p in check_model(load_recipe(path)).parameters())
    sizes = {}
    for name in variants_of(path):
        if kind == "dw" or name in ("stem_4", "kernel_3", "kernel_31", "all_norms_and_acts"):
            sizes[name] = sum(p.numel() for p in check_model(load_recipe(path, [f"@{name}"])).parameters())
    assert sizes["kernel_3"] < published < sizes["kernel_31"]
    assert sizes["stem_4"] < published < sizes["all_norms_and_acts"]
    if kind == "dw":
        assert sizes["stem_16"] == sizes["kernel_11"] == sizes["norm1"] == sizes["act3"] == published


def test_variants_are_applied_in_order_and_before_what_follows() -> None:
    path = RECIPES / "wang2023/robust_resnet_dw_small.yaml"
    both = load_recipe(path, ["@kernel_7", "@stem_8", "model.args.kernel_size=5"])
    assert both.name == "wang2023-robust_resnet_dw_small-kernel_7-stem_8"
    assert both.model.args == {"kernel_size": 5, "patch_size": 8}
    assert both.published == {}
    cosine = load_recipe(RECIPES / "bai2021/res50_ori.yaml", ["@adamw_cosine"])
    assert cosine.published == {"clean": 76.4}
    # AdamW with the cosine is Res50-Align's optimizer on Res50-Ori's images.
    align = load_recipe(RECIPES / "bai2021/res50_align.yaml").optim
    assert cosine.optim.model_copy(update={"step_epochs": align.step_epochs}) == align
    assert load_recipe(RECIPES / "bai2021/adv_deit_small.yaml", ["@released_code"]).run.batch_size == 1024


@pytest.mark.parametrize(
    ("text", "word", "says"),
    [
        (None, "@a", "@a: recipe .* has no variants"),
        ("r: {cosine: [optim.schedule=step]}", "@cosin", "@cosin is no variant of .*; did you mean @cosine?"),
        ("r: {a: 3}", "@a", "a is 3, but must be a list of section.field=value"),
        ("r: {a: []}", "@a", r"a is \[\], but must be a list"),
        ("r: [a]", "@a", "must map recipes to names"),
        ("- r", "@a", "must map recipes to names"),
        ("r: {a: [x=1]}\n'r*': {a: [x=2]}", "@a", "a is there twice for r; rename one"),
    ],
)
def test_a_mistake_in_variants_is_one_line(tmp_path: Path, text: str | None, word: str, says: str) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        expand(tmp_path / "r.yaml", [word])
    assert "\n" not in str(caught.value)


def test_bases_are_one_level_deep() -> None:
    assert all(isinstance(load_tree(path), dict) for path in EVERY)


def test_a_variant_may_stand_behind_a_flag_of_train_and_nowhere_else() -> None:
    words = ["train", "r.yaml", "--output", "runs/a", "@a", "run.seed=1", "--dry-run", "@b"]
    assert recipe_words(parse(words, "launch_gpu.py")) == ["@a", "run.seed=1", "@b"]
    with pytest.raises(ValueError, match="unrecognized arguments: @a"):
        parse(["eval", "runs/a", "@a"], "launch_gpu.py")


def test_evaluation_may_interpolate_otherwise_than_training() -> None:
    path = RECIPES / "bai2021/deit_small.yaml"
    recipe, plain = load_recipe(path), load_recipe(path, ["data.eval_interpolation=null"])
    assert eval_transform(recipe).interpolation == "bilinear"
    assert augment_settings(recipe, 0).interpolation == "bicubic"
    assert eval_transform(plain).interpolation == "bicubic"
    with pytest.raises(ValueError, match=r"data\.eval_interpolation is 'lanczos'"):
        load_recipe(path, ["data.eval_interpolation=lanczos"])


def test_lists_as_model_arguments_read_back_the_same() -> None:
    path = RECIPES / "wang2023/robust_resnet_dw_small.yaml"
    recipe = load_recipe(path, ["@all_norms", "model.args.acts=[]", "model.args.depths=[1, 1, 2, 1]"])
    assert recipe.model.args == {"norms": ("norm1", "norm2", "norm3"), "acts": (), "depths": (1, 1, 2, 1)}
    again = parse_recipe(load_tree_of(recipe))
    assert again == recipe
    assert again.hash == recipe.hash
    with pytest.raises(
        ValueError, match="a model argument is a number, true, false or text, or a list of these"
    ):
        load_recipe(path, ["model.args.depths=[[1]]"])
