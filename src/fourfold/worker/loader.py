"""Loads engines on a thread of its own, so that those that are there go on stepping meanwhile."""

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from fourfold.engine.base import UpscaleEngine
from fourfold.engine.full_memory import comes_from_want_of_memory
from fourfold.errors import FourfoldError, ModelUnavailableError, OutOfMemoryError


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a load ended."""

    model_id: str
    seconds: float
    engine: UpscaleEngine | None  #: None: it failed
    error: FourfoldError | None = None


class Loader:
    """Loads one model after another; what ends is handed to *arrived*, on the loader's thread.

    Where memory is short for a moment the running jobs are as likely to meet that as the load; the load fails alone.
    """

    def __init__(self, load: Callable[[str], UpscaleEngine], arrived: Callable[[Arrival], None]) -> None:
        self._load = load
        self._arrived = arrived
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="loader", daemon=True).start()

    def ask(self, model_id: str) -> None:
        """Have *model_id* loaded after those that were asked for before."""
        self._wanted.put(model_id)

    def _run(self) -> None:
        while True:
            model_id = self._wanted.get()
            started = time.monotonic()
            engine: UpscaleEngine | None = None
            error: FourfoldError | None = None
            try:
                engine = self._load(model_id)
            except FourfoldError as exc:
                error = exc
            except Exception as exc:  # noqa: BLE001  # the edge of the thread: this model alone cannot be had
                if comes_from_want_of_memory(exc):
                    error = OutOfMemoryError(f"there is no memory left to load {model_id}")
                else:
                    traceback.print_exc()
                    error = ModelUnavailableError(f"{model_id} cannot be loaded: {type(exc).__name__}: {exc}")
            self._arrived(Arrival(model_id, time.monotonic() - started, engine, error))
