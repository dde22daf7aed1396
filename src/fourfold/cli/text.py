"""Names and messages made fit for a terminal."""

from typing import Final

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: object) -> str:
    """Return *text* on one line, without what a terminal would obey or cannot encode.

    A file's name may hold escape sequences, line breaks and, as lone surrogates, bytes that are no text at all.
    """
    return "".join(char if char.isprintable() else _REPLACEMENT for char in str(text))
