"""The processor as OpenVINO drives it: compile a piece of a network, run it, stop it, give its memory back."""

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from fourfold.engine.graph import build_model
from fourfold.engine.pieces import Piece
from fourfold.errors import (
    CancelledByClientError,
    ModelUnavailableError,
    OutOfMemoryError,
    WorkerError,
    WorkerFailedError,
)

_NO_MEMORY: Final = ("Failed to allocate", "bad_alloc", "Resource temporarily unavailable")
"""OpenVINO raises RuntimeError for everything; these words in it mean memory (the last one: for a thread's stack)."""

_TEXT_LENGTH: Final = 300

Arrays = Mapping[str, NDArray[np.float32]]


class Processor:
    """A number of cores, computing in one number type. One thread uses it; ``stop`` may come from any other."""

    def __init__(self, *, is_bf16: bool, threads: int) -> None:
        """*is_bf16*: multiply in bfloat16, else in float32 throughout."""
        self._core = ov.Core()
        self._properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",  # always set: the default is bf16 where it can
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the cores are shared with the rest of the machine
        }
        self._lock = threading.Lock()
        self._running: Any = None

    def compile(self, piece: Piece, size: tuple[int, int], *, is_last: bool) -> Any:
        """Return the model of *piece*, see `build_model`.

        Raises:
            OutOfMemoryError: there is no memory left for it.
            ModelUnavailableError: OpenVINO refuses it.
        """
        try:
            return self._core.compile_model(build_model(piece, size=size, is_last=is_last), "CPU", self._properties)
        except RuntimeError as exc:
            raise _translated(exc, ModelUnavailableError, "OpenVINO cannot compile the network") from exc

    def run(self, model: Any, inputs: Arrays, *, is_stopped: Callable[[], bool]) -> list[NDArray[np.float32]]:
        """Return the outputs of *model*: of one for any size, only until it runs again or its memory is given back.

        Raises:
            CancelledByClientError: *is_stopped*, asked at the last moment, said so; *model* has not run.
            OutOfMemoryError: there is no memory left for it; *model* must not be used again.
            WorkerFailedError: OpenVINO failed, or ``stop`` came; *model* must not be used again.
        """
        request = model.create_infer_request()
        outputs = []
        for i, port in enumerate(model.outputs):
            if port.partial_shape.is_static:
                outputs.append(np.empty(tuple(port.shape), np.float32))
                request.set_output_tensor(i, ov.Tensor(outputs[-1], shared_memory=True))
        with self._lock:
            if is_stopped():
                raise CancelledByClientError("the job was cancelled")
            request.start_async(dict(inputs), share_inputs=True)
            self._running = request
        try:
            request.wait()
        except RuntimeError as exc:
            raise _translated(exc, WorkerFailedError, "OpenVINO failed") from exc
        finally:
            with self._lock:
                self._running = None
        return outputs or [tensor.data for tensor in request.output_tensors]

    def stop(self) -> None:
        """Stop what runs just now, if anything does: within some 10 ms ``run`` raises."""
        with self._lock:
            if self._running is not None:
                self._running.cancel()


def _translated(exc: RuntimeError, otherwise: type[WorkerError], what: str) -> WorkerError:
    """Return our error for *exc*: its text is many lines, of which the last ones say what happened."""
    text = " ".join(str(exc).split())[-_TEXT_LENGTH:]
    if any(words in text for words in _NO_MEMORY):
        return OutOfMemoryError(f"{what}, for want of memory: {text}")
    return otherwise(f"{what}: {text}")


def give_back(model: Any) -> None:
    """Have *model* free what its runs needed, and the C library return it to the system."""
    model.release_memory()
    # glibc keeps freed blocks of up to 32 MB for itself: a quarter gigabyte after a tile of 400 x 300, measured.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
