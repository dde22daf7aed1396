"""Run a network of one number type on the CPU by OpenVINO: one tile at a time, stoppable, in bounded memory.

A small tile goes through the network in one go, in a model compiled once for any size. For a large one OpenVINO would
need two to five times the memory that way, so it goes through pieces compiled for exactly its size; each gives its
memory back before the next one runs, and the enlarging tail runs band by band.
"""

import ctypes
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from fourfold.engine.base import SCALE, Pixels8or16
from fourfold.engine.graph import ANY_SIZE, PEAK, build_model
from fourfold.engine.pieces import Network, Piece
from fourfold.engine.tiling import Box
from fourfold.errors import CancelledByClientError, ModelUnavailableError, WorkerFailedError

BAND_PIXELS: Final = 32_768
"""Input pixels of one band of the tail; half in float32. Smaller: more rows are computed twice. Larger: more memory."""

WARM_PIXELS: Final = 128 * 128
"""After a tile of up to this size its memory is kept for the next one."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How one network is run best."""

    parts: int  #: the pieces of a large tile; each is one step
    small_pixels: int  #: up to this size, halo included, a tile runs in one go; half in float32


class Inference:
    """One network in one number type. One thread runs it; ``stop`` may come from any other."""

    def __init__(self, network: Network, *, is_bf16: bool, threads: int, tuning: Tuning) -> None:
        """Compile what small tiles need.

        Raises:
            ModelUnavailableError: OpenVINO cannot compile the network.
        """
        self._network = network
        self._body, self._tail = network.cut(tuning.parts)
        self._bytes_ratio = 1 if is_bf16 else 2
        self._small_pixels = tuning.small_pixels // self._bytes_ratio
        self._properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",  # OpenVINO's own default is bf16 where it can
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        self._core = ov.Core()
        self._lock = threading.Lock()
        self._running: Any = None
        self._whole_model = self._compile(network.whole(), ANY_SIZE, is_last=True)
        self._tail_model: Any = None
        self._body_size = ANY_SIZE
        self._body_models: list[Any] = []

    def steps(self, height: int, width: int) -> int:
        """Return how many steps a tile of this size takes."""
        return 1 if height * width <= self._small_pixels else len(self._body)

    def run(
        self, window: Pixels8or16, keep: Box, *, is_stopped: Callable[[], bool]
    ) -> Generator[None, None, Pixels8or16]:
        """Upscale *window* and return its part *keep*; yield between two steps.

        Args:
            window: ``[h, w, 3]``.
            keep: the wanted part in the window's own input pixels.
            is_stopped: asked each time before the processor is set to work.

        Returns:
            ``[4 * keep.height, 4 * keep.width, 3]`` of the window's type.

        Raises:
            CancelledByClientError: *is_stopped* said so.
            WorkerFailedError: OpenVINO failed, or ``stop`` was called.
            ModelUnavailableError: OpenVINO cannot compile the network for this size.
        """
        height, width = window.shape[:2]
        peak = np.float32(np.iinfo(window.dtype).max)
        alive = {self._network.picture: np.ascontiguousarray(window.transpose(2, 0, 1)[None], np.float32) / peak}
        result = np.empty((keep.height * SCALE, keep.width * SCALE, 3), window.dtype)
        if height * width <= self._small_pixels:
            (made,) = self._infer(self._whole_model, {**alive, PEAK: peak.reshape(1)}, is_stopped)
            _store(made, result, keep.left, keep.top)
            del made
            if height * width > WARM_PIXELS:
                self.release()
            return result

        self.release()
        for i, piece in enumerate(self._body):
            if i > 0:
                yield
            model = self._body_model(i, (height, width))
            inputs = {blob: alive[blob] for blob in piece.entering}
            if i == len(self._body) - 1 and self._tail is None:
                inputs[PEAK] = peak.reshape(1)
            alive |= zip(piece.leaving, self._infer(model, inputs, is_stopped), strict=True)
            del inputs
            _give_back(model)
            later = [*self._body[i + 1 :], *([self._tail] if self._tail else [])]
            wanted = {blob for piece in later for blob in piece.entering} or set(piece.leaving)
            alive = {blob: array for blob, array in alive.items() if blob in wanted}
        (made,) = alive.values()
        if self._tail is None:
            _store(made, result, keep.left, keep.top)
        else:
            self._run_tail(self._tail, made, keep, result, peak, is_stopped)
        return result

    def stop(self) -> None:
        """Stop what runs just now, if anything does; within some 10 ms ``run`` raises."""
        with self._lock:
            if self._running is not None:
                self._running.cancel()

    def release(self) -> None:
        """Give back the memory that was kept for the next tile."""
        _give_back(self._whole_model)

    def _run_tail(
        self,
        tail: Piece,
        made: NDArray[np.float32],
        keep: Box,
        result: Pixels8or16,
        peak: np.float32,
        is_stopped: Callable[[], bool],
    ) -> None:
        """Fill *result* with what the tail makes of *made*, band by band."""
        if self._tail_model is None:
            self._tail_model = self._compile(tail, ANY_SIZE, is_last=True)
        (blob,) = tail.entering
        height, width = made.shape[2:]
        left, right = max(0, keep.left - tail.reach_px), min(width, keep.right + tail.reach_px)
        rows = max(1, BAND_PIXELS // self._bytes_ratio // (right - left))
        for start in range(keep.top, keep.bottom, rows):
            stop = min(start + rows, keep.bottom)
            top, bottom = max(0, start - tail.reach_px), min(height, stop + tail.reach_px)
            band = np.ascontiguousarray(made[:, :, top:bottom, left:right])
            (pixels,) = self._infer(self._tail_model, {blob: band, PEAK: peak.reshape(1)}, is_stopped)
            into = result[(start - keep.top) * SCALE : (stop - keep.top) * SCALE]
            _store(pixels, into, keep.left - left, start - top)
        _give_back(self._tail_model)

    def _body_model(self, i: int, size: tuple[int, int]) -> Any:
        """Return the model of the body's piece *i* for tiles of *size*; those of the size before are given up."""
        if size != self._body_size:
            self._body_size, self._body_models = size, []
        if i == len(self._body_models):
            is_last = i == len(self._body) - 1 and self._tail is None
            self._body_models.append(self._compile(self._body[i], size, is_last=is_last))
        return self._body_models[i]

    def _compile(self, piece: Piece, size: tuple[int, int], *, is_last: bool) -> Any:
        try:
            return self._core.compile_model(build_model(piece, size=size, is_last=is_last), "CPU", self._properties)
        except RuntimeError as exc:
            raise ModelUnavailableError(f"OpenVINO cannot compile the network: {exc}") from exc

    def _infer(
        self, model: Any, inputs: Mapping[str, NDArray[np.float32]], is_stopped: Callable[[], bool]
    ) -> list[NDArray[np.float32]]:
        """Return the outputs of *model*; they stay valid after its memory is released."""
        request = model.create_infer_request()
        with self._lock:
            if is_stopped():
                raise CancelledByClientError("the job was cancelled")
            request.start_async(dict(inputs), share_inputs=True)
            self._running = request
        try:
            request.wait()
        except RuntimeError as exc:
            raise WorkerFailedError(f"OpenVINO failed: {exc}") from exc
        finally:
            with self._lock:
                self._running = None
        return [tensor.data for tensor in request.output_tensors]


def _store(made: NDArray[np.float32], result: Pixels8or16, left: int, top: int) -> None:
    """Fill *result* from ``made[1, 3, h, w]``, whole numbers, that begins *left*, *top* input pixels before it."""
    height, width = result.shape[:2]
    planes = made[0, :, top * SCALE : top * SCALE + height, left * SCALE : left * SCALE + width]
    for channel, plane in enumerate(planes):
        np.copyto(result[..., channel], plane, casting="unsafe")


def _give_back(model: Any) -> None:
    """Have *model* free what its runs needed, and the C library return it to the system."""
    model.release_memory()
    # glibc keeps freed blocks of up to 32 MB for itself: a quarter gigabyte after a tile of 400 x 300, measured.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
