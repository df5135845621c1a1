"""The command line's words: every verb with its flags and an example. Cheap: `--help` must not import torch."""

import argparse
from pathlib import Path
from typing import Any

LAUNCHER_FLAGS = {
    "launch_gpu.py": {
        "--cpu": "stay off the GPU",
        "--num-processes": "how many processes to start (default 1)",
    },
    "launch_xla.py": {"--num-devices": "XLA devices to use (default 1)"},
}


class _Parser(argparse.ArgumentParser):
    """One line instead of a usage dump; the help is one flag away."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see `{self.prog} -h`")


def make_parser(program: str) -> argparse.ArgumentParser:
    """All verbs and flags. Kept cheap: `--help` must not import torch."""
    flags = LAUNCHER_FLAGS.get(program, {})
    parser = _Parser(
        prog=program,
        usage=f"{' '.join([program, *map(optional, flags)])} VERB ...   (VERB -h explains a verb)",
        description="Train and measure robust image classifiers.",
        epilog="before VERB:\n" + "\n".join(f"  {flag:<18}{text}" for flag, text in flags.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=_Parser, prog=program
    )
    _add_train(verbs)
    _add_eval(verbs)
    _add_attack(verbs)
    _add_shards(verbs)
    _add_weights(verbs)
    _add_report(verbs)
    _add_list(verbs)
    _add_doctor(verbs)
    return parser


def optional(flag: str) -> str:
    return f"[{flag}]" if flag == "--cpu" else f"[{flag} N]"


def _verb(verbs: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there for machines")
    return parser


def _add_train(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu train recipes/quickstart/cnn_adv.yaml optim.lr=1e-3 --output runs/a"
    parser = _verb(verbs, "train", "train the model of a recipe, then run its evaluations", example)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe fields to change")
    parser.add_argument("--output", type=Path, help="run folder (default: run.output, else runs/NAME)")
    parser.add_argument(
        "--resume", default="auto", help="auto (default), never, or a checkpoint or run folder"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, print the resolved recipe and its hash, stop"
    )
    _add_quiet(parser)


def _add_eval(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu eval runs/a --suite clean --data shards/val"
    parser = _verb(verbs, "eval", "judge every image of a suite, one ledger row each", example)
    parser.add_argument(
        "run", type=Path, help="run folder, a checkpoint in one, or an exported .safetensors file"
    )
    parser.add_argument(
        "--suite", default="clean", help="suites, comma-separated, or all (see `list suites`; default: clean)"
    )
    _add_measuring(parser)


def _add_attack(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu attack runs/a --attack pgd --eps 2/255,4/255,8/255 --steps 20 --restarts 3"
    parser = _verb(verbs, "attack", "attack every image and count what stays right", example)
    parser.add_argument(
        "run", type=Path, help="run folder, a checkpoint in one, or an exported .safetensors file"
    )
    parser.add_argument("--attack", default="pgd", help="pgd")
    parser.add_argument("--norm", default="linf", help="linf (default) or l2")
    parser.add_argument(
        "--eps",
        required=True,
        help="radius in pixel units and the norm, e.g. 4/255; several, comma-separated, give a result each",
    )
    parser.add_argument("--step-size", help="pixel units, for every radius (default: a quarter of each)")
    parser.add_argument("--steps", type=int, default=20, help="gradient steps of a restart (default: 20)")
    parser.add_argument("--no-random-start", action="store_true", help="start from the clean image")
    parser.add_argument("--restarts", type=int, default=1, help="random starts; the strongest result counts")
    parser.add_argument(
        "--best-iterate", action="store_true", help="the strongest iterate counts, not the last one"
    )
    parser.add_argument("--num-images", type=int, help="a fixed subset, the same for every model")
    _add_measuring(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    _add_weights_choice(parser)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of shards, or of one folder of shards per suite (default: data.val and data.suites of the run)",
    )
    parser.add_argument("--batch-size", type=int, help="global (default: run.batch_size)")
    parser.add_argument(
        "--bad-images",
        choices=["stop", "wrong"],
        help="stop at one, or count it as wrong (default: data.eval_bad)",
    )
    parser.add_argument("--output", type=Path, help="where ledger and results go (default: the run folder)")
    _add_quiet(parser)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress: results and warnings only")


def _add_weights_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=["raw", "ema"], default="raw", help="of a run with optim.ema")


def _add_shards(verbs: Any) -> None:
    example = "python launch_gpu.py shards make ~/imagenet/val shards/val"
    parser = _verb(verbs, "shards", "make, index, verify, describe or stylize shards", example)
    parser.add_argument("action", choices=["make", "index", "verify", "info", "digits", "stylize"])
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="SRC DST for make and stylize (make cue64 DST: the generated 64 px task and its shifted tests); "
        "DST, or SRC DST, for index; DST otherwise",
    )
    parser.add_argument("--split", help="make: take SRC/SPLIT and name the dataset's split; index: name it")
    parser.add_argument(
        "--each",
        action="store_true",
        help="make: DST/NAME of every image folder SRC/NAME; what is packed stays",
    )
    parser.add_argument(
        "--depth", type=int, help="make --each: levels to look for image folders (default: 1)"
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE|DST",
        help="make, index: the class list, one class a line, or shards that have it; classes may lack a folder",
    )
    parser.add_argument("--samples-per-shard", type=int, default=2000)
    parser.add_argument(
        "--no-decode", action="store_true", help="make, index, verify: open images, do not decode them"
    )
    parser.add_argument(
        "--allow-no-eof", action="store_true", help="index: tars may lack their end-of-archive marker"
    )
    parser.add_argument(
        "--size", type=int, help="side in pixels, of digits (default 32) or of stylized images"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of make's shuffle, of cue64, of stylize's choice"
    )
    parser.add_argument("--correlation", type=float, help="make cue64: of texture and label (default 0.5)")
    parser.add_argument("--num-train", type=int, help="make cue64: images to train on (default 20000)")
    parser.add_argument("--num-val", type=int, help="make cue64: images in each test set (default 2000)")
    parser.add_argument("--num-classes", type=int, help="make cue64: classes, up to 16 (default 10)")
    parser.add_argument("--paintings", type=Path, metavar="DIR", help="stylize: images to take styles from")
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="stylize: folder of vgg_normalised.pth and decoder.pth"
    )
    parser.add_argument(
        "--textures", type=int, metavar="N", help="stylize: N generated textures instead, without weights"
    )
    parser.add_argument(
        "--workers", type=int, help="processes (default: 2, or this one alone for few images)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="verify: index, sizes, and the crc32 of 1000 images"
    )


def _add_weights(verbs: Any) -> None:
    example = "python launch_gpu.py weights export runs/a a.safetensors --weights ema"
    parser = _verb(verbs, "weights", "describe a weight file, or export a run's weights", example)
    parser.add_argument("action", choices=["info", "export"])
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="info: FILE; export: RUN DST.safetensors"
    )
    _add_weights_choice(parser)
    parser.add_argument("--force", action="store_true", help="export: replace DST and the card beside it")


def _add_report(verbs: Any) -> None:
    example = "python launch_gpu.py report runs/a runs/b --output compare.html"
    parser = _verb(verbs, "report", "one page with tables, curves and pictures of one or more runs", example)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, in the order shown")
    parser.add_argument(
        "--output",
        type=Path,
        help="the page; its tables are written beside it as .md and .csv "
        "(default: RUN/report.html of one run, report.html of several)",
    )


def _add_list(verbs: Any) -> None:
    example = "python launch_gpu.py list models 'deit*'"
    parser = _verb(verbs, "list", "models, recipes, suites or attacks, with parameters and sources", example)
    parser.add_argument("what", choices=["models", "recipes", "suites", "attacks"])
    parser.add_argument("pattern", nargs="?", help="shell pattern of names (recipes: or paths), e.g. 'deit*'")
    parser.add_argument("--data", type=Path, help="suites: say which of them are in this folder")


def _add_doctor(verbs: Any) -> None:
    example = "python launch_gpu.py doctor recipes/quickstart/cnn_adv.yaml"
    parser = _verb(verbs, "doctor", "what is installed, what would be used and why, and a self-test", example)
    parser.add_argument("recipe", nargs="?", type=Path, help="also check that this recipe could run here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe fields to change")
    parser.add_argument("--no-self-test", action="store_true", help="facts only")
