"""What a device can do. The CPU alone gets the tricks made for it; a feature is used where it is known to be there.

Devices that are neither CPU nor CUDA (MPS, XPU, NPU) take the plain path: whole chunks, fresh memory, fp32.
"""

import torch

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


def default_chunk_size(device: torch.device, vocab_size: int) -> int:
    """Return how many tokens' fp32 logits to hold at once where the caller does not say."""
    if device.type == "cuda":
        return CUDA_CHUNK_TOKENS
    chunk_bytes = CPU_CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return max(64, chunk_bytes // (4 * vocab_size))
