"""What a device can do. The CPU alone gets the tricks made for it; a feature is used where it is known to be there.

Devices that are neither CPU nor CUDA (MPS, XPU, NPU) take the plain path: whole chunks, fresh memory, fp32.

What makes the loss fast on a CPU is threads that take whole blocks of rows, and memory kept from call to call. torch
splits each operation over its threads and waits for all of them, so a chain of operations on small blocks waits
hundreds of times; on a machine whose cores are busy that made the sweep ten times slower. Here each thread takes whole
blocks through the whole chain by itself, and there is one wait at the end. Fresh memory is cleared by the system page
by page as it is touched: the first projection into 128 MiB of it takes 260 ms where one into memory that was used
before takes 216 (682 tokens, V = 49,152, D = 576). So a process that computed a loss holds one chunk's logits until it
ends.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# fp32 logits held at once. Larger chunks feed the products better: with 96 MiB the loss took 2 to 4% longer (two cores,
# V = 49,152, D = 576, N = 2,048).
CPU_CHUNK_BYTES = 128 * 2**20
CUDA_CHUNK_TOKENS = 4096
# Timed nowhere: their memory is often the system's, shared with the model. 884 tokens at V = 151,936.
ACCELERATOR_CHUNK_BYTES = 512 * 2**20


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that many numbers may be added up in: float64 where the device surely has it, else fp32.

    MPS has no float64, and XPU and NPU only in part. There sums are fp32 and must not be running sums of many terms.
    """
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def multiplies_16_bit_into_fp32(device: torch.device) -> bool:
    """Say whether `torch.mm(..., out_dtype=torch.float32)` exists, which adds 16-bit products up in fp32: on CUDA."""
    return device.type == "cuda"


def cpu_multiplies_bf16() -> bool:
    """Say whether this machine's CPU has instructions for products in bf16."""
    # Private, and not there in every version; without them fp32 is what is left.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def default_chunk_size(device: torch.device, vocab_size: int) -> int:
    """Return how many tokens' fp32 logits to hold at once where the caller does not say."""
    if device.type == "cuda":
        return CUDA_CHUNK_TOKENS
    chunk_bytes = CPU_CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return max(64, chunk_bytes // (4 * vocab_size))


# Logits between the end of a row and the next. Rows a power of two apart compete for the same cache lines: with 16 more
# the projection takes 215 ms in place of 257.
_ROW_PADDING = 16

_kept: list[Tensor] = []  # at most one; a list, since its pop is atomic where several threads compute losses

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


def take_logits_memory(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory of at least `rows` rows, `(R, columns + padding)`, the padding zero; nobody else has it."""
    try:
        memory = _kept.pop()
    except IndexError:
        memory = None
    width = columns + _ROW_PADDING
    wanted = (width, dtype, device)
    if memory is not None and memory.shape[0] >= rows and (memory.shape[1], memory.dtype, memory.device) == wanted:
        return memory
    del memory  # before the larger one is made
    with torch.inference_mode(False):  # or a later call outside of inference mode could not write to it
        memory = torch.empty((rows, width), dtype=dtype, device=device)
    memory[:, columns:] = 0.0
    return memory


def give_back_logits_memory(memory: Tensor) -> None:
    """Keep the memory for the next call, in place of what is kept."""
    _kept[:] = [memory]
