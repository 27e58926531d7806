"""What a reader yields: a `Row`, or a `Bad` in place of one that is not fit for use.

In:  a row as it was read, whose values may hold anything that its format allows.
Out: the row, or a `Bad` that says what is wrong with it.

    checked(Row(3, {"text": "a\\0b"}))    # Bad(3, "`text` holds a NUL character", "a\\0b")
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

from ift.errors import IftError

QUOTED = 500  # characters of a bad row that are kept
_REASON = 200  # characters of a reason
DEPTH = 100  # levels of lists and objects in one another; what walks a row later recurses
TOO_DEEP = f"is nested more than {DEPTH} levels deep"
MARK = "\ufeff"  # byte order mark; a file put together of several has one in the middle as well
CUT = "the file ends in the middle: the rows from here on are missing"


class Empty(IftError):
    """A file without a single row: a mistake on its own, to be passed over among others."""


@dataclass(frozen=True)
class Row:
    """One row: the line it begins on, from 1, and its values by column; `item` counts where lines say little."""

    line: int
    values: dict[str, Any]
    item: int | None = None


@dataclass(frozen=True)
class Bad:
    """A row set aside: the line, why (one short line), and its beginning; both can be written down as UTF-8."""

    line: int
    reason: str
    text: str
    item: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", short(self.reason))
        object.__setattr__(self, "text", self.text[:QUOTED].encode("utf-8", "replace").decode("utf-8"))


def short(reason: str) -> str:
    """One line, its middle left out where it is long: what it quotes may be anything."""
    if len(reason) > 10 * _REASON:  # of a text of megabytes no copies
        reason = reason[: 5 * _REASON] + reason[-5 * _REASON :]
    line = "".join(c if c.isprintable() else "?" for c in " ".join(reason.split()))
    return line if len(line) <= _REASON else f"{line[: _REASON - 63]} … {line[-60:]}"


def checked(row: Row | Bad) -> Row | Bad:
    """The row, or why its values are not fit for use."""
    if isinstance(row, Bad):
        return row
    for name, value in row.values.items():
        if flaw := _flaw(name):
            reason = f"the column name `{name}` {flaw}"
        elif flaw := _flaw(value):
            reason = f"`{name}` {flaw}"
        else:
            continue
        return Bad(row.line, reason, str(value), row.item)
    return row


def _flaw(value: Any, levels: int = DEPTH) -> str:
    """What is wrong with a value and all within it; nothing where it is fit for use."""
    if isinstance(value, str):
        return "" if value.isascii() and "\0" not in value else flaw_of_text(value)
    if not isinstance(value, dict | list):
        return ""
    if not levels:
        return TOO_DEEP
    for child in chain(value, value.values()) if isinstance(value, dict) else value:
        if flaw := _flaw(child, levels - 1):
            return flaw
    return ""


def flaw_of_text(text: str) -> str:
    """What is wrong with a text; nothing where it is whole."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # the upper ones of 256 stand for bytes that could not be decoded
        return "is not UTF-8" if 0xDC80 <= code <= 0xDCFF else f"holds half a character (\\u{code:04x})"
    return ""


def text_of(line: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates, which `_flaw` finds: they do not end the file."""
    return line.decode("utf-8", "surrogateescape")


def bytes_of(line: str) -> bytes:
    """The bytes that `text_of` made a text of."""
    return line.encode("utf-8", "surrogateescape")
