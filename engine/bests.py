"""best.pt of a run that may go back: the best checkpoints before it are kept while it could lose its successor.

`checkpoints/best-N.pt` was best.pt, of step N, until a better one came. A way back to a step before that better one
makes it best.pt again; once no way back can lead there, it is deleted.
"""

from pathlib import Path

from bits.checkpoint import BEST, CheckpointError, is_whole, read_meta
from engine.healthy import link_checkpoint, step_of


def shelve_best(folder: Path) -> None:
    """Before best.pt is replaced: a second name for the one there. Nothing happens where it is torn."""
    best = folder / BEST
    if is_whole(best):
        link_checkpoint(best, folder / f"best-{read_meta(best).step:08d}.pt")


def prune_bests(folder: Path, *, earliest: int) -> None:
    """Deletes those that no way back to `earliest` or later can bring up again."""
    shelved = _shelved(folder)
    best = _step(folder / BEST)
    up_to = [path for path in shelved if step_of(path) <= earliest]
    needed = [path for path in shelved if step_of(path) > earliest and step_of(path) != best]
    if up_to and best > earliest:
        needed.append(up_to[-1])
    for path in shelved:
        if path not in needed:
            _delete(path)


def restore_best(folder: Path, step: int) -> str:
    """After going back to `step`: best.pt is that of the steps up to it, or gone. What was done, in words; '' where
    it was not concerned. The same again after a kill in between.
    """
    best, shelved = folder / BEST, _shelved(folder)
    if not best.exists() and not shelved:
        return ""
    told = ""
    if not is_whole(best) or _step(best) > step:
        usable = [path for path in shelved if step_of(path) <= step and is_whole(path)]
        if usable:
            link_checkpoint(usable[-1], best)
            told = f"best.pt is that of step {step_of(usable[-1])} again"
        else:
            _delete(best)
            told = "best.pt was of the way that is left, and is deleted"
    for path in shelved:
        if step_of(path) > step or step_of(path) == _step(best):
            _delete(path)
    return told


def _shelved(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("best-*.pt"))


def _step(path: Path) -> int:
    """-1 where there is none that can be read."""
    try:
        return read_meta(path).step
    except (CheckpointError, OSError):
        return -1


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
