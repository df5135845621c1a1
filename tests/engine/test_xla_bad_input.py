"""Mistakes that only XLA knows: one line with value, rule and remedy, exit code 2, nothing written."""

import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Environment = Callable[..., dict[str, str]]


@pytest.fixture
def recipe(few_digits: Path, tmp_path: Path) -> Path:
    tree = {
        "data": {"train": str(few_digits), "image_size": 16, "num_workers": 0},
        "model": {"name": "small_cnn"},
        "optim": {"lr": 1e-3},
        "run": {"epochs": 1, "batch_size": 12, "report_every": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


def start(environment: dict[str, str], *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "launch_xla.py"), *map(str, words)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False, timeout=550
    )


def one_line(done: "subprocess.CompletedProcess[str]", output: Path) -> str:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert not output.exists()
    return done.stderr


@pytest.mark.parametrize(("there", "asked"), [(2, 4), (2, 1)])
def test_other_devices_than_there_are(
    there: int, asked: int, recipe: Path, tmp_path: Path, process_environment: Environment
) -> None:
    """CPU_NUM_DEVICES stands for the chips of a machine."""
    environment, output = process_environment(CPU_NUM_DEVICES=str(there)), tmp_path / "run"
    done = start(environment, "--num-devices", asked, "train", recipe, "--output", output)
    says = f"{asked} XLA devices were asked for and {there} found; use --num-devices {there}"
    assert says in one_line(done, output)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "run.batch_size 12 is not divisible by 5 replicas; try 10 or 15"),
        (
            ["run.batch_size=10", "model.norm_stats=ghost:4"],
            "norm_stats 'ghost:4': 2 images per process do not split into groups of 4; try a batch of 4",
        ),
    ],
)
def test_a_batch_that_five_devices_cannot_share(
    words: list[str], says: str, recipe: Path, tmp_path: Path, process_environment: Environment
) -> None:
    done = start(
        process_environment(), "--num-devices", 5, "train", recipe, *words, "--output", tmp_path / "run"
    )
    assert says in one_line(done, tmp_path / "run")


def test_torch_and_torch_xla_of_different_releases(
    recipe: Path, tmp_path: Path, process_environment: Environment
) -> None:
    """Another torch_xla's metadata, found first: what an upgrade of one of the two leaves behind."""
    (tmp_path / "site/torch_xla-2.8.1.dist-info").mkdir(parents=True)
    (tmp_path / "site/torch_xla-2.8.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch_xla\nVersion: 2.8.1\n"
    )
    environment = process_environment(PYTHONPATH=str(tmp_path / "site"))
    done = start(environment, "train", recipe, "--output", tmp_path / "run")
    line = one_line(done, tmp_path / "run")
    assert "and torch_xla 2.8.1 do not fit together; install both of the same release" in line


@pytest.mark.skipif(util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_no_tpu_where_one_is_asked_for(
    recipe: Path, tmp_path: Path, process_environment: Environment
) -> None:
    done = start(process_environment(PJRT_DEVICE="TPU"), "train", recipe, "--output", tmp_path / "run")
    line = one_line(done, tmp_path / "run")
    assert "PJRT_DEVICE=TPU: libtpu is not installed; on a TPU VM run `pip install" in line


@pytest.mark.slow
def test_a_model_with_an_operation_that_runs_on_the_host_is_told_of(
    recipe: Path, tmp_path: Path, process_environment: Environment
) -> None:
    """Position embeddings that are resampled in every forward pass: right, and slow, so the run goes on."""
    tree = yaml.safe_load(recipe.read_text())
    args = {"dynamic_img_size": True, "depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    tree["model"] = {"name": "vit_tiny_patch16_224", "args": args}
    tree["data"] |= {"sizes": [[0, 16], [1, 32]], "image_size": 32}
    tree["run"]["epochs"] = 2
    recipe.write_text(yaml.safe_dump(tree))
    environment = process_environment(XLA_FLAGS="--xla_backend_optimization_level=0")
    done = start(environment, "train", recipe, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "runs on the host" in line]
    assert len(told) == 1, done.stderr
    assert "aten::" in told[0]
    assert ".py" in told[0], "with the line of the source"
