"""How a load can end, told by what is raised in it."""

import queue

import pytest

from fourfold.errors import FourfoldError, ModelUnavailableError, OutOfMemoryError, UnknownModelError
from fourfold.worker.loader import Arrival, Loader


def wrapped() -> OSError:
    """As diffusers wraps whatever it meets."""
    try:
        try:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        except RuntimeError as exc:
            raise OSError("Unable to load weights") from exc
    except OSError as exc:
        return exc


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (UnknownModelError("x"), UnknownModelError),
        (MemoryError(), OutOfMemoryError),
        (OSError(12, "Cannot allocate memory"), OutOfMemoryError),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), OutOfMemoryError),
        (wrapped(), OutOfMemoryError),
        (RuntimeError("a bug"), ModelUnavailableError),
    ],
)
def test_want_of_memory_is_no_fault_of_the_model(raised: Exception, told: type[FourfoldError]) -> None:
    """It passes; any other failure marks the model, and none ends the thread."""
    arrived: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    faults = [raised, KeyError("again")]

    def fail(_: str) -> None:
        raise faults.pop(0)

    loader = Loader(fail, arrived.put)  # type: ignore[arg-type]
    for model_id in ("first", "second"):
        loader.ask(model_id)
    first, second = arrived.get(timeout=10), arrived.get(timeout=10)

    assert type(first.error) is told
    assert (second.model_id, type(second.error)) == ("second", ModelUnavailableError)
