"""The tree of errors: codes that mean one thing each."""

import fourfold.errors as errors
from fourfold.errors import Blame, FourfoldError, Retry, error_for, walk


def test_every_code_is_unique_and_a_word() -> None:
    """A code is never reused for something else."""
    codes = [cls.code for cls in walk()]

    assert len(codes) == len(set(codes))
    assert all(code.replace("_", "").islower() for code in codes)


def test_every_error_is_drawn_in_the_module_docstring() -> None:
    """The drawing is the index; an error missing there would not be found."""
    drawn = errors.__doc__ or ""

    missing = [cls.__name__ for cls in walk() if cls.__name__ not in drawn]

    assert missing == []


def test_a_clients_fault_is_never_retried_and_counts_against_nobody() -> None:
    """Blame is a value, and the two go together."""
    for cls in walk():
        if cls.blame is Blame.CLIENT:
            assert cls.retry is Retry.NEVER and 400 <= cls.http_status < 500


def test_a_code_on_the_wire_gives_its_error_back() -> None:
    """An unknown one gives what the caller says."""
    assert all(type(error_for(cls.code, "m")) is cls for cls in walk())
    assert type(error_for("from_the_future", "m", otherwise=FourfoldError)) is FourfoldError


def test_a_message_falls_back_to_the_docstring() -> None:
    """No error is ever without words."""
    assert errors.NoCapacityError().message.startswith("Every worker")
