"""The bad images of a training, counted over all processes: named once, and too many end the run with exit code 3.

What stands in for a bad image is the loader's business (`data/bad.py`); here is what a run says of it.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from bits.environment import Environment
from data.bad import BadSample, DataLimit
from data.index import DatasetIndex
from engine.log import RunLog

_REASON_BYTES: Final = 256  # of a reason that travels between processes
_NUM_NAMED: Final = 3  # bad images in a line


class BadImages:
    """Those found since the process started, by their position in the data set."""

    def __init__(self, index: DatasetIndex, *, max_share: float) -> None:
        """`max_share`: of the data set's images, how many may be bad."""
        self._index, self._max_share = index, max_share
        self.limit = int(max_share * index.num_samples)
        self._found: dict[int, BadSample] = {}
        self._new: dict[int, BadSample] = {}

    def note(self, bad: Sequence[BadSample]) -> None:
        """What this process's loader has met."""
        for sample in bad:
            if sample.position not in self._found:
                self._new.setdefault(sample.position, sample)

    def report(self, env: Environment, log: RunLog, step: int) -> None:
        """To be called by all processes at the same step. Those that are new on any of them are logged; DataLimit,
        on all of them, when there are too many by now.
        """
        rows = env.agree(len(self._new))
        if rows == 0:
            return
        new = _gathered(env, self._index, list(self._new.values()), rows)
        self._new = {}
        self._found |= {sample.position: sample for sample in new}
        images = [{"shard": s.shard, "key": s.key, "reason": s.reason} for s in new]
        log.write("bad", step=step, num_bad=len(self._found), limit=self.limit, images=images)
        if len(self._found) > self.limit:
            raise DataLimit(self._too_many(new))
        log.say(
            f"{_named(new)}; others stand in for {len(self._found)} so far, {self.limit} may be bad",
            important=True,
        )

    def _too_many(self, new: Sequence[BadSample]) -> str:
        verb = "image is" if len(self._found) == 1 else "images are"
        return (
            f"{_named(new)}; {len(self._found)} {verb} bad and data.max_bad {self._max_share:g} allows {self.limit} "
            f"of {self._index.num_samples}; the state is saved: repair the shards, or raise data.max_bad"
        )


def _named(new: Sequence[BadSample]) -> str:
    """The last of them."""
    more = f" and {len(new) - _NUM_NAMED} more" if len(new) > _NUM_NAMED else ""
    return "; ".join(str(sample) for sample in new[-_NUM_NAMED:]) + more


def _gathered(env: Environment, index: DatasetIndex, new: Sequence[BadSample], rows: int) -> list[BadSample]:
    """The new ones of all processes, by position; `rows` is the largest number that one has."""
    if env.world_size > 1:
        rows = -(-rows // env.num_devices) * env.num_devices
        local = torch.full((rows, 1 + _REASON_BYTES), -1, dtype=torch.int64)
        for row, sample in enumerate(new):
            reason = sample.reason.encode()[:_REASON_BYTES]
            local[row, 0] = sample.position
            local[row, 1 : 1 + len(reason)] = torch.tensor(list(reason), dtype=torch.int64)
        held: list[Tensor] = []
        gathered = env.gather(env.feed({"bad": local})["bad"])
        env.later({"bad": gathered}, lambda host: held.append(host["bad"]))
        env.flush()
        new = [_unpacked(index, row) for row in held[0].tolist() if row[0] >= 0]
    return list({s.position: s for s in sorted(new, key=lambda s: s.position)}.values())


def _unpacked(index: DatasetIndex, row: list[int]) -> BadSample:
    position, reason = row[0], bytes(value for value in row[1:] if value >= 0)
    shard = index.shards[index.locate(position)[0]].name
    text = reason.decode(errors="ignore")
    return BadSample(text, shard=shard, key=index.name(position), position=position)
