"""The papers' recipes do train: each at its own size for one update, and in miniature through the command line, where
a run that was stopped and resumed ends with the bits of one that was not.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bits.checkpoint import latest_checkpoint
from bits.environment import open_environment
from bits.meters import Meters
from data.augment import with_augment
from data.batch import LAM, MIX_ON, NUM_DRAWS, START, Batch
from engine.build import augment_settings, batch_layout, build_state
from engine.cli import Launch, main
from engine.free import make_step
from engine.knobs import pack_knobs
from engine.recipe import Recipe, load_recipe
from engine.schedule import scaled_lr
from engine.step import meter_names, step_settings
from engine.variants import FILE

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
CPU = Launch(backend="cpu")
FAMILIES = ("bai2021", "wang2023", "xu2022")
NAMES = [
    f"{family}/{path.stem}"
    for family in FAMILIES
    for path in sorted((RECIPES / family).glob("*.yaml"))
    if path.name != FILE and not path.stem.startswith("base")
]


def few_images(recipe: Recipe) -> list[str]:
    """The smallest batch that mixing and the groups of the norms allow, and groups of two images; the recipe's rate,
    which scaled to so few would be below min_lr.
    """
    norm, rate = recipe.model.norm_stats, scaled_lr(recipe.optim, recipe.run.batch_size)
    rates = [f"optim.lr={rate!r}", "optim.lr_base_batch=null", "optim.scale_all_lr=false"]
    if norm.startswith("ghost:"):
        return [*rates, "model.norm_stats=ghost:2", "run.batch_size=4"]
    groups = int(re.findall(r"\d+", norm)[0]) if norm.startswith("groups:") else 1
    return [*rates, f"run.batch_size={2 * groups}"]


# ---- at its own size


def made_batch(recipe: Recipe, num: int, *, num_classes: int) -> Batch:
    """Noise, mixed by mixup where the recipe mixes."""
    size = recipe.data.image_size
    generator = torch.Generator().manual_seed(0)
    draw = torch.zeros(num, NUM_DRAWS)
    draw[:, LAM], draw[:, MIX_ON], draw[:, START] = 0.5, 1.0, 0.5
    seed = torch.randint(0, 1 << 62, (num,), generator=generator)
    draws = with_augment(draw.numpy(), seed.numpy(), augment_settings(recipe, 0), image_size=size)
    return Batch(
        image=torch.randint(0, 256, (num, 3, size, size), generator=generator, dtype=torch.uint8),
        label=torch.randint(0, num_classes, (num,), generator=generator),
        mask=torch.ones(num, dtype=torch.bool),
        key=torch.arange(num),
        seed=seed,
        draw=torch.from_numpy(draws),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_update_at_its_own_size(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    # Two micro-batches, not the recipe's: more of the same would only take longer.
    recipe = load_recipe(
        path, [*few_images(load_recipe(path)), "optim.accumulate=2", "run.precision=float32"]
    )
    env = open_environment("cpu", precision=recipe.run.precision)
    try:
        batch_size, num_classes = recipe.run.batch_size, recipe.data.num_classes
        assert (recipe.data.image_size, num_classes) == (224, 1000)
        state = build_state(recipe, env, num_classes=num_classes, layout=batch_layout(batch_size, env))
        state.model.train()
        before = [p.detach().clone() for p in state.model.parameters()]
        settings = step_settings(recipe, num_classes)

        def teacher(image: Tensor) -> Tensor:
            return torch.zeros(len(image), num_classes)

        step = make_step(
            env=env,
            state=state,
            forward=env.wrap(state.model),
            settings=settings,
            meters=Meters(meter_names(settings), env.device),
            teacher=teacher if recipe.objective.distill else None,
        )
        attack = recipe.objective.attack
        eps, step_size = (attack.eps, attack.step_size) if attack else (0.0, 0.0)
        knobs = pack_knobs(lr=scaled_lr(recipe.optim, batch_size), eps=eps, step_size=step_size, step=0)
        batch = Batch(**env.feed(made_batch(recipe, batch_size, num_classes=num_classes)._asdict()))
        assert not step(batch, knobs)
        assert step(batch, knobs)
        moved = [not torch.equal(p, old) for p, old in zip(state.model.parameters(), before, strict=True)]
        assert all(torch.isfinite(p).all() for p in state.model.parameters())
        # Blocks that start as the identity have weights without a gradient in the first update.
        assert sum(moved) >= (0.2 if "deit" in recipe.model.name else 0.9) * len(moved)
        means = step.meters.means(env.reduce(step.meters.snapshot()).cpu())
        assert 3 < means["loss"] < 30  # ln 1000 = 6.9
    finally:
        env.close()


# ---- in miniature

LAYERS = {"layers": "[1, 1, 1, 1]", "channels": "[8, 16, 32, 64]"}
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
STAGES = {"depths": "[1, 1, 2, 1]", "dims": "[8, 16, 32, 64]"}
# Every model of the recipes at a size that trains in seconds; timm fixes PoolFormer's depths: the one of 12 blocks.
SHAPES: dict[str, dict[str, object]] = {
    "deit": VIT,
    "res": LAYERS,
    "robust_resnet": STAGES,
    "convnext": STAGES,
    "swin": {"depths": "[1, 1, 2, 1]", "embed_dim": 12, "window_size": 4},
    "poolformer": {},
}
# One recipe of every family of models with every objective that the papers train it on; `make test` takes these on
# the cpu, the slow tests all recipes on the cpu and on XLA.
QUICK = (
    "bai2021/res50_ori",
    "bai2021/res18_align",
    "bai2021/deit_small_300",
    "bai2021/deit_mini",
    "bai2021/deit_small_distill",
    "bai2021/hybrid_deit",
    "bai2021/res50_distill",
    "bai2021/adv_res50_gelu",
    "bai2021/adv_deit_small",
    "wang2023/robust_resnet_up_inverted_dw_small",
    "xu2022/convnext_tiny",
    "xu2022/swin_tiny",
    "xu2022/res50_gelu",
)


def shape_of(name: str) -> dict[str, object]:
    """The miniature's model arguments: those of the longest family name that stands in the recipe's."""
    return SHAPES[max((family for family in SHAPES if family in name.split("/")[1]), key=len)]


def words_of(name: str, digits: Path, teacher: Path | None = None) -> list[str]:
    """`train`'s words for the recipe at 64 px on digits; everything else, the rates too, is the recipe's own."""
    path = RECIPES / f"{name}.yaml"
    recipe = load_recipe(path)
    data = [f"data.train={digits / 'train'}", "data.val=null", "data.num_classes=10", "data.num_workers=0"]
    size = ["data.image_size=64", *few_images(recipe), "evals=[]"]
    size += ["model.name=poolformer_s12"] if "poolformer" in name else []
    size += [f"model.args.{key}={value}" for key, value in shape_of(name).items()]
    learn = [f"objective.distill.teacher={teacher}"] if recipe.objective.distill else []
    quick = ["run.tensorboard=false", "run.report_every=1"]
    return ["train", str(path), *data, *size, *learn, *quick, "--quiet"]


@pytest.fixture(scope="session")
def teacher(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the teacher's recipe, which is as small."""
    words = words_of("bai2021/adv_deit_small", digits)
    words[1] = str(RECIPES / "bai2021/deit_small.yaml")
    output = tmp_path_factory.mktemp("teacher") / "run"
    assert main([*words, "run.max_steps=1", "--output", str(output)], CPU, program="p") == 0
    return output


def weights(run: Path) -> tuple[int, dict[str, Tensor]]:
    latest = latest_checkpoint(run / "checkpoints")
    assert latest is not None
    checkpoint, state, _ = latest
    return checkpoint.step, dict(state["model"])


def assert_alike(run: Path, other: Path) -> None:
    (step, found), (other_step, wanted) = weights(run), weights(other)
    assert step == other_step == 3
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES]
)
def test_three_updates_in_miniature_and_resumed(
    name: str, digits: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    taught = request.getfixturevalue("teacher") if "distill" in name else None
    words = words_of(name, digits, taught)

    def train(run: str, steps: int) -> None:
        assert (
            main([*words, f"run.max_steps={steps}", "--output", str(tmp_path / run)], CPU, program="p") == 0
        )

    train("whole", 3)
    train("parts", 1)
    first = weights(tmp_path / "parts")[1]
    train("parts", 3)
    assert_alike(tmp_path / "parts", tmp_path / "whole")
    last = weights(tmp_path / "parts")[1]
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert all(value.isfinite().all() for value in last.values() if value.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_three_updates_in_miniature_and_resumed_on_xla(
    name: str,
    digits: Path,
    tmp_path: Path,
    process_environment: Callable[..., dict[str, str]],
    request: pytest.FixtureRequest,
) -> None:
    taught = request.getfixturevalue("teacher") if "distill" in name else None
    # Unoptimised code is XLA all the same and compiles in a third of the time.
    environment = process_environment(XLA_FLAGS="--xla_backend_optimization_level=0")

    def train(run: str, steps: int) -> None:
        words = [*words_of(name, digits, taught), f"run.max_steps={steps}", "--output", str(tmp_path / run)]
        command = [sys.executable, str(ROOT / "launch_xla.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    train("whole", 3)
    train("parts", 2)
    train("parts", 3)
    assert_alike(tmp_path / "parts", tmp_path / "whole")
