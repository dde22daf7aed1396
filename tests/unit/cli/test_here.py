"""Pictures on their owner's machine."""

from fourfold import config
from fourfold.cli.here import for_own_pictures


def test_limits_against_strangers_do_not_hold_for_ones_own_pictures() -> None:
    """A large picture on a CPU takes longer than a server lets anybody wait."""
    worker = for_own_pictures(config.load(environ={})).worker

    assert (worker.limits.input_pixels, worker.job_timeout_s) == (100_000_000, 604_800)


def test_limits_that_somebody_set_do() -> None:
    """Wherever they are set."""
    flags = {"worker.limits.input_pixels": 5, "worker.job_timeout_s": 7}
    worker = for_own_pictures(config.load(environ={}, flags=flags)).worker

    assert (worker.limits.input_pixels, worker.limits.side_px, worker.job_timeout_s) == (5, 2**17, 7)
