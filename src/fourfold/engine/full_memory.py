"""Recognise want of memory in what a runtime raises; torch has a class for it only where it asked a GPU itself.

Torch is not imported for it: who only loads models may be without.
"""

import errno
from typing import Final

_SIGNS: Final = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",  # the driver's, for a kernel's code
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN's, when there is room for none of its workspaces
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether *exc* says that memory ran out."""
    return (
        isinstance(exc, MemoryError)
        or type(exc).__name__ == "OutOfMemoryError"
        or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM)
        or any(sign in str(exc) for sign in _SIGNS)
    )


def comes_from_want_of_memory(exc: BaseException | None) -> bool:
    """Whether *exc*, or what a library wrapped in it, says so."""
    while exc is not None:
        if is_out_of_memory(exc):
            return True
        exc = exc.__cause__ or exc.__context__
    return False
