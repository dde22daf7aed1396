"""Byte ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.gateway.ranges import UnsatisfiableRangeError, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-", (10, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes = 5 - 6", (5, 7)),
        ("BYTES=5-6", (5, 7)),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("bytes=9-3", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes", None),
        ("", None),
        ("bytes=0x1-2", None),
        ("bytes=\u0661-\u0662", None),
    ],
)
def test_a_range_is_read_or_ignored(header: str, expected: tuple[int, int] | None) -> None:
    """One well-formed range is read; what a server may ignore is ignored."""
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999999999999-"])
def test_a_range_beyond_the_end_is_refused(header: str) -> None:
    """The refusal carries what stands in Content-Range."""
    with pytest.raises(UnsatisfiableRangeError, match=r"bytes \*/100"):
        parse_range(header, 100)


@given(header=st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True), size=st.integers(1, 5000))
def test_a_part_is_never_empty_and_never_outside(header: str, size: int) -> None:
    """Whatever is asked for, the part lies inside the file."""
    try:
        part = parse_range(header, size)
    except UnsatisfiableRangeError:
        return
    assert part is None or 0 <= part[0] < part[1] <= size
