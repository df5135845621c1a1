"""What a run started here would use, and why: backend, devices, precision, processes, threads."""

import os
from pathlib import Path

import torch

from bits.processor import has_bf16
from data.native import SWITCH, native_parts
from engine.cli import Launch
from engine.finding import Finding
from engine.installed import version
from engine.machine import GIB, THREAD_VARIABLES, threads_advice, usable_cores


def look_at_devices() -> list[Finding]:
    """CUDA devices and TPU chips; XLA itself starts only where it is tested."""
    found = [Finding("devices", "cuda", _no_cuda())] if not torch.cuda.is_available() else _cuda_devices()
    chips = sorted([*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")])
    device = os.environ.get("PJRT_DEVICE", "not set")
    there = "not installed" if version("torch_xla") is None else f"torch_xla {version('torch_xla')}"
    return [
        *found,
        Finding("devices", "xla", f"{there}, PJRT_DEVICE {device}, {len(chips) or 'no'} TPU chips visible"),
    ]


def _cuda_devices() -> list[Finding]:
    found = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        text = (
            f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, capability {facts.major}.{facts.minor}, "
            f"bf16 {'native' if facts.major >= 8 else 'emulated'}"
        )
        found.append(Finding("devices", f"cuda:{number}", text))
    return found


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f", CUDA_VISIBLE_DEVICES is {visible!r}"
    return f"none: torch is built for CUDA {torch.version.cuda} and sees no device{hidden}"


def backend_of(launch: Launch) -> tuple[str, str]:
    """ "cpu", "cuda" or "xla", and why."""
    if launch.backend == "xla":
        device = os.environ.get("PJRT_DEVICE")
        why = "TPU chips where there are some, else the CPU" if device is None else f"PJRT_DEVICE={device}"
        return "xla", f"launch_xla.py was started; {why}"
    if launch.backend == "cpu":
        return "cpu", "--cpu was given"
    if torch.cuda.is_available():
        return "cuda", f"{torch.cuda.device_count()} CUDA devices are visible; --cpu would stay off them"
    return "cpu", f"CUDA: {_no_cuda()}"


def look_at_decoding() -> Finding:
    """Whether the loader's optional C modules are used; pixels are equal without them."""
    missing = [name for name, there in native_parts().items() if not there]
    if not missing:
        return Finding(
            "devices", "image loading", "JPEG regions and resize in C, equal to Pillow in a test just made"
        )
    if os.environ.get(SWITCH) == "0":
        return Finding(
            "devices", "image loading", f"without the C modules, as {SWITCH}=0 asks: slower, equal pixels"
        )
    text = (
        f"without the C modules for {' and '.join(missing)}: equal pixels, up to twice the processor time; install a C "
        "compiler and libjpeg-turbo's headers (libjpeg-turbo8-dev, libjpeg62-turbo-dev), then `pip install -e .`"
    )
    return Finding("devices", "image loading", text, "advice")


def look_ahead(launch: Launch) -> list[Finding]:
    """The section "a run here"."""
    section = "a run here"
    backend, why = backend_of(launch)
    found = [Finding(section, "backend", f"{backend} ({why})"), _processes(launch, backend)]
    found.append(Finding(section, "precision", _precision(backend)))
    num_processes = launch.world_size or int(os.environ.get("WORLD_SIZE", "1"))
    threads = torch.get_num_threads()
    settings = ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in THREAD_VARIABLES)
    found.append(Finding(section, "threads", f"{threads} in torch; {settings}"))
    advice = threads_advice(threads, num_processes, usable_cores())
    if advice is not None:
        found.append(Finding(section, "threads", advice, "advice"))
    if backend != "xla":
        other = "`python launch_xla.py doctor` tests XLA" if version("torch_xla") else "XLA is not installed"
        found.append(Finding(section, "other launcher", other))
    return found


def _processes(launch: Launch, backend: str) -> Finding:
    name = "processes"
    if backend == "xla":
        return Finding("a run here", name, f"{launch.world_size}, with --num-devices {launch.num_devices}")
    if launch.world_size is None:
        return Finding("a run here", name, f"{os.environ.get('WORLD_SIZE', '1')}, by the outside launcher")
    count = torch.cuda.device_count() if backend == "cuda" else 1
    if count > 1:
        text = f"1 of {count} CUDA devices would work; start with --num-processes {count} for all"
        return Finding("a run here", name, text, "advice")
    return Finding("a run here", name, "1 (--num-processes N starts more)")


def _precision(backend: str) -> str:
    bf16 = {
        "cpu": "bf16 native" if has_bf16() else "bf16 emulated on this processor, far slower than float32",
        "cuda": "bf16 native"
        if backend == "cuda" and torch.cuda.is_bf16_supported(False)
        else "bf16 emulated",
        "xla": "bf16 native on TPUs, emulated on the CPU",
    }[backend]
    fp16 = "fp16 with a loss scaler" if backend == "cuda" else "no fp16 (CUDA only)"
    return f"float32; {bf16}; {fp16}; run.precision chooses, verdicts are float32 always"
