"""The machine a run would have: processor, memory, disk, and environment variables that change what runs."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from engine.finding import Finding
from engine.installed import version
from engine.launch import check_packages, check_torch_xla

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
OLD_XLA = ("XLA_USE_BF16", "XLA_DOWNCAST_BF16", "XLA_USE_FP16", "XLA_DOWNCAST_FP16")
TF32 = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def usable_cores() -> int:
    """Cores this process may use: of its affinity, less where a container's quota is lower; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def look_at_machine() -> list[Finding]:
    """Processor, memory and the commit of the code."""
    cores, quota = os.cpu_count() or 1, _cgroup_cores()
    limits = [f"{usable_cores()} usable"] + ([] if quota is None else [f"container quota {quota:g}"])
    memory = _physical_memory()
    return [
        Finding("machine", "processor", f"{_processor_name()}, {cores} logical cores, {', '.join(limits)}"),
        Finding("machine", "memory", "unknown" if memory is None else f"{memory / GIB:.1f} GiB"),
        Finding("machine", "system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("machine", "git commit", _code_version()),
    ]


def look_at_storage(run_folder: Path) -> list[Finding]:
    """Free space where the run would be written."""
    place = nearest_folder(run_folder)
    return [Finding("storage", "disk", f"{shutil.disk_usage(place).free / GIB:.1f} GiB free at {place}")]


def nearest_folder(path: Path) -> Path:
    """`path`, or the folder above it that exists already."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def look_for_traps(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """What silently changes runs: shadowed packages, variables of other launchers, versions that do not fit."""
    found = []
    try:
        check_packages(ROOT)
        found.append(Finding("traps", "packages", "all five are those of this checkout", "ok"))
    except ValueError as error:
        found.append(Finding("traps", "packages", str(error), "failed"))
    if version("torch_xla") is not None:
        found.append(_torch_xla())
    names = sorted(name for name in environment if name.startswith("ACCELERATE_"))
    if names:
        text = f"{', '.join(names)} set: recipes replace them, and some stop a run; unset them"
        found.append(Finding("traps", "accelerate", text, "advice"))
    for name in OLD_XLA:
        if name in environment:
            text = f"{name} is set: it makes float32 something else on XLA; unset it, use run.precision=bf16"
            found.append(Finding("traps", "xla precision", text, "advice"))
    for name in TF32:
        if environment.get(name) == "1":
            text = f"{name}=1 makes float32 verdicts TF32 ones; unset it"
            found.append(Finding("traps", "tf32", text, "advice"))
    return found


def _torch_xla() -> Finding:
    try:
        check_torch_xla()
    except ValueError as error:
        return Finding("traps", "torch and torch_xla", str(error), "advice")
    return Finding("traps", "torch and torch_xla", "of one release", "ok")


def threads_advice(threads: int, num_processes: int, cores: int) -> str | None:
    """What to set when more threads would run than there are cores; None where all is well."""
    if threads * num_processes <= cores:
        return None
    each = max(1, cores // num_processes)
    return (
        f"{num_processes} x {threads} threads on {cores} usable cores: too many; set OMP_NUM_THREADS={each}"
    )


def git_commit() -> str | None:
    """The checkout's commit; None outside one."""
    top = _git("rev-parse", "--show-toplevel")
    # git looks upwards: a copy of the tree inside somebody's repository is not that repository's commit.
    return _git("rev-parse", "HEAD") if top is not None and Path(top).resolve() == ROOT.resolve() else None


def _code_version() -> str:
    commit = git_commit()
    if commit is None:
        return "none: this is no git checkout"
    return f"{commit}, with changes" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def _physical_memory() -> int | None:
    """Bytes: what a container allows where that is less than the machine has."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limit = _cgroup("memory.max", "memory/memory.limit_in_bytes")
    return min(machine, int(limit)) if limit and limit.isdecimal() else machine


def _cgroup_cores() -> float | None:
    """Cores of time a container may use, None where nothing limits it."""
    quota = _cgroup("cpu.max")
    if quota is not None:
        share, _, period = quota.partition(" ")
        return int(share) / int(period) if share.isdecimal() and period.isdecimal() else None
    used, each = _cgroup("cpu/cpu.cfs_quota_us"), _cgroup("cpu/cpu.cfs_period_us")
    if used is None or each is None or int(used) <= 0:
        return None
    return int(used) / int(each)


def _cgroup(*names: str) -> str | None:
    """The first of the files that is there; of version 2, then of version 1."""
    for name in names:
        try:
            return Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
    return None
