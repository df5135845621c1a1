"""The run folder: what lies where, who may write into it, and what it says about where the run was made."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bits.checkpoint import write_atomic
from bits.environment import Environment
from engine.installed import version
from engine.machine import git_commit
from engine.recipe import Recipe, load_recipe

PACKAGES = ("torch", "torchvision", "torch_xla", "timm", "accelerate", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    @property
    def gallery(self) -> Path:
        return self.root / "gallery"

    def is_empty(self) -> bool:
        """Whether nothing is there but what a killed write may have left."""
        return not self.root.exists() or all(path.name.endswith(".part") for path in self.root.iterdir())

    def read_recipe(self) -> Recipe:
        """The resolved recipe of the run. ValueError when this is no run folder."""
        if not self.recipe.is_file():
            raise ValueError(
                f"{self.root} is no run folder (no recipe.yaml in it); give the folder that train wrote"
            )
        return load_recipe(self.recipe, [])

    def check_writable(self) -> None:
        """ValueError when the folder could not be made or nothing be written in it; changes nothing."""
        place = self.root
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"output folder {self.root}: {place} is a file; choose another --output")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ValueError(f"output folder {self.root}: {place} is not writable; choose another --output")

    def create(self) -> None:
        """Makes the folder; one clear line when it cannot be written."""
        self.check_writable()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"output folder {self.root}: {error.strerror}; choose another --output"
            ) from None

    def write_exit(self, exit_code: int) -> None:
        """exit.json keeps the true exit code (rank 0): outside launchers turn every failure into 1."""
        write_atomic(self.root / "exit.json", f'{{"exit_code": {exit_code}}}\n'.encode())

    def write_start(self, recipe: Recipe, env: Environment) -> None:
        """Recipe and environment of a start (rank 0); the exit code of an earlier one counts no more."""
        (self.root / "exit.json").unlink(missing_ok=True)
        write_atomic(self.recipe, recipe.resolved_yaml().encode())
        write_atomic(self.environment, json.dumps(describe_environment(env), indent=1).encode())


def describe_environment(env: Environment) -> dict[str, Any]:
    """Versions, git commit, devices and command: what somebody needs to repeat the run."""
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "backend": env.backend,
        "device": _device_name(env),
        "world_size": env.world_size,
        "num_devices": env.num_devices,
        "precision": env.precision,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "command": sys.argv,
    }


def _device_name(env: Environment) -> str:
    return torch.cuda.get_device_name(env.device) if env.backend == "cuda" else str(env.device)
