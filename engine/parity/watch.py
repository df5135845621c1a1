"""Looks at one train step from outside: hooks on modules here, stand-ins in engine/parity/stand_in.py.

Three places of a step are given the reference's values, so that an error is seen where it is made and not where it
grew: the state before the step, the image of each forward pass (behind the attack), the gradients before the update.
"""

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bits.environment import Environment
from data.batch import START, Batch
from data.mix import mix
from engine.objective import Inputs, Losses
from engine.parity.mark import HINT_OTHER_ORDER, Kind, Mark, Tag, measure, read
from engine.parity.part import Part, tensors_in
from engine.parity.side import Tamper
from engine.step import StepSettings
from engine.training_attack import ATTACK_STREAM, training_pgd

Given = Mapping[str, Tensor]  # "input PART", "gradient PART NAME": of the reference, on the device


@dataclass(slots=True)
class Watch:
    """Collects marks of one step, on the device; `finish` reads them."""

    model: nn.Module
    settings: StepSettings
    tamper: Tamper
    keeps: bool  # what the sides are given: this is the reference
    given: Given = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    micro: int = 0
    attack_steps: int = 0  # of this micro-batch
    _facts: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)
    _known: dict[int, "weakref.ref[Tensor]"] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _is_update: bool = False  # inside a forward pass of the update
    _is_on: bool = False  # inside one that is looked at layer by layer: of the first micro-batch and replay
    _passes: int = 0
    _updates: int = 0

    def begin(self, given: Given) -> None:
        """A new step."""
        self.given, self.kept = given, {}
        self.micro = self._updates = self._passes = self.attack_steps = 0
        self._facts.clear()
        self._known.clear()
        self._counts.clear()

    def finish(self) -> list[Mark]:
        """Everything seen, on the host, in the order of the step. Host reads: behind the step's cut."""
        return [read(measured.cpu(), **facts) for facts, measured in self._facts]

    def mark(
        self,
        kind: Kind,
        where: str,
        tensor: Tensor,
        *,
        part: str = "",
        beside: Tensor | None = None,
        **facts: Any,
    ) -> None:
        """Notes `tensor`; further facts as Mark's fields."""
        if tensor.numel() == 0:
            return
        name = f"{kind}/{part}/{where}"
        self._counts[name] += 1
        again = f" (call {self._counts[name]})" if self._counts[name] > 1 else ""
        dtype = str(tensor.dtype).removeprefix("torch.")
        known = {"kind": kind, "where": where + again, "part": part, "dtype": dtype, "count": tensor.numel()}
        self._facts.append(({**known, **facts}, measure(tensor, beside)))

    def label(self, name: str = "", number: int = 0) -> str:
        """Of the micro-batch and a thing counted in it; "" where there is one of each."""
        parts = [f"micro-batch {self.micro}"] if self.micro > 1 else []
        return ", ".join([*parts, *([f"{name} {number}"] if number > 1 else [])])

    # ---- modules

    def attach(self) -> None:
        """Hooks on the model and all its modules, for good."""
        self.model.register_forward_pre_hook(self._before_attack)
        self.model.register_forward_hook(self._after_attack)
        parents = {child: module for module in self.model.modules() for child in module.children()}
        for where, module in self.model.named_modules():
            if not isinstance(module, nn.Identity):
                part = Part(where or "logits", module, parents.get(module))
                module.register_forward_hook(self._hook(part))

    def _hook(self, part: Part) -> Any:
        is_leaf = not any(part.module.children())

        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            found = next((t for t in tensors_in(output)), None)
            if not self._is_on or found is None:
                return
            given = next((t for t in tensors_in(args)), None)
            if is_leaf or isinstance(module, _BatchNorm):
                self._mark_given(part, given)
            # Of a container whose last part has made the same tensor nothing new can be said.
            if is_leaf or part.where == "logits" or not self._is_known(found):
                self._mark_made(part, part.where, found, part.tags)

        return hook

    def _mark_given(self, part: Part, given: Tensor | None) -> None:
        if given is not None and given.is_floating_point() and not self._is_known(given):
            self._mark_made(part, f"input of {part.where}", given, part.tags_between)

    def _mark_made(self, part: Part, where: str, tensor: Tensor, tags: tuple[Tag, ...]) -> None:
        maker = part.maker if "between" not in tags else type(part.parent).__name__
        label = self.label("pass", self._passes)
        self.mark("activation", where, tensor, part=label, maker=maker, tags=tags)
        self._known[id(tensor)] = weakref.ref(tensor)

    def _is_known(self, tensor: Tensor) -> bool:
        kept = self._known.get(id(tensor))
        return kept is not None and kept() is tensor

    # ---- the attack

    def _before_attack(self, module: nn.Module, args: tuple[object, ...]) -> None:
        leaf = next(tensors_in(args), None)
        if (
            leaf is None
            or self._is_update
            or not (torch.is_grad_enabled() and leaf.is_leaf and leaf.requires_grad)
        ):
            return
        where = self.label()
        if not self.attack_steps:
            look = lambda gradient: self.mark("attack gradient", "image", gradient, part=where)  # noqa: E731
            leaf.register_hook(look)  # type: ignore[no-untyped-call]

    def _after_attack(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        found = next(tensors_in(output), None)
        if self._is_update or found is None or not torch.is_grad_enabled():
            return
        if not self.attack_steps:
            self.mark("attack logits", "logits", found, part=self.label())
        self.attack_steps += 1

    # ---- what stands in for parts of the step

    def inputs(self, env: Environment, inputs: Inputs) -> None:
        """Images and targets as the objective gets them, and where its attack will start."""
        batch, label = inputs.batch, self.label()
        self.mark("image", "image", inputs.image, part=label)
        self._known[id(inputs.image)] = weakref.ref(inputs.image)
        self.mark("target", "target", inputs.target, part=label)
        other = _in_other_order(self.settings, batch) if self.keeps else None
        if other is not None:
            self.mark("hint", HINT_OTHER_ORDER, other, part=label)
        attack = self.settings.objective.attack
        if attack is None or self.settings.objective.kind == "free":
            return
        state = training_pgd(env, attack, inputs.knobs).init(
            inputs.image,
            inputs.target,
            eps=inputs.knobs["eps"],
            seed=batch.seed ^ ATTACK_STREAM,
            start_u=batch.draw[:, START],
        )
        self.mark("attack start", "image", state.image, part=label)

    def losses(self, losses: Losses) -> None:
        self.mark("loss", "loss", losses.loss, part=self.label("replay", self._updates + 1))

    def forward(self, inner: nn.Module, image: Tensor) -> Any:
        """A forward pass of the update: of the reference's image, where there is one."""
        self._passes += 1
        label = self.label("pass", self._passes)
        if not self._is_known(image):
            self.mark("attacked", "image", image, part=label)
        if self.keeps:
            self.kept[f"input {label}"] = image.detach().clone()
        if (wanted := self.given.get(f"input {label}")) is not None:
            image = _straight_through(image, wanted)
        self._is_update, self._is_on = True, self.micro == 1 and self._updates == 0
        try:
            return inner(image)
        finally:
            self._is_update = self._is_on = False

    def gradients_(self, module: nn.Module) -> None:
        """Those of the update, before anything is done to them; then they are the reference's."""
        self.tamper.gradients_(module)
        self._updates += 1
        label = f"replay {self._updates}" if self._updates > 1 else ""
        # From the loss backwards: the first one that differs is then the nearest to where it began to.
        for name, parameter in reversed(list(module.named_parameters())):
            if parameter.grad is None:
                continue
            self.mark("gradient", name, parameter.grad, part=label)
            if self.keeps:
                self.kept[f"gradient {label} {name}"] = parameter.grad.detach().clone()
            if (wanted := self.given.get(f"gradient {label} {name}")) is not None:
                parameter.grad = wanted

    def clipped(self, module: nn.Module) -> None:
        """The gradients that the optimizer gets."""
        label = f"replay {self._updates}" if self._updates > 1 else ""
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                self.mark("clipped", name, parameter.grad, part=label)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, wanted: Tensor) -> Tensor:
        return wanted.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _straight_through(image: Tensor, wanted: Tensor) -> Tensor:
    """`wanted`, whose gradient goes to `image`."""
    result: Tensor = _StraightThrough.apply(image, wanted)  # type: ignore[no-untyped-call]
    return result


def _in_other_order(settings: StepSettings, batch: Batch) -> Tensor | None:
    """The image of `batch` with mixing and erasing in the other order; None where only one of them is on."""
    augment = settings.augment
    if augment.erase is None or not settings.objective.mixing:
        return None
    other = replace(augment, erase_after_mix=not augment.erase_after_mix)
    image = other.before_mix(batch.image, batch.draw, batch.seed)
    num_classes = settings.objective.num_classes
    image, _ = mix(image, batch.label, batch.draw, num_classes=num_classes, smoothing=settings.smoothing)
    return other.after_mix(image, batch.draw, batch.seed)
