"""What this machine's processor does by itself and what it emulates, and the memory of this process."""

import platform
import resource
import sys

import torch


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16, AMX or Arm's); emulation is far slower."""
    if platform.machine() in ("x86_64", "AMD64"):
        # oneDNN's own question also says yes to AVX-512 without bf16, which emulates it.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def peak_resident() -> int:
    """The most bytes of memory that this process had at once."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024  # there in bytes, elsewhere in KiB
