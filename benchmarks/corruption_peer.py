"""imagecorruptions 1.1.2 as a child process: a Python of its own with that package, asked by JSON lines on stdin.

    PEER benchmarks/corruption_peer.py PHOTOS.npy

A request is {"kind", "severity", "seed", "images", "out"}: it corrupts that many photos one by one, saves them as .npy
and answers {"cpu_s"}. Started by benchmarks/corruptions.py. The package is of 2020; what newer NumPy and scikit-image
took away is put back from outside. Two kinds are asked for that it has not: `glass_blur@compiled`, its pixel loop
compiled by numba as in its unreleased version, and `elastic_transform@original`, ImageNet-C's definition.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
Pixels = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    """Answers until stdin ends."""
    warnings.simplefilter("ignore")
    peer = patched()
    compiled = compiled_walk()
    photos = np.load(sys.argv[1])
    print(json.dumps({"versions": versions()}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        corrupt = function(peer, compiled, ask["kind"], ask["severity"])
        np.random.seed(ask["seed"])
        start = time.process_time()
        found = [corrupt(photo) for photo in photos[: ask["images"]]]
        spent = time.process_time() - start
        np.save(ask["out"], np.stack(found))
        print(json.dumps({"cpu_s": spent}), flush=True)


def function(peer: Any, compiled: Any, kind: str, severity: int) -> Callable[[Pixels], Pixels]:
    """uint8 (H,W,3) -> the same."""
    if kind == "elastic_transform@original":
        return lambda photo: elastic(photo, severity)
    if kind == "glass_blur@compiled":
        return lambda photo: glass(photo, severity, compiled)
    return lambda photo: peer.corrupt(photo, corruption_name=kind, severity=severity)


def patched() -> Any:
    """The package, with np.float_ and gaussian's `multichannel` put back."""
    np.float_ = np.float64  # type: ignore[attr-defined]
    import imagecorruptions
    import imagecorruptions.corruptions as module
    from skimage.filters import gaussian

    def with_multichannel(
        image: Pixels, *given: Any, multichannel: bool | None = None, **named: Any
    ) -> Pixels:
        if multichannel is not None:
            named["channel_axis"] = -1 if multichannel else None
        blurred: Pixels = gaussian(image, *given, **named)
        return blurred

    module.gaussian = with_multichannel
    return imagecorruptions


def compiled_walk() -> Any:
    """The walk of glass_blur, or None without numba."""
    try:
        from numba import njit
    except ImportError:
        return None

    @njit  # type: ignore[untyped-decorator]
    def walk(image: Pixels, reach: int, passes: int) -> None:
        height, width = image.shape[:2]
        for _ in range(passes):
            for y in range(height - reach, reach, -1):
                for x in range(width - reach, reach, -1):
                    right, down = np.random.randint(-reach, reach), np.random.randint(-reach, reach)
                    for channel in range(3):
                        image[y, x, channel] = image[y + down, x + right, channel]

    walk(np.zeros((8, 8, 3), np.uint8), 1, 1)  # compiles
    return walk


def glass(photo: Pixels, severity: int, walk: Any) -> Pixels:
    """glass_blur with the compiled walk."""
    from skimage.filters import gaussian

    sigma, reach, passes = GLASS[severity - 1]
    image = np.uint8(gaussian(photo / 255.0, sigma=sigma, channel_axis=-1) * 255)
    walk(image, reach, passes)
    return np.uint8(np.clip(gaussian(image / 255.0, sigma=sigma, channel_axis=-1), 0, 1) * 255)  # type: ignore[return-value]


def elastic(photo: Pixels, severity: int) -> Pixels:
    """ImageNet-C's elastic_transform, from its definition, with OpenCV and scipy as there."""
    import cv2
    from scipy.ndimage import gaussian_filter, map_coordinates

    height, width = photo.shape[:2]
    side = min(height, width) * 244 / 224
    strength, sigma, reach = (share * side for share in ELASTIC[severity - 1])
    middle, half = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = np.float32([middle + half, [middle[0] + half, middle[1] - half], middle - half])
    moved = corners + np.random.uniform(-reach, reach, corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    image = photo.astype(np.float32) / 255
    image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    noise = np.random.uniform(-1, 1, (2, height, width))
    down, right = (gaussian_filter(field, sigma, mode="reflect", truncate=3) * strength for field in noise)
    y, x = np.mgrid[:height, :width]
    planes = [
        map_coordinates(image[..., channel], (y + down, x + right), order=1, mode="reflect")
        for channel in range(3)
    ]
    return np.uint8(np.clip(np.stack(planes, axis=-1), 0, 1) * 255)  # type: ignore[return-value]


def versions() -> dict[str, str]:
    """Of what is installed beside it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("imagecorruptions", "numpy", "scikit-image", "opencv-python", "scipy", "pillow", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


if __name__ == "__main__":
    main()
