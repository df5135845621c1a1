"""Every architecture, reduced, on the cpu: forward, backward, odd sizes, batch 1, files, one optimizer step."""

import re
from pathlib import Path

import pytest
import torch
from timm.models import list_models, model_entrypoint
from torch import Tensor, nn

from models.load import load_weights
from models.weight_export import to_safetensors
from tests.models.every import EVERY, KIN, NUM_CLASSES, Case, backward, batch, build, distance, label

every = pytest.mark.parametrize("case", EVERY, ids=label)


def test_no_model_of_the_toolkit_is_left_out() -> None:
    own = {name for name in list_models() if model_entrypoint(name).__module__.startswith("models.")}
    tested = {case.name for case in EVERY}
    assert own <= tested | KIN.keys()
    assert set(KIN.values()) <= tested


@every
@pytest.mark.parametrize("where", ["size", "odd"])
def test_forward_and_backward(case: Case, where: str) -> None:
    """In float32 and in bf16, which must be near it; with drop path where the model has it."""
    size = getattr(case, where)
    image, target = batch(size)
    logits, gradients = {}, {}
    for bf16 in (False, True):
        model = build(case, size=size)
        logits[bf16] = backward(model, image, target, bf16=bf16)
        gradients[bf16] = torch.cat([_gradient(p).reshape(-1) for p in model.parameters()])
    assert logits[False].shape == (4, NUM_CLASSES)
    assert torch.isfinite(gradients[False]).all()
    assert distance(logits[True], logits[False]) < 0.1
    assert distance(gradients[True], gradients[False]) < 0.5
    assert distance(logits[True], logits[False]) > 1e-5, "autocast did nothing"


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.float()


@every
def test_drop_path_drops(case: Case) -> None:
    image, _ = batch(case.size)
    model = build(case, drop_path=0.5)
    if case.slow_start:  # its branches are zero: there is nothing to drop before the first step
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        torch.manual_seed(0)
        first = model(image)
        assert not torch.equal(first, model(image))
        assert torch.equal(model.eval()(image), model(image))


@every
def test_batch_of_one(case: Case) -> None:
    image, target = batch(case.size, 1)
    assert torch.isfinite(backward(build(case), image, target)).all()
    with torch.no_grad():
        assert torch.isfinite(build(case).eval()(image)).all()


@pytest.mark.parametrize("name", ["resnet50", "hybrid_deit_mini", "robust_resnet_dw_small"])
def test_one_value_per_channel_is_no_batch_to_normalise(name: str) -> None:
    """A 1x1 map of one image: BatchNorm says so in train mode; eval mode goes on."""
    case = next(case for case in EVERY if case.name == name)
    image, target = batch(32, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        backward(build(case, size=32), image, target)
    with torch.no_grad():
        assert torch.isfinite(build(case, size=32).eval()(image)).all()


@every
def test_eval_logits_do_not_depend_on_the_other_images(case: Case) -> None:
    """Even images of nan beside it leave an image's logits alone."""
    model = build(case)
    image, target = batch(case.size, 6)
    backward(model, image, target)  # moves the running statistics
    model.eval()
    beside = image.clone()
    beside[[0, 1, 4, 5]] = torch.nan
    with torch.no_grad():
        logits, alone = model(beside), model(image[2:4])
    assert torch.isnan(logits[[0, 1, 4, 5]]).all()
    torch.testing.assert_close(logits[2:4], alone, rtol=1e-4, atol=1e-5)


@every
def test_state_goes_through_a_file(case: Case, tmp_path: Path) -> None:
    model = build(case)
    backward(model, *batch(case.size))  # moves the running statistics
    other = build(case, seed=1)
    assert not torch.equal(_eval_logits(other, case), _eval_logits(model, case))
    missing = other.load_state_dict(model.state_dict())
    assert not missing.missing_keys
    assert torch.equal(_eval_logits(other, case), _eval_logits(model, case))
    path = tmp_path / "exported.safetensors"
    path.write_bytes(to_safetensors(model.state_dict(), {"model": case.name}))
    third = build(case, seed=2)
    load_weights(third, path)
    assert torch.equal(_eval_logits(third, case), _eval_logits(model, case))


@torch.no_grad()
def _eval_logits(model: nn.Module, case: Case) -> Tensor:
    logits: Tensor = model.eval()(batch(case.size)[0])
    return logits


@every
def test_one_step_changes_every_parameter(case: Case) -> None:
    """Except those that the model's structure makes dead: they are named, and no others are."""
    changed = changed_by_step(case)
    still = {name for name in changed if not changed[name]}
    assert still == {name for name in changed if re.search(rf"\.({case.dead})$", name)}
    assert len(still) < len(changed) / 2


def changed_by_step(case: Case) -> dict[str, bool]:
    """By parameter, in float64: there rounding (1e-16) and a gradient that is merely small stay apart."""
    model = build(case).double()
    image, target = batch(case.size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2 if case.slow_start else 1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(image.double()), target).backward()
        optimizer.step()
    return {
        name: float((p.detach() - before[name]).abs().max()) > 1e-13 for name, p in model.named_parameters()
    }
