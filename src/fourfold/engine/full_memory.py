"""How torch says that memory ran out: by a class of its own only for a GPU's memory that it asked for itself."""

from typing import Final

import torch

_SIGNS: Final = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",  # the driver's, for a kernel's code
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN's, when there is room for none of its workspaces
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether *exc* says that memory ran out."""
    return isinstance(exc, MemoryError | torch.OutOfMemoryError) or any(sign in str(exc) for sign in _SIGNS)
