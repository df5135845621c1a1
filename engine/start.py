"""What a model starts from: published weights, or one's own, put in before the first update."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engine.recipe import Recipe
from engine.subject import find_weights
from engine.verdict import weights_hash
from engine.weight_fields import InitSection
from models.hub import fetch, is_hub_name
from models.load import place_weights
from models.pixel import PixelModel
from models.weights import read_weights

FIELD = "model.init.path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Weights that were read, for a model that is not built yet."""

    settings: InitSection
    state: Mapping[str, Tensor]
    sha256: str  # of `state`
    mean: tuple[float, ...] | None = None  # that the publisher names beside the weights
    std: tuple[float, ...] | None = None

    def load_into(self, model: PixelModel) -> str:
        """Puts the weights in; what was done, in words. ValueError where they do not fit `model`, or where they
        were trained with another mean and std."""
        mean, std = _numbers(model.mean), _numbers(model.std)
        report = place_weights(
            model,
            self.state,
            source=f"{FIELD} {self.settings.path}",
            strict=self.settings.strict,
            reset_head=self.settings.reset_head,
        )
        if not report.num_loaded:
            raise ValueError(
                f"{FIELD} {self.settings.path} has no tensor that fits {model.name}; is it the right model.name?"
            )
        self._check_channels("mean", mean, self.mean or _numbers(model.mean))
        self._check_channels("std", std, self.std or _numbers(model.std))
        return str(report)

    def _check_channels(self, name: str, stated: tuple[float, ...], found: tuple[float, ...]) -> None:
        if any(abs(a - b) > 1e-5 for a, b in zip(stated, found, strict=True)):
            shown, own = ([round(value, 6) for value in values] for values in (found, stated))
            raise ValueError(
                f"{FIELD} {self.settings.path} was trained with {name} {shown}, and model.{name} is {own}; set "
                f"model.{name}={str(shown).replace(' ', '')}"
            )


def open_start(recipe: Recipe) -> Start | None:
    """The weights that `model.init` names, in memory; None where it names none. ValueError or OSError in one line."""
    init = recipe.model.init
    if init is None:
        return None
    path = Path(init.path)
    if is_hub_name(init.path):
        if init.weights == "ema":
            raise ValueError(f"{FIELD} {init.path} has one kind of weights; set model.init.weights=raw")
        found = fetch(init.path)
        mean, std = found.defaults.mean, found.defaults.std
        return Start(settings=init, state=found.state, sha256=weights_hash(found.state), mean=mean, std=std)
    if not path.exists():
        raise ValueError(
            f"{FIELD} {init.path} does not exist; give a run folder, a weight file, or a name such as "
            "timm:resnet50.a1_in1k"
        )
    try:
        state = _read(path, use_ema=init.weights == "ema")
    except (ValueError, OSError) as error:
        raise ValueError(f"{FIELD}: {str(error).replace('--weights ', 'model.init.weights=')}") from None
    return Start(settings=init, state=state, sha256=weights_hash(state))


def _read(path: Path, *, use_ema: bool) -> Mapping[str, Tensor]:
    if not path.is_dir():
        return read_weights(path, use_ema=use_ema).state
    _, state = find_weights(path)
    if use_ema and "ema" not in state:
        raise ValueError(f"{path} keeps no average of its weights (optim.ema was off); use --weights raw")
    kept: Mapping[str, Tensor] = state["ema" if use_ema else "model"]
    return kept


def _numbers(channels: Tensor) -> tuple[float, ...]:
    return tuple(channels.flatten().tolist())
