"""What an error says, in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of its message; its kind, where that is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
