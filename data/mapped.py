"""Arrays of .npy files as parts of the process's memory, without a descriptor for each.

Python's mmap keeps a descriptor as long as its memory is mapped (before 3.13), and numpy's arrays use that: the 1281
shards of ImageNet would take more than the 1024 that a process may usually have, in each worker. The system call
itself needs it for a moment only.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_FAILED: Final = ctypes.c_void_p(-1).value
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def map_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, read-only; its pages are read when they are used and shared between processes.

    ValueError for what is no array, or one of Python objects (no pickle is ever read); FileNotFoundError, OSError.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is not read")
        read_header = (
            np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        if is_fortran or len(shape) != 1:
            raise ValueError(f"an array of shape {shape} is no list")
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if size - start != shape[0] * dtype.itemsize:
            raise ValueError(f"{size - start} bytes for {shape[0]} entries of {dtype.itemsize}")
        content = _map(file.fileno(), size)
    return np.frombuffer(content, dtype, count=shape[0], offset=start)


def _map(descriptor: int, size: int) -> memoryview:
    address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    block = (ctypes.c_char * size).from_address(address)
    closer = weakref.finalize(block, _LIBC.munmap, address, size)
    closer.atexit = False  # type: ignore[misc]  # arrays may be used to the very end
    return memoryview(block).toreadonly()
