"""JSON lines.

In:  lines, as bytes.
Out: a `Row` for each that is an object, a `Bad` for any other; blank lines are passed over.

    list(read_jsonl([b'{"a": NaN}\\n', b'{"a": 1, "a": 2}\\n']))
    # [Row(1, {"a": None}), Bad(2, "the key `a` comes more than once in one object", '{"a": 1, "a": 2}')]
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ift.data.formats.rows import DEPTH, MARK, TOO_DEEP, Bad, Row, checked, text_of
from ift.tasks.strict_json import DECODER, Unfit

_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # of a NUL, or of half a surrogate pair


def read_jsonl(lines: Iterable[bytes]) -> Iterator[Row | Bad]:
    """The quick way is for good lines; what fails there is read again with care."""
    decode, suspect = DECODER.raw_decode, _ESCAPE.search
    for number, line in enumerate(lines, start=1):
        try:
            text = line.strip().decode()
            value, end = decode(text)
        except (RecursionError, ValueError):
            value, end, text = None, -1, ""
        if end == len(text) and type(value) is dict:
            row = Row(number, value)
            # only an escape can bring a surrogate or a NUL into a line of good UTF-8
            unsure = suspect(line) or line.count(b"[") + line.count(b"{") > DEPTH
            yield checked(row) if unsure else row
        elif (other := _jsonl_row(number, line)) is not None:
            yield checked(other)


def _jsonl_row(number: int, line: bytes) -> Row | Bad | None:
    """What a line holds that is not plainly an object; None for a blank one."""
    text = text_of(line).rstrip("\r\n").removeprefix(MARK)
    if not text.strip():
        return None
    try:
        value = DECODER.decode(text)
    except (RecursionError, ValueError) as error:
        if "\0" in text:
            at = text.index("\0") + 1
            return Bad(number, f"not JSON: a NUL byte at column {at}", text)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return Bad(number, why(error) + column, text)
    return Row(number, value) if isinstance(value, dict) else Bad(number, no_object(value), text)


def why(error: Exception) -> str:
    """What an error of `DECODER` says about the text."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')}"
    if isinstance(error, Unfit):
        return str(error)
    return f"it {TOO_DEEP}" if isinstance(error, RecursionError) else "a number of too many digits"


def no_object(value: Any) -> str:
    """What a JSON value is that should have been an object."""
    names = {str: "text", list: "list", bool: "true or false", type(None): "null"}
    return f"a JSON {names.get(type(value), 'number')}, not an object"
