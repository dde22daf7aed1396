"""Run a network on one tile at a time, in steps and in bounded memory.

A small tile goes through the network in one go, in a model compiled once for any size. For a large one OpenVINO would
need two to five times the memory that way, so it goes through pieces compiled for exactly its size; each gives its
memory back before the next one runs, and the enlarging tail runs band by band.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fourfold.engine.base import SCALE, Pixels8or16
from fourfold.engine.graph import ANY_SIZE, PEAK
from fourfold.engine.openvino_cpu import Arrays, Processor, give_back
from fourfold.engine.pieces import Network, Piece
from fourfold.engine.tiling import Box
from fourfold.errors import WorkerError

BAND_PIXELS: Final = 32_768
"""Input pixels of one band of the tail; half in float32. Smaller: more rows are computed twice. Larger: more memory."""

IsStopped = Callable[[], bool]
Pause = tuple[()]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How one network is run best."""

    parts: int  #: the pieces of a large tile; each is one step
    small_pixels: int  #: up to this size, margin included, a tile runs in one go; half in float32
    warm_pixels: int = 0  #: up to this size a tile's memory is kept for the next one; half in float32


class Inference:
    """One network in one number type. One thread runs it; ``stop`` may come from any other."""

    def __init__(self, network: Network, *, is_bf16: bool, threads: int, tuning: Tuning) -> None:
        """Compile what small tiles need.

        Raises:
            ModelUnavailableError: OpenVINO cannot compile the network.
        """
        self._whole = network.whole()
        self._picture = network.picture
        self._body, self._tail = network.cut(tuning.parts)
        bytes_ratio = 1 if is_bf16 else 2
        self._small_pixels = tuning.small_pixels // bytes_ratio
        self._warm_pixels = tuning.warm_pixels // bytes_ratio
        self._band_pixels = BAND_PIXELS // bytes_ratio
        self._processor = Processor(is_bf16=is_bf16, threads=threads)
        self._body_size = ANY_SIZE
        self._body_models: list[Any] = []
        self._whole_model: Any = None
        self._tail_model: Any = None
        self._warm_up()

    def steps(self, height: int, width: int) -> int:
        """Return how many steps a tile of this size takes."""
        return 1 if height * width <= self._small_pixels else len(self._body)

    def run(
        self, window: Pixels8or16, keep: Box, *, is_stopped: IsStopped, is_tight: bool = False
    ) -> Generator[Pause, None, Pixels8or16]:
        """Upscale *window* and return its part *keep*; yield nothing between two steps.

        Args:
            window: ``[h, w, 3]``.
            keep: the wanted part in the window's own input pixels.
            is_stopped: asked each time before the processor is set to work.
            is_tight: go through pieces whatever the size, as for a large tile: slower, in less memory.

        Returns:
            ``[4 * keep.height, 4 * keep.width, 3]`` of the window's type.

        Raises:
            CancelledByClientError: *is_stopped* said so.
            OutOfMemoryError: there is no memory left for it.
            WorkerFailedError: OpenVINO failed, or ``stop`` was called.
            ModelUnavailableError: OpenVINO cannot compile the network for this size.
        """
        height, width = window.shape[:2]
        peak = np.array([np.iinfo(window.dtype).max], np.float32)
        picture = np.ascontiguousarray(window.transpose(2, 0, 1)[None], np.float32) / peak
        result = np.empty((keep.height * SCALE, keep.width * SCALE, 3), window.dtype)
        if height * width <= self._small_pixels and not is_tight:
            self._warm_up()
            (made,) = self._infer(self._whole_model, {self._picture: picture, PEAK: peak}, is_stopped)
            _store(made, result, keep.left, keep.top)
            if height * width > self._warm_pixels:
                self._give_back_whole()
            return result

        self._give_back_whole()
        made = yield from self._run_body({self._picture: picture}, peak, is_stopped)
        if self._tail is None:
            _store(made, result, keep.left, keep.top)
        else:
            self._run_tail(self._tail, made, peak, keep, result, is_stopped)
        return result

    def stop(self) -> None:
        """Stop what runs just now, if anything does: within some 10 ms ``run`` raises."""
        self._processor.stop()

    def release(self) -> None:
        """Give back what was kept for the next tile, but for the model that small ones need."""
        self._tail_model, self._body_models = None, []
        self._give_back_whole()

    def _give_back_whole(self) -> None:
        if self._whole_model is not None:
            give_back(self._whole_model)

    def _warm_up(self) -> None:
        if self._whole_model is None:
            self._whole_model = self._processor.compile(self._whole, ANY_SIZE, is_last=True)

    def _run_body(
        self, alive: dict[str, NDArray[np.float32]], peak: NDArray[np.float32], is_stopped: IsStopped
    ) -> Generator[Pause, None, NDArray[np.float32]]:
        """Return the one blob that the body makes of those *alive*; yield between its pieces."""
        _, _, height, width = alive[self._picture].shape
        later = [*self._body[1:], *([self._tail] if self._tail else [])]
        for i, piece in enumerate(self._body):
            if i > 0:
                yield ()
            model = self._body_model(i, (height, width))
            inputs = {blob: alive[blob] for blob in piece.entering}
            if not later:
                inputs[PEAK] = peak
            made = self._infer(model, inputs, is_stopped)
            give_back(model)
            alive |= zip(piece.leaving, made, strict=True)
            wanted = {blob for piece in later for blob in piece.entering} if later else set(piece.leaving)
            alive = {blob: array for blob, array in alive.items() if blob in wanted}
            later = later[1:]
        (result,) = alive.values()
        return result

    def _run_tail(
        self,
        tail: Piece,
        made: NDArray[np.float32],
        peak: NDArray[np.float32],
        keep: Box,
        result: Pixels8or16,
        is_stopped: IsStopped,
    ) -> None:
        """Fill *result* with what the tail makes of *made*, band by band."""
        if self._tail_model is None:
            self._tail_model = self._processor.compile(tail, ANY_SIZE, is_last=True)
        (blob,) = tail.entering
        height, width = made.shape[2:]
        left, right = max(0, keep.left - tail.reach_px), min(width, keep.right + tail.reach_px)
        rows = max(1, self._band_pixels // (right - left))
        for start in range(keep.top, keep.bottom, rows):
            stop = min(start + rows, keep.bottom)
            top, bottom = max(0, start - tail.reach_px), min(height, stop + tail.reach_px)
            band = np.ascontiguousarray(made[:, :, top:bottom, left:right])
            (pixels,) = self._infer(self._tail_model, {blob: band, PEAK: peak}, is_stopped)
            into = result[(start - keep.top) * SCALE : (stop - keep.top) * SCALE]
            _store(pixels, into, keep.left - left, start - top)
        give_back(self._tail_model)

    def _body_model(self, i: int, size: tuple[int, int]) -> Any:
        """Return the model of the body's piece *i* for tiles of *size*; those of the size before are given up."""
        if size != self._body_size:
            self._body_size, self._body_models = size, []
        if i == len(self._body_models):
            is_last = i == len(self._body) - 1 and self._tail is None
            self._body_models.append(self._processor.compile(self._body[i], size, is_last=is_last))
        return self._body_models[i]

    def _infer(self, model: Any, inputs: Arrays, is_stopped: IsStopped) -> list[NDArray[np.float32]]:
        """Run *model*. If it is stopped or fails, no model is used again.

        OpenVINO 2026.4 leaves a stopped model for any size in a state in which its next run gives a wrong picture, an
        error or a segmentation fault. (Models for one size survived every stop that was tried; they are not trusted.)
        """
        try:
            return self._processor.run(model, inputs, is_stopped=is_stopped)
        except WorkerError:
            self._whole_model, self._tail_model, self._body_models = None, None, []
            raise


def _store(made: NDArray[np.float32], result: Pixels8or16, left: int, top: int) -> None:
    """Fill *result* from ``made[1, 3, h, w]``, whole numbers, that begins *left*, *top* input pixels before it."""
    height, width = result.shape[:2]
    planes = made[0, :, top * SCALE : top * SCALE + height, left * SCALE : left * SCALE + width]
    for channel, plane in enumerate(planes):
        np.copyto(result[..., channel], plane, casting="unsafe")
