"""Steps of one recipe on one backend, for comparison with another. Run as a program:

    python parity_worker.py MODE[,MODE...] BACKEND WORLD DEVICES RECIPE TRACE OUT [key=value ...]

MODE `record`: trains freely and writes to TRACE the state before each step and what came out of it.
MODE `follow`: at each step starts from the recorded state and compares.
MODE `keep`: as `follow`, and writes the weights after each step to the folder OUT without its suffix.
MODE `free`: trains freely from the recorded start and writes the distance of its weights to the recorded ones.
MODE `permute`: as `free`, with each process's batch in another order; the distance is to this program's `free` run.
OUT gets JSON: for each mode a list with an entry per step. run.precision is the recipe's, so that
run.precision=bf16 can follow a float32 trace.
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from bits.environment import Environment, open_environment
from bits.state import to_cpu
from data.batch import Batch
from data.index import load_index
from data.order import Cursor
from engine.build import batch_layout, build_state
from engine.folder import RunFolder
from engine.free import make_step
from engine.loading import build_train_loader
from engine.log import RunLog
from engine.loop import Loop
from engine.recipe import Recipe, load_recipe
from engine.step import TrainStep, step_settings
from engine.stop import StopRequest


def make_loop(env: Environment, recipe: Recipe) -> Loop:
    index = load_index(recipe.data.train)
    layout = batch_layout(recipe.run.batch_size, env)
    state = build_state(recipe, env, num_classes=len(index.classes), layout=layout)
    folder, log = RunFolder(Path("unused")), RunLog(None)
    return Loop(
        env=env,
        recipe=recipe,
        state=state,
        index=index,
        layout=layout,
        folder=folder,
        log=log,
        stop=StopRequest(),
        evaluate=lambda epoch: None,
    )


def flat_weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().cpu().double().reshape(-1) for p in loop.state.model.parameters()])


def group_of(recipe: Recipe) -> int:
    """K of norm_stats ghost:K; else 8, where any order of pairs has the same statistics or none."""
    kind, _, size = recipe.model.norm_stats.partition(":")
    return int(size) if kind == "ghost" else 8


def permuted(batch: Batch, group: int) -> Batch:
    """Ghost groups, pairs within a group and the two of a pair in another order: the same statistics, partners and
    draws, other orders of summation."""
    generator = torch.Generator().manual_seed(int(batch.key[0]))
    count = batch.image.shape[0]
    order = torch.arange(count).reshape(-1, group // 2, 2)
    order = order[torch.randperm(order.shape[0], generator=generator)]
    order = order[:, torch.randperm(order.shape[1], generator=generator)].flip(2).reshape(-1)
    return Batch(*(tensor[order] for tensor in batch))


def digest(env: Environment, batch: Batch) -> str:
    """Of keys, seeds and draws of the whole global batch, in its order."""
    parts = [env.gather(t.to(env.device)).cpu() for t in (batch.key, batch.seed, batch.draw, batch.label)]
    return hashlib.sha256(b"".join(p.contiguous().numpy().tobytes() for p in parts)).hexdigest()


def run(loop: Loop, step: TrainStep, mode: str, trace: Path, kept: Path) -> list[dict[str, float | str]]:
    env, entries = loop.env, []
    starts_anew = mode in ("follow", "keep")
    loader = build_train_loader(loop.recipe, env, loop.index, layout=loop.layout, start=Cursor(0, 0))
    loop.state.model.train()
    for number, (cursor, batch) in enumerate(loader):
        if number == loop.num_updates:
            break
        if mode == "record":
            torch.save(loop.state.state_dict(), trace / f"step-{number}.pt")
        if starts_anew or (number == 0 and mode != "record"):
            loop.state.load_state_dict(torch.load(trace / f"step-{number}.pt", weights_only=True))
            env.cut()
        before = flat_weights(loop)
        env.seed(loop._dropout_seed(cursor))
        entry: dict[str, float | str] = {"keys": digest(env, batch)}
        if mode == "permute":
            batch = permuted(batch, group=group_of(loop.recipe))
        step(Batch(**env.feed(batch._asdict())), loop._knobs())
        loop.state.step += 1
        loop.state.epoch, loop.state.consumed = cursor.epoch, cursor.consumed
        totals = env.reduce(loop.meters.snapshot())
        loop.meters.reset_()
        env.cut()
        entry["loss"] = loop.meters.means(to_cpu(totals))["loss"]
        after = flat_weights(loop)
        if mode == "record":
            torch.save(after, trace / f"after-{number}.pt")
        else:
            wanted = torch.load(trace / f"after-{number}.pt", weights_only=True)
            entry["distance"] = float((after - wanted).norm() / wanted.norm())
            entry["update_error"] = float((after - wanted).norm() / (wanted - before).norm())
            entry["update"] = float((wanted - before).norm())
        if mode == "keep":
            kept.mkdir(exist_ok=True)
            torch.save(after, kept / f"after-{number}.pt")
        entries.append(entry)
    return entries


def main() -> None:
    modes, backend, world, devices, recipe_path, trace, out, *overrides = sys.argv[1:]
    recipe = load_recipe(recipe_path, overrides)
    env = open_environment(
        backend, precision=recipe.run.precision, world_size=int(world), num_devices=int(devices)
    )
    loop = make_loop(env, recipe)
    step = make_step(
        env=env,
        state=loop.state,
        forward=env.wrap(loop.state.model),
        settings=step_settings(loop.recipe, len(loop.index.classes)),
        meters=loop.meters,
    )
    results, free = {}, flat_weights(loop)
    for mode in modes.split(","):
        results[mode] = run(loop, step, mode, Path(trace), Path(out).with_suffix(""))
        if mode in ("record", "free"):
            free = flat_weights(loop)
        if mode == "permute":
            distance = float((flat_weights(loop) - free).norm() / free.norm())
            results[mode][-1]["distance"] = distance
    if env.rank == 0:
        Path(out).write_text(json.dumps(results))
    env.close()


if __name__ == "__main__":
    main()
