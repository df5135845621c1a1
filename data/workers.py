"""How this package starts helper processes.

Plain fork is not an option: the parent may hold an XLA or CUDA runtime with threads and locks, and a forked
child that touches one of those locks waits for ever. Spawn is safe but imports torch again in every child (2
to 4 s each). A fork server is a fresh process without threads that imports torch once; its children start in
milliseconds.
"""

import multiprocessing
import signal
from multiprocessing.context import ForkServerContext

import torch


def worker_context() -> ForkServerContext:
    """The start method for loader workers and shard writers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.loader"])
    return context


def start_worker(_worker: int = 0) -> None:
    """Run first in every child.

    N workers with N threads each would only wait for one another. Ctrl-C reaches the whole process group, but
    the parent must still be able to finish its step and save: it alone decides when its workers end.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
