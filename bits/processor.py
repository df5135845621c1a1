"""What this machine's processor does by itself, and what it emulates."""

import platform

import torch


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16, AMX or Arm's); emulation is far slower."""
    if platform.machine() in ("x86_64", "AMD64"):
        # oneDNN's own question also says yes to AVX-512 without bf16, which emulates it.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
