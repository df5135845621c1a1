"""How this package starts helper processes.

Plain fork is not an option: the parent may hold an XLA or CUDA runtime with threads and locks, and a forked
child that touches one of those locks waits for ever. Spawn is safe but imports torch again in every child (2
to 4 s each). A fork server is a fresh process without threads that imports torch once; its children start in
milliseconds.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

import torch


def worker_context() -> ForkServerContext:
    """The start method for loader workers and shard writers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.loader"])
    _start_server()
    atexit.unregister(_kill_workers)
    atexit.register(
        _kill_workers
    )  # runs before multiprocessing's own exit handler, which was registered earlier
    return context


def _start_server() -> None:
    """Starts the fork server, if it does not run yet, deaf to SIGINT and SIGTERM, as its children will be.

    Ctrl-C and a cluster manager's SIGTERM reach every process of a job. The parent then saves its state, for which it
    may need a batch more; a server, or a child that has not come to `start_worker` yet, that died of it would fail that
    save. They are blocked here for a moment, not ignored: what comes now comes a moment later.
    """
    resource_tracker.ensure_running()  # which unblocks them when it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(_worker: int = 0) -> None:
    """Run first in every child.

    N workers with N threads each would only wait for one another. Ctrl-C, and a cluster's SIGTERM, reach the
    whole process group, but the parent must still be able to finish its step and save: it alone decides when
    its workers end. (torch installs its own SIGTERM handler in a worker just before this runs.)
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when the process that uses it is gone. torch watches the fork server instead, which the
    workers themselves keep alive: after a kill -9 all of them would stay for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "start_worker runs in a child"
    connection.wait([parent.sentinel])
    os._exit(1)


def _kill_workers() -> None:
    # At a crash the traceback still holds the loader, and multiprocessing would wait for workers deaf to SIGTERM.
    for child in multiprocessing.active_children():
        child.kill()
