"""Byte ranges of a file, RFC 9110 section 14. Pure."""

import re
from typing import Final

_ONE_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z", re.ASCII)


class UnsatisfiableRangeError(ValueError):
    """The file has not one byte of what was asked for."""


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return (first, beyond the last) of the bytes asked for, of a file of *size* bytes.

    None where the whole file is to be sent: the header is malformed or asks for several ranges, which a server may
    ignore. Raises: UnsatisfiableRangeError if the range begins beyond the end or is an empty suffix.
    """
    match = _ONE_RANGE.match(header.replace(" ", "").lower())
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.group(1, 2)
    if not first:
        length = min(int(last), size)
        start, end = size - length, size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise UnsatisfiableRangeError(f"bytes */{size}")
    return start, end
