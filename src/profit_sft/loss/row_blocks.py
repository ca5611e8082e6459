"""Elementwise work on the rows of a matrix, a few rows at a time, on several threads.

torch splits each operation over its threads and waits for all of them, so a chain of operations on small blocks waits
hundreds of times; on a machine whose cores are busy that made the sweep ten times slower. Here each thread takes whole
blocks through the whole chain by itself, and there is one wait at the end.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = threading.Lock()


def in_blocks(work: Callable[[slice], object], count: int, *, rows_per_block: int) -> None:
    """Call `work` once for each slice of `rows_per_block` rows of `count`, in no order, on torch's number of threads.

    Args:
        work: Must touch the rows of its slice alone.
        count: Rows in all.
        rows_per_block: Rows in a slice, at least 1.
    """
    slices = [slice(start, min(start + rows_per_block, count)) for start in range(0, count, rows_per_block)]
    threads = min(torch.get_num_threads(), len(slices))
    if threads <= 1:
        for part in slices:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()

    def some(first: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for part in slices[first::threads]:
                work(part)

    list(_threads().map(some, range(threads)))


def _threads() -> ThreadPoolExecutor:
    """Return a pool of torch's number of threads, each of which runs its operations alone."""
    global _pool, _pool_size
    wanted = torch.get_num_threads()
    with _lock:
        if _pool is None or _pool_size != wanted:
            started = threading.Barrier(wanted + 1)
            pool = ThreadPoolExecutor(wanted, thread_name_prefix="profit-sft-rows")
            for _ in range(wanted):
                pool.submit(_run_alone, started)
            started.wait()
            # The workers set their own number of threads to one; what they set for threads to come is undone here.
            torch.set_num_threads(wanted)
            _pool, _pool_size = pool, wanted
        return _pool


def _run_alone(started: threading.Barrier) -> None:
    torch.set_num_threads(1)
    started.wait()


def _forget_threads() -> None:
    """Start over in a forked child, which has the pool but none of its threads, and would wait for them forever."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_threads)
