"""Memory for a chunk's logits, kept from one call of the loss to the next.

On the CPU fresh memory is cleared by the system page by page as it is touched: the first projection into 128 MiB of it
takes 260 ms where one into memory that was used before takes 216 (682 tokens, V = 49,152, D = 576). So a process that
computed a loss holds one chunk's logits until it ends.
"""

import torch
from torch import Tensor

# Logits between the end of a row and the next. Rows a power of two apart compete for the same cache lines: with 16 more
# the projection takes 215 ms in place of 257.
_ROW_PADDING = 16

_kept: list[Tensor] = []  # at most one; a list, since its pop is atomic where several threads compute losses


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
