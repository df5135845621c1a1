"""Two hosts of two devices each, played by one process with four: what each would see. Run as a program:

    CPU_NUM_DEVICES=4 python xla_hosts_worker.py SHARDS OUT

The runtime's own part is real but for one thing: here it lets all four devices be fed by one process, so what the other
host would feed is fed along. OUT gets one JSON object: for each case "ok" or the traceback.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import pytest
import torch
import torch_xla.runtime as runtime
from torch import Tensor, nn

import bits.xla as xla
import bits.xla_mesh as xla_mesh
from bits.environment import open_environment
from bits.meters import Meters
from bits.state import to_cpu
from data.index import load_index
from data.transform import EvalTransform
from engine.eval_fields import AutoAttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.guard import Guard, skips_of
from engine.ledger import read_ledger
from engine.meeting import check_pace
from models.norm import set_norm_stats

OWNERS = [[1, 1], [0, 0], [1, 0], [0, 1]]  # of device 0 to 3: the process, and the place there
ORDER = [1, 3, 2, 0]
HOSTS = 2
real_enter = xla_mesh.enter


class Company:
    """Knows what each host feeds, call by call, and feeds it all for the one whose turn it is."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.others: Iterator[Tensor] = iter(())

    def enter(self, tensor: Tensor, mesh: Any) -> Tensor:
        parts = [tensor, next(self.others)] if self.rank == 0 else [next(self.others), tensor]
        assert parts[0].shape == parts[1].shape
        placed = torch.cat(parts).chunk(len(ORDER))  # of each place in the mesh
        return real_enter(torch.cat([placed[ORDER.index(device)] for device in range(len(ORDER))]), mesh)


class Meeting:
    """Stands for gloo between hosts: the other one says what it is told to."""

    def __init__(self, **known: Any) -> None:
        self.known, self.other = known, 0

    def agree(self, value: int) -> int:
        return max(value, self.other or value)

    def barrier(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def host(rank: int) -> Iterator[tuple[xla.XlaEnvironment, Company]]:
    """The environment of one of the two hosts, as `open_environment` makes it there."""
    company = Company(rank)
    with (
        mock.patch.object(runtime, "process_count", return_value=HOSTS),
        mock.patch.object(runtime, "process_index", return_value=rank),
        mock.patch.object(runtime, "addressable_runtime_device_count", return_value=2),
        mock.patch.object(xla, "Hosts", Meeting),
    ):
        with mock.patch.object(xla_mesh, "enter", return_value=torch.tensor(OWNERS)):
            env = open_environment("xla", world_size=HOSTS, num_devices=2)
        assert isinstance(env, xla.XlaEnvironment)
        with mock.patch.object(xla, "enter", company.enter):
            yield env, company


def case_the_world_is_asserted(shards: Path) -> None:
    with host(1) as (env, _):
        assert (env.rank, env.world_size, env.num_devices, env.parts, env.spread) == (1, 2, 2, 1, 4)
        assert env._mesh.device_ids.tolist() == ORDER
        known = env._hosts.known
        assert known == {"rank": 1, "world_size": 2, "meet": "xla://"}, known
        with (
            mock.patch.object(xla_mesh, "enter", return_value=torch.tensor(OWNERS)),
            pytest.raises(
                ValueError, match=r"1 processes were asked for and 2 found; .* `launch_xla.py --num-hosts"
            ),
        ):
            open_environment("xla", world_size=1, num_devices=2)


def case_owners_travel_through_the_devices(shards: Path) -> None:
    """What the mesh is laid out by: here one process says of its four devices where they stand."""
    mine = torch.tensor([[5, place] for place in range(4)])
    found = real_enter(mine, xla_mesh._row([0, 1, 2, 3]))
    assert found.cpu().tolist() == [[5, 0], [5, 1], [5, 2], [5, 3]]


def case_a_row_stands_where_its_device_does(shards: Path) -> None:
    """Of torch_xla itself: what the layout of the mesh rests on."""
    found = real_enter(torch.arange(8), xla_mesh._row(ORDER)).cpu().tolist()
    assert found == [row for device in ORDER for row in (2 * device, 2 * device + 1)]


def case_the_host_s_memory_is_free_after_feed(shards: Path) -> None:
    with torch.no_grad():
        memory = torch.arange(8)
        entered = real_enter(memory, xla_mesh._row([0, 1, 2, 3]))
        memory.fill_(-1)
        assert entered.cpu().tolist() == list(range(8))


def case_every_host_sees_the_whole_batch_and_knows_its_rows(shards: Path) -> None:
    whole = torch.arange(16.0).reshape(8, 2)
    for rank in range(HOSTS):
        with host(rank) as (env, company):
            mine, other = whole.chunk(2) if rank == 0 else reversed(whole.chunk(2))
            company.others = iter([other])
            fed = env.feed({"x": mine})["x"]
            held: list[Tensor] = []
            env.later({"x": fed * 2.0, "sum": fed.sum()}, lambda seen, held=held: held.extend(seen.values()))
            env.flush()
            assert torch.equal(held[0], whole * 2.0), held[0]
            assert torch.equal(env.own(held[0]), mine * 2.0)
            assert held[1].item() == whole.sum().item()
            assert torch.equal(env.gather(fed).cpu(), whole), "gathered twice"
            assert env.reduce(fed.sum(dim=0)).cpu().tolist() == whole.sum(dim=0).tolist(), "summed twice"


def case_numbers_of_a_step_are_on_every_device(shards: Path) -> None:
    with host(1) as (env, _):
        fed = env.feed({"k": torch.tensor([0.5, 2.0, 3.0])}, split=False)["k"]
        assert fed.cpu().tolist() == [0.5, 2.0, 3.0]


def case_what_does_not_divide_is_refused_by_the_host_that_has_it(shards: Path) -> None:
    with host(0) as (env, _), pytest.raises(ValueError, match="batch of 3 is not divisible by 2 devices"):
        env.feed({"x": torch.zeros(3)})


def case_counts_are_of_all_hosts_once(shards: Path) -> None:
    with host(0) as (env, company):
        meters = Meters(["loss"], env.device)
        values, mask = torch.arange(8.0), torch.arange(8) < 5
        company.others = iter([values[4:], mask[4:]])
        fed = env.feed({"v": values[:4], "m": mask[:4]})
        meters.add_({"loss": fed["v"]}, fed["m"])
        assert env.reduce(meters.snapshot()).cpu().tolist() == [[10.0], [5.0]]
        guard = Guard(nn.Linear(2, 2).to(env.device), limit=3, device=env.device)
        guard.load_(torch.tensor([1, 7, 2], device=env.device))
        assert skips_of(env.reduce(guard.columns()).cpu(), parts=env.parts) == (1, 7, 2)


def case_reports_and_weights_are_read_without_a_program(shards: Path) -> None:
    """A read that puts a divided tensor together is one of all devices: a host that is alone with it would wait."""
    env = open_environment("xla", num_devices=4)
    model = env.place(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        logits = model(env.feed({"x": torch.rand(8, 4)})["x"])
        env.backward(logits.square().mean())
        env.apply(optimizer, model, clip=None)
        env.later({"mean": logits.detach().mean(), "each": logits.detach()}, lambda seen: None)
    env.flush()
    env.cut()
    before = env.counters()["compiles"]
    env.later({"each": env.feed({"x": torch.rand(8, 4)})["x"]}, lambda seen: None)
    made = env.counters()["compiles"]
    env.flush()
    state = to_cpu({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert state["model"]["0.weight"].isfinite().all()
    assert (before, made) == (made - 1, env.counters()["compiles"]), "only the copy itself may be a program"


def case_the_largest_number_wins(shards: Path) -> None:
    with host(0) as (env, _):
        env._hosts.other = 9
        assert env.agree(4) == 9


def case_batchnorm_groups_are_those_of_four_devices(shards: Path) -> None:
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for norm_stats, size in (("local", 2), ("global", 8), ("ghost:1", 1)):
        with host(1) as (env, company):
            model = nn.Sequential(nn.BatchNorm2d(3))
            set_norm_stats(
                model,
                norm_stats,
                num_devices=env.spread,
                reduce=env.sum_over_processes,
                world_size=env.parts,
                native=env.native_batch_norm,
            )
            env.place(model)
            company.others = iter([images[:4]])
            model(env.feed({"x": images[4:]})["x"])
            wanted = torch.stack([part.var(dim=(0, 2, 3)) for part in images.split(size)]).mean(dim=0)
            found = model[0].running_var.cpu()
            assert torch.allclose(found, 0.9 + 0.1 * wanted, rtol=1e-5), (norm_stats, found, wanted)


class Brightness(nn.Module):
    """Ten logits that differ from image to image."""

    def forward(self, image: Tensor) -> Tensor:
        means = image.mean(dim=(1, 2, 3))
        return torch.stack([torch.sin((k + 1) * 40.0 * means) for k in range(10)], dim=1)


def evaluator(env: Any, shards: Path, ledger: Path) -> Evaluator:
    return Evaluator(
        env=env,
        model=Brightness(),
        weights_sha256="0" * 64,
        index=load_index(shards),
        transform=EvalTransform(mode="squash"),
        suite="clean",
        weights="raw",
        image_size=16,
        batch_size=32,
        num_workers=0,
        seed=7,
        ledger=ledger,
        recipe="0" * 16,
    )


def case_each_host_writes_the_verdicts_of_its_own_images(shards: Path) -> None:
    entry = SuiteEval(suite="clean", num_images=75)
    out = shards.parent / "hosts"
    with mock.patch("engine.evaluate.tally", return_value={}):
        alone = evaluator(open_environment("xla", num_devices=4), shards, out / "alone")
        identity = alone.run(entry)["evaluation"]
        wanted = {row.position: row for row in read_ledger(out / "alone").rows(identity)}
        assert len(wanted) == 75
        assert len({row.prediction for row in wanted.values()}) > 2
        found: dict[int, Any] = {}
        for rank in range(HOSTS):
            with host(1 - rank) as (other, _):
                loader = evaluator(other, shards, out / "none")._loader(entry, alone.keys(entry), 0, print)
                fed = [tensor for batch in loader for tensor in batch]
            with host(rank) as (env, company):
                company.others = iter(fed)
                evaluator(env, shards, out / str(rank)).run(entry)
            rows = {row.position: row for row in read_ledger(out / str(rank)).rows(identity)}
            assert 0 < len(rows) < 75
            assert not rows.keys() & found.keys()
            found |= rows
    assert found == wanted


def case_autoattack_is_refused(shards: Path) -> None:
    entry = AutoAttackEval(attack="autoattack", norm="linf", eps=0.1)
    with (
        host(0) as (env, _),
        pytest.raises(ValueError, match=f"^evals: {entry.name} is an AutoAttack.*, or on GPUs$"),
    ):
        check_pace(env, [entry])
    check_pace(open_environment("xla", num_devices=4), [entry])


def case_a_launcher_that_starts_several_is_refused(shards: Path) -> None:
    with (
        mock.patch.dict("os.environ", {"RANK": "0", "WORLD_SIZE": "2"}),
        pytest.raises(ValueError, match=r"^a launcher started 2 processes and XLA counts 1.* of that host$"),
    ):
        open_environment("xla", num_devices=4)


def main() -> None:
    results = {}
    for name, case in [(n, c) for n, c in globals().items() if n.startswith("case_")]:
        try:
            case(Path(sys.argv[1]))
            results[name] = "ok"
        except BaseException:
            results[name] = traceback.format_exc()
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
