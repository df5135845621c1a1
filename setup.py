"""Packaging of robust-bits: five top-level packages used from the checkout (`pip install -e .`)."""

from setuptools import Extension, setup

TORCH = "torch==2.9.*"
XLA = ["torch_xla==2.9.*"]
DEMO = ["scikit-learn>=1.4", "scikit-image>=0.22"]
TEST = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "foolbox>=3.3.4"]
DEV = ["ruff==0.14.*", "mypy==1.18.*", "types-PyYAML", "pre-commit>=4"]

# Both only save time: without a compiler, or libjpeg-turbo and its headers, everything works and gives the same pixels.
NATIVE = [
    Extension("data._jpeg", ["data/_jpeg.c"], libraries=["jpeg"], optional=True),
    Extension(
        "data._resize", ["data/_resize.c"], extra_compile_args=["-O3", "-ffp-contract=off"], optional=True
    ),
]

setup(
    name="robust-bits",
    version="0.1.0",
    description="Train and measure robust image classifiers: one recipe on CPU, CUDA and XLA",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[
        "bits",
        "data",
        "models",
        "robust",
        "robust.corruptions",
        "engine",
        "engine.metrics",
        "engine.parity",
        "engine.report",
        "engine.tpu",
    ],
    package_data={
        "engine": ["py.typed"],
        "data": ["suites/*.yaml", "class_maps/*.yaml", "protocols/*.yaml"],
        "models": ["catalogue.csv"],
        "engine.metrics": ["*.yaml"],
        "engine.report": ["*.css"],
    },
    ext_modules=NATIVE,
    install_requires=[
        TORCH,
        "torchvision==0.24.*",
        "timm>=1.0.20,<2",
        "webdataset>=1.0",
        "accelerate>=1.10,<2",
        "pyyaml>=6",
        "pydantic>=2.8,<3",
        "rich>=13",
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "safetensors>=0.4",
        "scipy>=1.11",
        "numpy>=1.26",
        "Pillow>=10.3",
        "simplejpeg>=1.8",
        "fsspec>=2024.2",
    ],
    extras_require={"xla": XLA, "demo": DEMO, "test": TEST + DEMO, "dev": DEV},
)
