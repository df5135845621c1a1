"""Whether and from where a training goes on: the run folder, its recipe, and checkpoints of another run."""

from pathlib import Path

from bits.checkpoint import list_checkpoints
from engine.folder import RunFolder
from engine.log import read_log
from engine.recipe import Recipe, resume_diff


def check_resume(folder: RunFolder, recipe: Recipe, resume: str) -> Path | None:
    """The checkpoints to go on from, or None for a fresh start. ValueError before anything is written."""
    if resume not in ("auto", "never"):
        return _foreign_checkpoints(Path(resume), recipe, folder)
    if folder.is_empty():
        return None
    if not folder.recipe.is_file():
        raise ValueError(
            f"output folder {folder.root} is not empty and holds no run; choose another --output"
        )
    if resume == "never":
        raise ValueError(
            f"output folder {folder.root} holds a run and --resume never was given; choose another --output"
        )
    _check_same(folder, recipe)
    return folder.checkpoints if list_checkpoints(folder.checkpoints) else None


def _foreign_checkpoints(path: Path, recipe: Recipe, folder: RunFolder) -> Path:
    root = path.parent.parent if path.suffix == ".pt" else path
    found = path if path.suffix == ".pt" else root / "checkpoints"
    if not found.exists() or not list_checkpoints(root / "checkpoints"):
        raise ValueError(
            f"--resume {path}: no checkpoint there; give auto, never, a run folder or a step-*.pt file in one"
        )
    _check_same(RunFolder(root), recipe)
    if _is_cut_off(folder):
        return found
    if not folder.is_empty() and not folder.root.samefile(root):
        if _started_from(folder, found):
            # The same command once more: the new run has come as far as the one it started from, or further.
            _check_same(folder, recipe)
            return folder.checkpoints
        raise ValueError(
            f"output folder {folder.root} is not empty and --resume {path} is another run; "
            "choose a new --output"
        )
    return found


def _is_cut_off(folder: RunFolder) -> bool:
    """Whether a start from another run was killed before it had written more than that run's state."""
    if not folder.checkpoints.is_dir():
        return False
    names = {path.name for path in folder.root.iterdir() if not path.name.endswith(".part")}
    states = all(path.name.startswith(("step-", ".step-")) for path in folder.checkpoints.iterdir())
    return names == {folder.checkpoints.name} and states


def _started_from(folder: RunFolder, source: Path) -> bool:
    if not folder.recipe.is_file() or not list_checkpoints(folder.checkpoints):
        return False
    if not folder.log.is_file():
        return True  # killed before its first entry; a fresh start has no checkpoint by then
    return any(entry.get("source") == str(source.resolve()) for entry in read_log(folder.log))


def _check_same(folder: RunFolder, recipe: Recipe) -> None:
    changed = resume_diff(folder.read_recipe(), recipe)
    if changed:
        raise ValueError(
            f"{folder.root} was made with another recipe: {', '.join(changed)} differ; resuming would mix "
            "two runs, choose another --output or restore the fields"
        )
