"""The Real-ESRGAN family (RRDBNet and SRVGG networks) on the CPU, by OpenVINO."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov

from fourfold.engine.base import EngineCard, EngineEvent, EngineJob, Pixels8or16, Precision, RegionDone
from fourfold.engine.checks import check_image
from fourfold.engine.graph import build_model
from fourfold.engine.ncnn_files import read_network
from fourfold.engine.settings import EngineSettings
from fourfold.engine.tiling import Tile, plan_tiles
from fourfold.engine.turns import Turns
from fourfold.engine.weights import read_weights
from fourfold.errors import OutOfMemoryError, WorkerFailedError


class RealEsrganEngine:
    """Runs one network tile by tile."""

    def __init__(self, card: EngineCard, *, settings: EngineSettings) -> None:
        self._card = card
        self._settings = settings
        self._requests: dict[str, Any] = {}
        self._active: Any = None
        self._turns = Turns(stop_step=self._stop)
        self._layers = read_network(*(read_weights(file) for file in card.weights))
        self._request(self._hint(Precision.AUTO, np.dtype(np.uint8)))

    @property
    def card(self) -> EngineCard:
        return self._card

    @property
    def busy(self) -> bool:
        return self._turns.busy

    def admit(self, job: EngineJob) -> None:
        check_image(job.image)
        height, width = job.image.shape[:2]
        budget = self._settings.memory_budget_bytes
        most = 512 * 512
        if budget is not None:
            most = min(most, (budget - self._card.fixed_bytes) // self._card.bytes_per_input_pixel)
        tiles = plan_tiles(
            width, height, margin_px=self._card.margin_px, max_tile_pixels=most, min_core_px=self._card.core_px
        )
        if tiles is None:
            raise OutOfMemoryError("too small a budget")
        hint = self._hint(job.precision, job.image.dtype)
        notes = {
            "precision": "bf16" if hint == "bf16" else "float32",
            "tiles": len(tiles),
            "margin_px": self._card.margin_px,
        }
        self._turns.admit(job.job_id, self._work(job, tiles, hint), total=len(tiles), notes=notes)

    def step(self) -> Sequence[EngineEvent]:
        return self._turns.step()

    def cancel(self, job_id: str) -> None:
        self._turns.cancel(job_id)

    def close(self) -> None:
        self._turns = Turns()
        self._requests.clear()

    def _hint(self, precision: Precision, dtype: np.dtype[Any]) -> str:
        auto = precision is Precision.AUTO and self._settings.precision is Precision.AUTO
        return "bf16" if auto and self._settings.has_bf16 and dtype == np.uint8 else "f32"

    def _request(self, hint: str) -> Any:
        if hint not in self._requests:
            model = build_model(self._layers, name=self._card.model_id)
            compiled = ov.Core().compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "INFERENCE_NUM_THREADS": self._settings.threads,
                    "NUM_STREAMS": 1,
                    "PERFORMANCE_HINT": "LATENCY",
                    "ENABLE_CPU_PINNING": False,
                },
            )
            self._requests[hint] = compiled.create_infer_request()
        return self._requests[hint]

    def _stop(self) -> None:
        if self._active is not None:
            self._active.cancel()

    def _work(self, job: EngineJob, tiles: Sequence[Tile], hint: str) -> Iterator[Sequence[RegionDone]]:
        scale = self._card.scale
        for tile in tiles:
            core, window = tile.core, tile.window
            pixels = job.image[window.top : window.bottom, window.left : window.right]
            out = self._infer(hint, pixels)
            x, y = (core.left - window.left) * scale, (core.top - window.top) * scale
            kept = out[y : y + core.height * scale, x : x + core.width * scale]
            yield [RegionDone(job.job_id, core.left * scale, core.top * scale, kept)]

    def _infer(self, hint: str, pixels: Pixels8or16) -> Pixels8or16:
        top = np.iinfo(pixels.dtype).max
        data = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(top)
        request = self._request(hint)
        if self._turns.is_cancelled():
            return np.zeros((0, 0, 3), pixels.dtype)
        self._active = request
        try:
            request.start_async({0: data}, share_inputs=True)
            request.wait()
        except RuntimeError as exc:
            raise WorkerFailedError(f"inference failed: {exc}") from exc
        finally:
            self._active = None
        out = request.get_output_tensor().data[0].transpose(1, 2, 0)
        return np.rint(np.clip(out, 0, 1) * np.float32(top)).astype(pixels.dtype)
