"""The flags of `shards`, by far the most of any verb. Cheap: `--help` must not import torch."""

import argparse
from pathlib import Path


def add_shards_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them to the verb's parser."""
    parser.add_argument("action", choices=["make", "index", "verify", "info", "digits", "stylize", "corrupt"])
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="SRC DST for make, stylize and corrupt (make cue64 DST: the generated 64 px task and its shifted tests); "
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
        "--size", type=int, help="side in pixels, of digits (default 32), stylized or corrupted images"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of make's shuffle, of cue64, of stylize's choice, of corrupt"
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
        "--kinds", metavar="KIND,...", help="corrupt: kinds or their groups (default common, ImageNet-C's 15)"
    )
    parser.add_argument("--severities", metavar="S,...", help="corrupt: of 1 to 5 (default all)")
    parser.add_argument(
        "--workers", type=int, help="processes (default: 2, or this one alone for few images)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="verify: index, sizes, and the crc32 of 1000 images"
    )
