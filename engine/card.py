"""The model card beside an export: what it is, how it was made and measured, what the numbers do not say."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from engine.folder import RunFolder
from engine.ledger import read_ledger, wilson_interval
from engine.recipe import Recipe
from engine.words import attack_words, objective_words, short_list
from models.weight_facts import Facts

OWN_MODULE = "models."


class Measured(NamedTuple):
    """One row of the results table: counts of the ledger."""

    name: str
    what: str
    contract: str
    num_correct: int
    num_images: int


def read_measured(folder: RunFolder, weights_sha256: str) -> list[Measured]:
    """The results of exactly these weights, counted over the rows of the run's ledger."""
    rows: list[Measured] = []
    seen = set()
    # The last evaluation of a training may stand there twice, as NAME and as NAME-epochN.
    for path in sorted(folder.results.glob("*.json"), key=lambda path: ("-epoch" in path.stem, path.stem)):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["weights_sha256"] != weights_sha256 or result["evaluation"] in seen:
                continue
            seen.add(result["evaluation"])
            summary = read_ledger(folder.ledger, result["evaluation"]).summary(result["evaluation"])
            rows.append(
                Measured(
                    name=path.stem,
                    what=_what(result),
                    contract=result["contract"],
                    num_correct=summary["num_correct"],
                    num_images=summary["num_images"],
                )
            )
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(
                f"{path} is not a result of an evaluation; move it away, or evaluate again"
            ) from None
    return rows


def _what(result: Mapping[str, Any]) -> str:
    attack = result["attack"]
    return f"suite {result['suite'].partition('@')[0]}" if attack is None else attack_words(attack)


def model_card(
    recipe: Recipe, facts: Facts, metadata: Mapping[str, str], *, file_name: str, measured: Sequence[Measured]
) -> str:
    """Markdown with the front matter that model hubs read; `metadata` is the export's own."""
    parts = [
        _front_matter(recipe),
        _summary(recipe, facts, metadata),
        _training(recipe, metadata),
        _results(measured),
        _limits(recipe, metadata),
        _usage(recipe, metadata, file_name),
        _provenance(metadata),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe) -> str:
    robust = ["adversarial-robustness"] if recipe.objective.kind != "clean" else []
    tags = ["image-classification", "robust-bits", recipe.model.name, *robust]
    lines = [
        "license: unknown # yours to choose; it depends on the images and on weights you started from",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(recipe: Recipe, facts: Facts, metadata: Mapping[str, str]) -> str:
    classes = json.loads(metadata["classes"])
    averaged = {
        "raw": "the weights of the last update",
        "ema": "the exponential moving average of the weights over the updates",
    }
    about = f"{recipe.description}\n\n" if recipe.description else ""
    return (
        f"# {recipe.name or recipe.model.name}\n\n{about}"
        f"An image classifier: `{recipe.model.name}`, {facts.num_parameters:,} parameters, {len(classes)} classes "
        f"({short_list(classes)}), trained with robust-bits. The file holds "
        f"{averaged.get(metadata['weights'], metadata['weights'])} (`--weights {metadata['weights']}`), "
        f"at step {metadata['step']}."
    )


def _training(recipe: Recipe, metadata: Mapping[str, str]) -> str:
    d, o, optim, run = recipe.data, recipe.objective, recipe.optim, recipe.run
    size = f"{d.image_size} x {d.image_size}"
    resize = {
        "crop": f"short side to {d.image_size} / {d.crop_pct:g}, centre crop {size}",
        "squash": f"both sides to {size}",
        "none": f"none, images are {size} already",
    }
    rows = {
        "objective": objective_words(o),
        "optimiser": f"{optim.name}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}, {optim.schedule} schedule",
        "length": f"{run.epochs} epoch{'s' if run.epochs > 1 else ''} in batches of {run.batch_size}, {run.precision}",
        "BatchNorm statistics": recipe.model.norm_stats,
        "augmentation": f"crop of {d.scale[0]:g} to {d.scale[1]:g} of the area, flip {d.flip:g}, "
        f"RandAugment {d.randaug or 'off'}, mixup {o.mixup:g}, cutmix {o.cutmix:g}, label smoothing {o.smoothing:g}",
        "training images": f"data set {metadata['dataset_id'][:16] or 'unknown'}",
        "input": f"float in [0, 1], N x 3 x {d.image_size} x {d.image_size}; resize: {resize[d.eval_resize]}, "
        f"{d.eval_interpolation or d.interpolation}",
        "normalisation": f"mean {list(recipe.model.mean)}, std {list(recipe.model.std)}, inside the model",
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["## Training and data", "", "| | |", "|---|---|", *table])


def _results(measured: Sequence[Measured]) -> str:
    if not measured:
        return "## Results\n\nThese weights were not evaluated before they were exported."
    lines = ["| name | what | protocol | correct | 95 % interval | n |", "|---|---|---|---|---|---|"]
    for row in measured:
        low, high = wilson_interval(row.num_correct, row.num_images)
        share = 100 * row.num_correct / row.num_images
        interval = f"{100 * low:.2f} to {100 * high:.2f} %"
        lines.append(
            f"| {row.name} | {row.what} | {row.contract} | {share:.2f} % | {interval} | {row.num_images} |"
        )
    note = "Every image judged once in float32; intervals are Wilson's. An attacked image counts as correct when it "
    return "\n".join(
        ["## Results", "", *lines, "", f"{note}is classified correctly before and after the attack."]
    )


def _limits(recipe: Recipe, metadata: Mapping[str, str]) -> str:
    lines = [
        "- PGD accuracies are upper bounds: a stronger attack may break more images.",
        "- Robustness inside one norm and radius says little about others, and about shifts that were not measured.",
        f"- The model knows {metadata['num_classes']} classes and always answers with one of them.",
        "- Intervals speak of the images that were drawn, not of another data set or of retraining with another seed.",
    ]
    if recipe.objective.kind == "clean":
        lines.insert(0, "- Trained without attacks: expect no adversarial robustness.")
    return "\n".join(["## Limits", "", *lines])


def _usage(recipe: Recipe, metadata: Mapping[str, str], file_name: str) -> str:
    arguments = {"num_classes": int(metadata["num_classes"]), **constructor_arguments(recipe)}
    words = ", ".join([f'"{recipe.model.name}"', *(f"{name}={value!r}" for name, value in arguments.items())])
    own = timm.models.model_entrypoint(recipe.model.name.partition(".")[0]).__module__.startswith(OWN_MODULE)
    register = (
        "import models  # registers the toolkit's own models; run this in its checkout\n" if own else ""
    )
    return f"""## Use

With robust-bits, where `SHARDS` is a folder of shards of the same classes:

```bash
python launch_gpu.py eval {file_name} --suite clean --data SHARDS
```

{_usage_without(recipe, words, register, file_name)}"""


def _usage_without(recipe: Recipe, words: str, register: str, file_name: str) -> str:
    """The same with torch and timm; norms that neither of them has are made plain by this toolkit's loader."""
    size = recipe.data.image_size
    if recipe.model.split_norm or recipe.model.norm_stats.startswith("groups:"):
        average = ", average_groups=True" if recipe.model.norm_stats.endswith(":average") else ""
        about = (
            "As one of timm's models. Its norms keep more statistics than BatchNorm does; those that it evaluates with "
            "are made plain BatchNorm by this\ntoolkit's loader, so run this in its checkout:"
        )
        names = "from models.load import load_weights\n"
        load = f'load_weights(model, "{file_name}"{average})'
    else:
        about = (
            "With torch and timm alone. Keys are `backbone.*`, timm's own names behind that prefix, and the buffers "
            "`mean` and\n`std` (1 x 3 x 1 x 1):"
        )
        names = register
        load = 'model.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})'
    return f"""{about}

```python
import timm
import torch
from safetensors.torch import load_file
{names}
state = load_file("{file_name}")
mean, std = state.pop("mean"), state.pop("std")
model = timm.create_model({words})
{load}
model.eval()
image = torch.rand(1, 3, {size}, {size})  # in [0, 1]
logits = model((image - mean) / std)
```"""


def constructor_arguments(recipe: Recipe) -> dict[str, object]:
    """What timm's constructor needs to make the same model: the recipe's own, and an image size where it knows one."""
    extra: dict[str, Any] = dict(recipe.model.args)
    sized = {"img_size": recipe.data.image_size, **extra}
    try:
        with torch.device("meta"):
            timm.create_model(recipe.model.name, **sized)
    except TypeError:
        return extra
    return sized


def _provenance(metadata: Mapping[str, str]) -> str:
    names = ("weights_sha256", "recipe_hash", "dataset_id", "toolkit_version")
    lines = [f"- {name}: `{metadata[name] or 'unknown'}`" for name in names]
    return "\n".join(
        ["## Provenance", "", *lines, "- The whole recipe is in the file's metadata under `recipe`."]
    )


def card_path(weights: Path) -> Path:
    """Beside the weights, same stem."""
    return weights.with_suffix(".md")
