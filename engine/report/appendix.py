"""The page's end: where the runs were made, their recipes, the ids of what was measured, how numbers came about."""

from collections.abc import Iterator, Mapping, Sequence

from engine.override import to_yaml
from engine.report.facts import RunFacts
from engine.report.layout import details, scroll, section, table
from engine.report.markup import Markup, tag
from engine.report.summary import Summary
from engine.report.words import NOTHING, duration_text, time_text

Facts = dict[str, str]
_SIZES = {"world_size": "process", "num_devices": "device", "threads": "thread"}
METHOD = {
    "Accuracy": "images whose most likely class is the label, divided by all images: sums over the rows of the run's "
    "ledger, one row per image. Results that the ledger does not bear out are not shown.",
    "Robust accuracy": "images that are right before the attack and after it. An attack bounds robustness from above: "
    "a stronger one can only find more.",
    "Interval": "95 % Wilson interval of a share (Wilson 1927): where it would lie on another sample of images from "
    "the same source. It does not cover the spread over training seeds. Intervals that do not overlap are a cautious "
    "sign of a difference; overlapping ones show none.",
    "Relative drop": "(x - clean) / clean. For an attack, clean is the accuracy on the same images before it; for a "
    "shifted set, the clean evaluation of the same weights.",
    "Calibration": "from confidence, NLL and Brier score of each row; ECE in 15 bins of equal width. Debiased as by "
    "Kumar et al. 2019.",
    "Shape bias": "decisions for the shape's class among those for the shape's or the texture's (Geirhos et al. 2019).",
    "Mean error, mCE": "of ImageNet-C, over its 15 corruptions and 5 severities; mCE over AlexNet's errors (Hendrycks "
    "and Dietterich 2019). The share of all parts counts every part alike, its interval is over photographs.",
    "Effective robustness": "accuracy less what a line through public models on logit axes says (Taori et al. 2020).",
    "Comparable": "evaluations of one name agree in evaluation set, subset, contract, precision and attack settings, "
    "and in the seed where an attack starts at random.",
    "Curves over eps": "evaluations that share everything but the radius, with a step size that is fixed or in "
    "proportion to it; eps 0 is the accuracy before the attack.",
    "Training curves": "log.jsonl as it was written; what a killed run had logged and a resumed one made again counts "
    "once.",
    "Perturbation": "attacked minus original image, times the stated factor, around mid-grey.",
}


def environment_section(runs: Sequence[RunFacts]) -> Markup:
    """A row for each fact and a column for each run; one cell where all agree."""
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for own in facts for name in own)
    rows = (
        tag("tr", tag("th", name, scope="row"), _cells([own.get(name, NOTHING) for own in facts]))
        for name in names
    )
    head = tag("tr", tag("th", "", scope="col"), (tag("th", run.name, scope="col") for run in runs))
    body = tag("table", tag("thead", head), tag("tbody", rows), class_="facts")
    return section("Environment", scroll(body, "Run environment"))


def _cells(values: Sequence[str]) -> Markup:
    if len(set(values)) == 1 and len(values) > 1:
        return tag("td", values[0], colspan=str(len(values)))
    return Markup("".join(tag("td", value) for value in values))


def _facts(run: RunFacts) -> Facts:
    progress, e = run.progress, run.environment
    size = [_counted(e, name, word) for name, word in _SIZES.items()]
    return {
        "folder": str(run.folder),
        "state": f"{progress.state}, {progress.detail}",
        "started": time_text(progress.started) or NOTHING,
        "time in training": duration_text(progress.busy_s) or NOTHING,
        "command": _command(e.get("command")),
        "git commit": str(e.get("git_commit") or NOTHING),
        "precision of training": str(e.get("precision") or run.recipe.get("run.precision", NOTHING)),
        "seed": str(run.recipe.get("run.seed", NOTHING)),
        "backend": str(e.get("backend", NOTHING)),
        "device": ", ".join(str(e[n]) for n in ("device", "machine") if e.get(n)) or NOTHING,
        "size": ", ".join(filter(None, size)) or NOTHING,
        "BatchNorm statistics over": progress.norm_stats or NOTHING,
        "work of the compiler": progress.compiled or NOTHING,
        "versions": ", ".join(_versions(e)) or NOTHING,
    }


def _counted(environment: Mapping[str, object], name: str, word: str) -> str:
    value = environment.get(name)
    return "" if value is None else f"{value} {word}{'' if value == 1 else 'es' if word[-1] == 's' else 's'}"


def _versions(environment: Mapping[str, object]) -> Iterator[str]:
    if environment.get("python"):
        yield f"python {environment['python']}"
    versions = environment.get("versions")
    if isinstance(versions, dict):
        yield from (f"{name} {version}" for name, version in versions.items() if version)


def _command(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or NOTHING)


def recipe_section(runs: Sequence[RunFacts]) -> Markup:
    whole = [
        details(f"Recipe of {run.name}", tag("pre", run.recipe_text, tabindex="0"))
        for run in runs if run.recipe_text
    ]  # fmt: skip
    missing = [
        tag("p", f"{run.name} has no readable recipe.", class_="quiet") for run in runs if not run.recipe_text
    ]
    return section("Recipe", _differing(runs), whole, missing)


def _differing(runs: Sequence[RunFacts]) -> Markup:
    if len(runs) < 2:
        return Markup()
    rows = [row for row in _fields([run.recipe for run in runs]) if len(set(row[1:])) > 1]
    if not rows:
        return tag("p", "The recipes are the same in every field.")
    head = ("field that differs", *(run.name for run in runs))
    return scroll(table(head, rows, class_="facts"), "Recipe fields that differ")


def _fields(recipes: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, ...]]:
    """Field and its value in each recipe. A section that one recipe leaves empty is one field in all of them."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    whole = [name for name in names if any(other.startswith(f"{name}.") for other in names)]
    for name in names:
        if not any(name.startswith(f"{section}.") for section in whole):
            yield (name, *(_value(recipe, name) for recipe in recipes))


def _value(recipe: Mapping[str, object], name: str) -> str:
    below = {key.removeprefix(f"{name}."): v for key, v in recipe.items() if key.startswith(f"{name}.")}
    if name not in recipe and not below:
        return NOTHING
    return _flow(below or recipe[name], name.rpartition(".")[2])


def _flow(value: object, name: str) -> str:
    """On one line, as YAML's flow style has it; radii as papers write them, absent settings left out."""
    if isinstance(value, Mapping):
        parts = (f"{key}: {_flow(v, key)}" for key, v in value.items() if v is not None)
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_flow(entry, name) for entry in value)}]"
    levels = value * 255 if isinstance(value, float) and name in ("eps", "step_size") else 0.0
    if levels >= 1 and abs(levels - round(levels)) < 1e-9:
        return f"{round(levels)}/255"
    return to_yaml({"v": value}).partition(":")[2].strip()


def identity_section(summary: Summary) -> Markup:
    head = (
        "run",
        "evaluation",
        "suite",
        "data set id",
        "contract",
        "seed",
        "precision",
        "weights sha256",
        "evaluation id",
    )
    body = table(head, _identities(summary), class_="ids")
    return section(
        "Identity", details("Ids of contracts, data sets, weights and evaluations", scroll(body, "Ids"))
    )


def _identities(summary: Summary) -> Iterator[tuple[str, ...]]:
    for place, row in enumerate(summary.rows):
        for cell in (column.cells[place] for column in summary.columns):
            if cell is not None:
                e = cell.evaluation
                suite = e.suite if e.subset is None else f"{e.suite}[{e.subset}]"
                yield (
                    row.label,
                    e.file,
                    suite,
                    e.dataset,
                    e.contract,
                    str(e.seed),
                    e.precision,
                    e.weights_sha256,
                    e.id,
                )


def method_section() -> Markup:
    entries = (tag("dt", term) + tag("dd", text) for term, text in METHOD.items())
    return section("How each number was computed", tag("dl", map(Markup, entries)))
