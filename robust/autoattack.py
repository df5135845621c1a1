"""AutoAttack on anybody's model: `autoattack(predict, image, label, eps=...)`, no engine needed.

`attack` runs any other list of components the same way (robust/api.py).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust import remarks
from robust.block import BlockAttack
from robust.bounds import Row, audit_of
from robust.checks import check_image, check_labels, check_norm, checked_eps, checked_logits
from robust.diagnosis import diagnose
from robust.gradient import Predict
from robust.lanes import Norm
from robust.low_precision import Autocast, low_precision
from robust.pgd import no_cut
from robust.precision import exact_float32
from robust.result import AttackResult
from robust.stage import Device
from robust.threat import NORMS, distance, slack, widest
from robust.verdicts import judge
from robust.versions import Version, version_of

PROBE = 64  # images that the model is looked at with


def autoattack(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    version: str = "standard",
    seed: int = 0,
    keys: Sequence[int] | None = None,
    lanes: int = 64,
    block: int = 512,
    chunk: int = 10,
    device: torch.device | str | None = None,
    cut: Callable[[], None] = no_cut,
    autocast: Autocast = nullcontext,
) -> AttackResult:
    """The worst that the components of `version` find inside the eps-ball around each image.

    `predict` maps float images (N,3,H,W) in [0,1] to logits (N,K), in eval mode; `image` may lie on the host
    however many there are: `block` images at a time go to `device` (default: where they are), `lanes` of them are in
    the model at once. Searches and verdicts are float32. A robust image stays right through all components, and is
    what the result's `robust` counts; an image that is wrong from the start is not attacked (`broken_by` "clean").

    `keys` (default: positions) name the images' random streams: equal seeds, keys and lanes give equal bits, in any
    order and company. `notes` of the result say what makes the number less than it seems. `cut` ends a lazy graph.
    `autocast`, for version fast, makes the context of its searches: `lambda: torch.autocast("cuda", torch.float16)`.

    Raises ValueError, one line, for anything outside the contract. Source: Croce and Hein 2020, arXiv:2003.01690.
    """
    check_norm(norm, NORMS)
    return attack(
        predict,
        image,
        label,
        lambda num_classes: version_of(version, norm=norm, num_classes=num_classes),
        eps=eps,
        norm=norm,
        seed=seed,
        keys=keys,
        lanes=lanes,
        block=block,
        chunk=chunk,
        device=device,
        cut=cut,
        autocast=autocast,
        probes=True,
    )


def attack(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    version: Callable[[int], Version],
    *,
    eps: float,
    norm: Norm,
    seed: int,
    keys: Sequence[int] | None,
    lanes: int,
    block: int,
    chunk: int,
    device: torch.device | str | None,
    cut: Callable[[], None],
    autocast: Autocast = nullcontext,
    probes: bool = False,
) -> AttackResult:
    """`autoattack` with the components that `version` names for a model of so many classes; `probes` asks by short
    attacks whether seeds and steps matter, which is little beside a long one."""
    _check(predict, image, label, lanes=lanes, block=block)
    keys = range(len(image)) if keys is None else keys
    if len(keys) != len(image):
        raise ValueError(f"{len(keys)} keys for {len(image)} images; give one each")
    radius = float(checked_eps(eps, image[:1], widest(norm, image.shape[1:])))
    place = torch.device(device) if device is not None else image.device
    with exact_float32():
        looked = image[:PROBE].to(place, torch.float32), label[:PROBE].to(place)
        with torch.no_grad():
            num_classes = checked_logits(predict(looked[0]), *looked).shape[1]
        check_labels(label, num_classes)
        chosen = version(num_classes)
        search = _search(predict, chosen, autocast)
        found = [
            _attacked(
                BlockAttack(
                    predict=search,
                    verdict=predict,
                    image=image[start : start + block].to(place, torch.float32),
                    label=label[start : start + block].to(place),
                    eps=torch.tensor(radius, device=place),
                    keys=list(keys)[start : start + block],
                    parts=chosen.parts,
                    seed=seed,
                    num_lanes=min(lanes, block),
                    chunk=chunk,
                    device=Device(feed=lambda tensor: tensor.to(place), cut=cut),
                ),
                norm,
            )
            for start in range(0, len(image), block)
        ]
        symptoms = diagnose(predict, *looked).notes
        if probes and norm != "l1":  # no PGD in l1
            symptoms += remarks.of_short_attacks(
                predict, *looked, eps=radius, norm=norm, keys=keys, seed=seed, cut=cut
            )
    rows = [row._replace(image=(number, row.image)) for number, part in enumerate(found) for row in part.rows]
    audit = audit_of(chosen, rows, num_images=len(image))
    notes = (*symptoms, *([] if audit is None else [str(audit)]))
    return _joined(found, image, chosen, notes, limit=radius + slack(norm, radius, image.shape[1:]))


def _search(predict: Predict, version: Version, autocast: Autocast) -> Predict:
    if autocast is nullcontext:
        return predict
    if not version.is_low:
        raise ValueError(f"version {version.id} searches in float32; autocast is for version fast")
    return low_precision(predict, autocast)


class Found(NamedTuple):
    """A block's answers, on the host but for the images, which lie where the user's do."""

    adversarial: Tensor
    broken_by: list[str | None]
    flags: dict[str, Tensor]
    rows: list[Row]


def _attacked(attack: BlockAttack, norm: Norm) -> Found:
    flipped = torch.zeros(len(attack.keys), dtype=torch.bool)
    rows = []
    for outcome in attack.run():
        rows.append(Row(outcome.row, outcome.component, outcome.tries > 0, outcome.broken))
        flipped[outcome.row] |= outcome.claimed and not outcome.broken
    # Once more, in the order of the images and not of the lanes: another batch, and every image beside others.
    every = range(len(attack.keys))
    again = judge(
        attack.verdict,
        attack.adversarial,
        attack.label,
        every,
        batch=max(1, attack.num_lanes // 2),
        device=attack.device,
    )
    broken = torch.tensor([name is not None for name in attack.broken_by])
    uint8 = (attack.adversarial * 255.0).round() / 255.0
    rounded = judge(attack.verdict, uint8, attack.label, every, batch=attack.num_lanes, device=attack.device)
    flags = {
        "clean_correct": ~attack.clean.wrong,
        "margin": again.margin,  # of what is returned
        "flipped": flipped | (broken != again.wrong),
        "wrong_as_uint8": rounded.wrong,
        "distance": distance(attack.adversarial, attack.image, norm).cpu(),
    }
    return Found(attack.adversarial, attack.broken_by, flags, rows)


def _joined(
    found: Sequence[Found], image: Tensor, version: Version, notes: tuple[str, ...], *, limit: float
) -> AttackResult:
    broken_by = tuple(name for part in found for name in part.broken_by)
    flags = {
        name: torch.cat([part.flags[name] for part in found]).to(image.device) for name in found[0].flags
    }
    return AttackResult(
        adversarial=torch.cat([part.adversarial.to(image.device) for part in found]),
        robust=torch.tensor([name is None for name in broken_by], device=image.device),
        broken_by=broken_by,
        flags=flags,
        notes=(*notes, *remarks.of_answers(broken_by, flags, limit=limit)),
        version=version.id,
    )


def _check(predict: Predict, image: Tensor, label: Tensor, *, lanes: int, block: int) -> None:
    if len(image) == 0:
        raise ValueError("no image to attack: the selection is empty")
    check_image(image, label)
    if isinstance(predict, nn.Module) and predict.training:
        raise ValueError(
            "the model is in train mode, where its answers depend on the batch; call model.eval()"
        )
    if lanes < 1 or block < 1:
        raise ValueError(f"{lanes} lanes and blocks of {block} images; both must be 1 or more")
