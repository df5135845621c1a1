"""What every backend must do. Run as a program: `python conformance_cases.py BACKEND WORLD DEVICES OUT_FOLDER`.

Each `case_*` gets an open float32 environment and a folder, and asserts. A new backend is done when all of them pass.
The results of a process go to OUT_FOLDER/rank-R.json: the name of each case and "ok" or the traceback.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from bits.checkpoint import latest_checkpoint, save_checkpoint
from bits.ema import Ema
from bits.environment import Environment, Step, open_environment
from bits.meters import Meters
from bits.state import TrainState
from engine.clipping import clip_adaptively, clip_by_norm
from engine.guard import Guard
from engine.optim import SGD, AdamW
from models.norm import set_norm_stats
from robust.noise import noise

GLOBAL_BATCH = 8


def share(env: Environment, tensor: Tensor) -> Tensor:
    """This process's contiguous part of a global batch."""
    count = tensor.shape[0] // env.world_size
    return tensor[env.rank * count : (env.rank + 1) * count]


def fed(env: Environment, tensor: Tensor, *, split: bool = True) -> Tensor:
    return env.feed({"x": share(env, tensor) if split else tensor}, split=split)["x"]


def host(env: Environment, tensor: Tensor) -> Tensor:
    env.cut()
    return tensor.detach().cpu()


def images(seed: int = 0) -> Tensor:
    return torch.rand(GLOBAL_BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def tiny(env: Environment, norm_stats: str | None = None) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    if norm_stats is None:
        model[1] = nn.Identity()
    else:
        set_norm_stats(
            model,
            norm_stats,
            num_devices=env.num_devices,
            reduce=env.sum_over_processes,
            world_size=env.world_size,
            native=env.native_batch_norm,
        )
    return env.place(model)


def case_world(env: Environment, folder: Path) -> None:
    world, devices = int(sys.argv[2]), int(sys.argv[3])
    assert (env.world_size, env.num_devices) == (world, devices)
    ranks = host(env, env.gather(env.feed({"r": torch.tensor([env.rank])}, split=False)["r"]))
    assert ranks.tolist() == list(range(world))


def case_reduce_and_agree(env: Environment, folder: Path) -> None:
    mine = env.feed({"x": torch.tensor([1.0 + env.rank, 2.0])}, split=False)["x"]
    total = host(env, env.reduce(mine))
    world = env.world_size
    assert total.tolist() == [world * (world + 1) / 2, 2.0 * world]
    assert host(env, mine).tolist() == [1.0 + env.rank, 2.0], "reduce must not change its input"
    assert env.agree(10 + env.rank) == 10 + world - 1


def case_gather_keeps_rank_order(env: Environment, folder: Path) -> None:
    whole = torch.arange(GLOBAL_BATCH * 2.0).reshape(GLOBAL_BATCH, 2)
    assert torch.equal(host(env, env.gather(fed(env, whole))), whole)


def case_feed_refuses_what_does_not_divide(env: Environment, folder: Path) -> None:
    if env.num_devices == 1:
        return
    try:
        env.feed({"x": torch.zeros(env.num_devices + 1, 2)})
    except ValueError as error:
        assert "not divisible" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("a batch that does not divide over the devices was taken")


def case_feed_keeps_dtypes(env: Environment, folder: Path) -> None:
    tensors = {
        "u": torch.full((GLOBAL_BATCH, 2), 250, dtype=torch.uint8),
        "i": torch.full((GLOBAL_BATCH,), 2**40 + 1, dtype=torch.int64),
        "b": torch.arange(GLOBAL_BATCH) % 2 == 0,
    }
    back = {k: host(env, v) for k, v in env.feed(tensors).items()}
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def case_pinned_memory_is_fed_like_any(env: Environment, folder: Path) -> None:
    """The loader's way: memory that is pinned once, and written again when its tensors are gone."""
    memory = torch.zeros(4, GLOBAL_BATCH, 3, dtype=torch.uint8)
    unpin = env.pin(memory)
    found = []
    for number in range(12):
        slot = memory[number % 4].fill_(number)
        found.append(env.feed({"image": slot})["image"].clone())
        if number % 4 == 3:  # on a device, copies that are under way
            env.cut()
            env.later({"image": found[-1]}, lambda host: None)
            env.flush()
    assert [int(host(env, image).float().mean()) for image in found] == list(range(12))
    unpin()


def case_autocast_is_really_bf16(env: Environment, folder: Path) -> None:
    half = open_environment(sys.argv[1], precision="bf16", num_devices=env.num_devices)
    a = torch.randn(GLOBAL_BATCH, 64, generator=torch.Generator().manual_seed(0))
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    with half.autocast():
        low = fed(env, a) @ fed(env, w, split=False)
    with env.autocast():
        full = fed(env, a) @ fed(env, w, split=False)
    assert low.dtype == torch.bfloat16, low.dtype
    assert full.dtype == torch.float32, full.dtype
    exact = (share(env, a).double() @ w.double()).float()
    low_error = (host(env, low).float() - exact).abs().max().item()
    full_error = (host(env, full) - exact).abs().max().item()
    # Not only the dtype: the products themselves were rounded to 8 bits, and float32 was not.
    assert 1e-3 < low_error < 1.0, low_error
    assert full_error < 1e-4, full_error


def case_noise_is_bit_equal(env: Environment, folder: Path) -> None:
    seed = torch.tensor([0, 1, -1, 2**62 - 1, 123456789012345, 7, 8, 2**40], dtype=torch.int64)
    expected = share(env, noise(seed, (3, 5, 5)))
    assert torch.equal(host(env, noise(fed(env, seed), (3, 5, 5))), expected)


def case_uneven_end_counts_with_the_mask(env: Environment, folder: Path) -> None:
    meters = Meters(["hit"], env.device)
    values = torch.arange(GLOBAL_BATCH, dtype=torch.float32)
    for num_real in (GLOBAL_BATCH, 3):
        mask = torch.arange(GLOBAL_BATCH) < num_real
        padded = torch.where(mask, values, torch.nan)
        meters.add_({"hit": fed(env, padded)}, fed(env, mask))
    totals = host(env, env.reduce(meters.snapshot()))
    assert totals.tolist() == [[28.0 + 3.0], [GLOBAL_BATCH + 3.0]]
    assert meters.means(totals) == {"hit": 31.0 / 11.0}


def one_step(
    env: Environment, model: nn.Module, forward: nn.Module, optimizer: SGD | AdamW, seed: int
) -> None:
    lr = env.feed({"k": torch.tensor([0.1, 0.0])}, split=False)["k"][0]
    optimizer.set_lr(lr)
    loss = forward(fed(env, images(seed))).square().mean()
    env.backward(loss)
    env.apply(optimizer, model, clip=None)
    env.cut()


def reference_grads(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(batch).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def copy_on_cpu(env: Environment, model: nn.Module) -> nn.Module:
    twin = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    twin.load_state_dict({k: host(env, v) for k, v in model.state_dict().items()})
    return twin


def case_gradient_is_the_mean_over_the_global_batch(env: Environment, folder: Path) -> None:
    model = tiny(env)
    expected = reference_grads(copy_on_cpu(env, model), images())
    env.backward(env.wrap(model)(fed(env, images())).square().mean())
    for name, parameter in model.named_parameters():
        assert torch.allclose(host(env, parameter.grad), expected[name], rtol=1e-5, atol=1e-7), name


def case_wrap_leaves_the_plain_module_alone(env: Environment, folder: Path) -> None:
    """test_conformance.py sets ACCELERATE_MIXED_PRECISION=bf16: verdicts would be bf16 in the name of float32."""
    model = tiny(env)
    image = fed(env, images())
    before = host(env, model(image))
    env.wrap(model)
    after = host(env, model(image))
    assert after.dtype == torch.float32 and torch.equal(before, after), (after - before).abs().max()


def case_constant_buffers_stay(env: Environment, folder: Path) -> None:
    model = tiny(env)
    model.register_buffer("mean", torch.tensor([0.485, 0.1, 0.3]).to(env.device))
    optimizer = SGD(model.parameters(), momentum=0.0, nesterov=False, weight_decay=0.0)
    one_step(env, model, env.wrap(model), optimizer, seed=0)
    assert torch.equal(host(env, model.mean), torch.tensor([0.485, 0.1, 0.3]))


def case_accumulation_equals_one_batch(env: Environment, folder: Path) -> None:
    model = tiny(env)
    twin = copy_on_cpu(env, model)
    first, second = reference_grads(twin, images(0)), reference_grads(twin, images(1))
    forward = env.wrap(model)
    with env.accumulating(forward):
        env.backward(forward(fed(env, images(0))).square().mean() / 2)
    env.cut()
    env.backward(forward(fed(env, images(1))).square().mean() / 2)
    for name, parameter in model.named_parameters():
        mean = (first[name] + second[name]) / 2
        assert torch.allclose(host(env, parameter.grad), mean, rtol=1e-5, atol=1e-7), name


def case_inner_micro_steps_reduce_nothing(env: Environment, folder: Path) -> None:
    """The mean of means is the mean, so that only the gradients between the micro-steps tell."""
    if env.world_size == 1:
        return
    model = tiny(env)
    twin, own = copy_on_cpu(env, model), share(env, images(0))
    forward = env.wrap(model)
    with env.accumulating(forward):
        env.backward(forward(fed(env, images(0))).square().mean())
    expected = reference_grads(twin, own)
    for name, parameter in model.named_parameters():
        assert torch.allclose(host(env, parameter.grad), expected[name], rtol=1e-5, atol=1e-7), name
    weight = host(env, env.gather(model[0].weight.grad.reshape(1, -1)))
    assert not torch.allclose(weight[0], weight[1], rtol=1e-2), "the ranks hold the same gradient already"


def case_clip_by_units(env: Environment, folder: Path) -> None:
    from timm.utils.agc import adaptive_clip_grad

    model = tiny(env)
    twin = copy_on_cpu(env, model)
    reference_grads(twin, images())
    head = model[4]
    model.get_classifier = lambda: head  # type: ignore[assignment]
    free = {n: p.grad.clone() for n, p in twin.named_parameters()}
    adaptive_clip_grad([p for n, p in twin.named_parameters() if not n.startswith("4.")], clip_factor=0.01)
    optimizer = SGD(model.parameters(), momentum=0.0, nesterov=False, weight_decay=0.0)
    optimizer.set_lr(env.feed({"k": torch.tensor([1.0, 0.0])}, split=False)["k"][0])
    before = {n: host(env, p).clone() for n, p in model.named_parameters()}
    env.backward(env.wrap(model)(fed(env, images())).square().mean())
    env.apply(optimizer, model, clip=lambda module: clip_adaptively(module, 0.01))
    for name, parameter in model.named_parameters():
        wanted = dict(twin.named_parameters())[name].grad
        assert torch.allclose(before[name] - host(env, parameter), wanted, rtol=1e-3, atol=1e-6), name
        assert torch.equal(wanted, free[name]) == name.startswith("4."), f"{name}: clipped or not"


def case_clip_is_by_global_norm(env: Environment, folder: Path) -> None:
    model = tiny(env)
    twin = copy_on_cpu(env, model)
    grads = reference_grads(twin, images())
    norm = torch.stack([g.norm() for g in grads.values()]).norm()
    limit = float(norm) / 3
    optimizer = SGD(model.parameters(), momentum=0.0, nesterov=False, weight_decay=0.0)
    optimizer.set_lr(env.feed({"k": torch.tensor([1.0, 0.0])}, split=False)["k"][0])
    before = {n: host(env, p).clone() for n, p in model.named_parameters()}
    env.backward(env.wrap(model)(fed(env, images())).square().mean())
    env.apply(optimizer, model, clip=lambda module: clip_by_norm(module, limit))
    for name, parameter in model.named_parameters():
        moved = before[name] - host(env, parameter)
        assert torch.allclose(moved, grads[name] / 3, rtol=1e-4, atol=1e-6), name
        assert parameter.grad is None, "apply clears the gradients"


def expected_statistics(batch: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Running mean and variance after one update, group by group in float64, then averaged over groups."""
    means, variances = [], []
    for part in batch.double().split(group):
        means.append(part.mean(dim=(0, 2, 3)))
        variances.append(part.var(dim=(0, 2, 3), unbiased=True))
    mean, variance = torch.stack(means).mean(0), torch.stack(variances).mean(0)
    return 0.1 * mean, 0.9 + 0.1 * variance


def case_norm_statistics(env: Environment, folder: Path) -> None:
    replicas = env.world_size * env.num_devices
    groups = {"local": GLOBAL_BATCH // replicas, "global": GLOBAL_BATCH, "ghost:2": 2}
    for norm_stats, group in groups.items():
        model = tiny(env, norm_stats)
        convolved = nn.functional.conv2d(images(), host(env, model[0].weight))
        optimizer = SGD(model.parameters(), momentum=0.0, nesterov=False, weight_decay=0.0)
        one_step(env, model, env.wrap(model), optimizer, seed=0)
        mean, variance = expected_statistics(convolved, group)
        for name, wanted in (("running_mean", mean), ("running_var", variance)):
            found = host(env, getattr(model[1], name)).double()
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6), (
                f"{norm_stats} {name}: {found} {wanted}"
            )


def case_save_and_load(env: Environment, folder: Path) -> None:
    def fresh() -> TrainState:
        model = tiny(env, "ghost:2")
        optimizer = AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
        return TrainState(model=model, optimizer=optimizer, ema=Ema(model, 0.9))

    def go(state: TrainState, steps: range) -> None:
        forward = env.wrap(state.model)
        for seed in steps:
            one_step(env, state.model, forward, state.optimizer, seed)
            state.ema.update_(state.model)
            env.cut()

    straight = fresh()
    go(straight, range(5))
    broken = fresh()
    go(broken, range(3))
    broken.step, broken.epoch, broken.consumed = 3, 1, 24
    if env.rank == 0:
        save_checkpoint(folder / "checkpoints", 3, broken.state_dict(), facts={})
    env.barrier()
    found = latest_checkpoint(folder / "checkpoints")
    assert found is not None
    resumed = fresh()
    resumed.load_state_dict(found[1])
    assert (resumed.step, resumed.epoch, resumed.consumed) == (3, 1, 24)
    go(resumed, range(3, 5))
    a, b = straight.state_dict(), resumed.state_dict()
    for part in ("model", "ema"):
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), (
                f"{part} {name}: {(tensor - b[part][name]).abs().max()}"
            )


def case_update_that_is_not_finite_leaves_no_trace(env: Environment, folder: Path) -> None:
    """Batches 1 and 3 are NaN on one process or device only; the run must be that of 0 and 2, on all of them."""
    for make in (
        lambda model: AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
        lambda model: SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=0.1),
    ):
        ends = []
        for batches in ((0, 1, 2, 3), (0, 2)):
            model = tiny(env, "ghost:2")
            optimizer, forward = make(model), env.wrap(model)
            guard = Guard(model, limit=5, device=env.device)
            for number in batches:
                batch = images(number)
                if number % 2:
                    batch[-1] = torch.nan
                knobs = env.feed(
                    {"lr": torch.tensor([0.1, 0.0]), "step": torch.tensor([number, 0])}, split=False
                )
                optimizer.set_lr(knobs["lr"][0])
                guard.before()
                env.backward(forward(fed(env, batch)).square().mean())
                optimizer.ok = guard.judge(knobs["step"][0])
                env.apply(optimizer, model, clip=None)
                optimizer.ok = None
                env.cut()
            ends.append({n: host(env, t) for n, t in model.state_dict().items() if "num_batches" not in n})
            if len(batches) == 4:
                assert host(env, guard.counts).tolist() == [1, 3, 2], guard.counts
        for name, tensor in ends[1].items():
            assert torch.equal(ends[0][name], tensor), f"{name}: {(ends[0][name] - tensor).abs().max()}"


def case_ema_arithmetic(env: Environment, folder: Path) -> None:
    model = env.place(nn.Linear(3, 2))
    ema = Ema(model, 0.75)
    expected = host(env, model.weight).double()
    for number in range(6):
        with torch.no_grad():
            model.weight.mul_(0.5).add_(float(number))
        ema.update_(model)
        env.cut()
        live = host(env, model.weight).double()
        expected = 0.75 * expected + 0.25 * live
        assert torch.allclose(host(env, ema.module.weight).double(), expected, rtol=1e-6), number
    # The weight as a number of the step: 1 copies the live weights, and a value is no graph of its own.
    expected = None
    for number, share_of_new in enumerate((1.0, 0.5, 0.25)):
        with torch.no_grad():
            model.weight.mul_(0.5).add_(float(number))
        ema.update_(model, env.feed({"k": torch.tensor([share_of_new, 1.0])}, split=False)["k"][0])
        env.cut()
        live = host(env, model.weight).double()
        expected = live if expected is None else expected + share_of_new * (live - expected)
        assert torch.allclose(host(env, ema.module.weight).double(), expected, rtol=1e-6), number
    wanted = host(env, model.weight)
    ema.update_(model)
    env.cut()
    assert torch.equal(host(env, model.weight), wanted), "the average must never write to the live weights"


def case_later(env: Environment, folder: Path) -> None:
    seen: list[float] = []
    value = env.feed({"x": torch.tensor([1.0])}, split=False)["x"]
    for _ in range(4):
        env.later({"x": value}, lambda tensors: seen.append(tensors["x"].item()))
        value.add_(1.0)  # must not reach the copy
        env.cut()
    env.flush()
    assert seen == [1.0, 2.0, 3.0, 4.0], seen

    def fail(tensors: dict[str, Tensor]) -> None:
        raise OSError("disk full")

    try:
        env.later({"x": value}, fail)
        env.later({"x": value}, lambda tensors: None)
        env.flush()
    except OSError as error:
        assert str(error) == "disk full"
    else:
        raise AssertionError("the exception did not surface")
    env.flush()


def case_no_host_read_and_no_compile_in_steps(env: Environment, folder: Path) -> None:
    model = tiny(env, "ghost:2")
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    meters = Meters(["loss"], env.device)
    forward = env.wrap(model)
    env.cut()
    mask = torch.ones(GLOBAL_BATCH, dtype=torch.bool)
    ema, head = Ema(model, 0.9), model[4]
    model.get_classifier = lambda: head  # type: ignore[assignment]

    def clip(module: nn.Module) -> None:
        clip_adaptively(module, 0.01)
        clip_by_norm(module, 1.0)

    guard = Guard(model, limit=5, device=env.device)

    for number in range(8):
        env.seed(number)
        guard.before()
        knobs = env.feed(
            {"k": torch.tensor([[0.0, 1.0, 0.5, 0.1][number % 4], 1.0, 1.0 / (1 + number)])}, split=False
        )["k"]
        optimizer.set_lr(knobs[0])
        losses = forward(fed(env, images(number))).square().mean(dim=1)
        env.backward(losses.mean())
        meters.add_({"loss": losses.detach()}, fed(env, mask))
        optimizer.ok = guard.judge(knobs[1].to(torch.int64))
        env.apply(optimizer, model, clip=clip)
        optimizer.ok = None
        ema.update_(model, knobs[2])
        env.cut()
        if number == 1:
            before = env.counters()
    after = env.counters()
    for name in ("compiles", "host_reads", "fallbacks"):
        assert after[name] == before[name], f"{name}: {before[name]} -> {after[name]}"


class Walk(NamedTuple):
    point: Tensor
    start: Tensor
    length: Tensor


def case_repeated_step_is_the_step(env: Environment, folder: Path) -> None:
    """To the bit, from a second state as well, divided over the devices or not; and called few times on XLA."""
    model = tiny(env)
    calls: list[int] = []

    def step(walk: Walk) -> Walk:
        calls.append(1)
        with torch.no_grad():
            moved = model(walk.point).sum(dim=1).tanh()
        point = walk.point + moved[:, None, None, None] * walk.start
        return walk._replace(point=point, length=walk.length + moved.abs())

    def walked(function: Step, start: Walk, steps: int) -> list[Tensor]:
        for _ in range(steps):
            start = function(start)
            env.cut()
        return [host(env, part) for part in start]

    for split in (True, False):
        repeated = env.repeated(step)
        for seed in (1, 2):
            image = fed(env, images(seed), split=split)
            start = Walk(image, image, fed(env, torch.zeros(GLOBAL_BATCH), split=split))
            env.cut()
            wanted = walked(step, start, 8)
            calls.clear()
            assert all(torch.equal(*pair) for pair in zip(wanted, walked(repeated, start, 8), strict=True))
            assert env.backend != "xla" or len(calls) <= 6, "traced at every call"


def case_watched_steps_that_are_alike_are_not_spoken_of(env: Environment, folder: Path) -> None:
    said: list[str] = []
    watch = env.watch(calls=2, warn=said.append)
    ends = []
    for number in range(8):
        batch = env.feed({"x": torch.full((GLOBAL_BATCH, 2), float(number))})
        with watch.step(batch, at=f"step {number}"):
            ends.append((batch["x"].exp() if number % 2 else batch["x"] * 2.0).sum())
            env.cut()
    assert said == []
    # What was made inside is there outside, and other shapes may follow: the guard is of its loop alone.
    assert host(env, ends[2]).item() == 2 * 2.0 * (2 * GLOBAL_BATCH)
    assert host(env, env.feed({"x": torch.ones(2 * GLOBAL_BATCH)})["x"].sum()).item() == 2 * GLOBAL_BATCH


def case_peak_memory(env: Environment, folder: Path) -> None:
    before, of = env.peak_memory()
    held = env.feed({"x": torch.ones(64 << 20, dtype=torch.uint8)}, split=False)["x"]
    host(env, held[:1])
    assert of in ("host memory", "device memory")
    assert env.peak_memory()[0] >= before > 0


def case_dropout_follows_the_seed(env: Environment, folder: Path) -> None:
    ones = fed(env, torch.ones(GLOBAL_BATCH, 64))
    masks = []
    for value in (5, 5, 6):
        env.seed(value)
        masks.append(host(env, nn.functional.dropout(ones, 0.5)))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    every = host(env, env.gather(masks[0].to(env.device)))
    rows = {tuple(row.tolist()) for row in every}
    assert len(rows) == every.shape[0], "samples of different ranks share a dropout mask"


def case_recompute_changes_no_number(env: Environment, folder: Path) -> None:
    """Dropout included, and what is drawn afterwards, behind a cut too; a backward pass for the input alone touches no
    weight."""
    found: list[list[Tensor]] = []
    for is_recomputed in (False, True):
        torch.manual_seed(0)
        module = env.place(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Tanh()))
        runs: list[int] = []
        module[0].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        image = fed(env, torch.ones(GLOBAL_BATCH, 64)).requires_grad_()
        env.seed(3)
        numbers = []
        for inputs in ([image], None):
            with env.autocast():
                out = env.recompute(module, image) if is_recomputed else module(image)
            later = nn.functional.dropout(image.detach(), 0.5)
            torch.autograd.backward(out.float().square().sum(), inputs=inputs)
            grads = [p.grad for p in module.parameters()]
            assert (inputs is None) == all(grad is not None for grad in grads), (
                "weights have a gradient or not"
            )
            numbers += [host(env, t) for t in (out, later, image.grad, *grads) if t is not None]
        assert len(runs) == 2 * (1 + is_recomputed), runs
        found.append(numbers)
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs), (ours - theirs).abs().max()


def case_another_world_size_is_an_error(env: Environment, folder: Path) -> None:
    """Last by name order in `main`: a refused environment leaves the process group."""
    try:
        if env.backend == "xla":
            open_environment("xla", num_devices=env.num_devices + 1)
        else:
            open_environment(sys.argv[1], world_size=env.world_size + 1)
    except ValueError as error:
        assert "asked for" in str(error) and "\n" not in str(error), error
    else:
        raise AssertionError("a world size other than the one asked for was accepted")


def main() -> None:
    backend, folder = sys.argv[1], Path(sys.argv[4])
    env = open_environment(backend, world_size=int(sys.argv[2]), num_devices=int(sys.argv[3]))
    cases = {name: case for name, case in globals().items() if name.startswith("case_")}
    last = "case_another_world_size_is_an_error"
    results = {}
    for name in [*sorted(set(cases) - {last}), last]:
        try:
            cases[name](env, folder / name)
            results[name] = "ok"
        except BaseException:
            results[name] = traceback.format_exc()
        if name != last:
            env.barrier()
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
