"""JSON files: a list of objects, bare or under one key; lists by column; one object; or objects a line after all.

In:  an open text file, and its path for messages.
Out: a `Row` for each object, a `Bad` for each item that is none; `item` counts the items of a list.

    list(read_json(io.StringIO('{"rows": [{"a": 1}, {a: 2}]}'), path))
    # [Row(1, {"a": 1}, 1), Bad(1, "not JSON: Expecting property name enclosed in double quotes", "{a: 2}", 2)]

A bare list may be of any length: it is read a piece at a time.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ift.data.formats.jsonl import no_object, read_jsonl, why
from ift.data.formats.rows import QUOTED, Bad, Row, bytes_of
from ift.errors import IftError
from ift.tasks.strict_json import DECODER, Unfit

_CHUNK = 1 << 20  # characters read at once


def read_json(file: TextIO, path: Path) -> Iterator[Row | Bad]:
    """A list is read item by item. An object around the list is held as text, and lists by column as values."""
    text, start = "", 0
    while start == len(text) and (chunk := file.read(_CHUNK)):
        text += chunk
        start = _past_space(text, 0)
    if text[start : start + 1] == "[":
        scan = _Scan(text, start + 1, 1 + text.count("\n", 0, start), file.read)
        yield from _items(scan)
        if not scan.at_end():
            rest = scan.text[scan.at : scan.at + QUOTED]
            yield Bad(scan.line, "text behind the end of the list", rest)
        return
    text += file.readline() + file.readline()  # to a line's end, and one line more
    if text[start : start + 1] != "{" or _has_object_lines(text[start:]):
        yield from _jsonl_of(chain(io.StringIO(text, newline=""), file))
    else:
        yield from _read_object(text + file.read(), start, path)


def _jsonl_of(lines: Iterable[str]) -> Iterator[Row | Bad]:
    return read_jsonl(map(bytes_of, lines))


def _has_object_lines(text: str) -> bool:
    """Whether the first line is an object of its own, with more lines behind it."""
    first, _, rest = text.partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (RecursionError, ValueError):
        return False


def _read_object(text: str, start: int, path: Path) -> Iterator[Row | Bad]:
    """One object: its list of objects, its lists by column, or itself as a row. Else the lines, to be set aside."""
    shape = _shape(text, start)
    line = 1 + text.count("\n", 0, start)
    value: Any = None
    if shape is None or len(shape.lists) != 1 or shape.lists_alone:
        try:
            value = DECODER.decode(text)
        except Unfit as error:
            yield Bad(line, str(error), text[start : start + QUOTED])
            return
        except (RecursionError, ValueError):
            shape = None
    if shape is None:
        yield from _jsonl_of(io.StringIO(text, newline=""))
    elif value is not None and _is_by_column(value):
        for number, row in enumerate(zip(*value.values(), strict=True), start=1):
            yield Row(line, dict(zip(value, row, strict=True)), number)
    elif not shape.lists:
        yield Row(line, value)
    elif len(shape.lists) > 1:
        names = ", ".join(f"`{name}`" for name, _ in shape.lists)
        raise IftError(f"{path} has several lists of rows: {names}", wanted="one list of objects a file")
    else:
        ((_, at),) = shape.lists
        yield from _items(_Scan(text, at, 1 + text.count("\n", 0, at)))


def _is_by_column(value: dict[str, Any]) -> bool:
    lengths = {len(v) if isinstance(v, list) else -1 for v in value.values()}
    return len(lengths) == 1 and lengths.isdisjoint({-1, 0})


_SPACE = re.compile(r"[ \t\r\n]*")
# Texts (ended by the line where a quote is missing) and what gives JSON its shape.
_SHAPE = re.compile(r'"[^"\\\r\n]*(?:\\.[^"\\\r\n]*)*"?|[\[\]{},]')


def _past_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches at least nothing


class _Shape(NamedTuple):
    lists: list[tuple[str, int]]  # the keys that hold lists of objects, and where each list begins
    lists_alone: bool  # two values or more, and all of them lists


def _shape(text: str, start: int) -> _Shape | None:
    """What the object that begins at `start` holds; None where it does not go on to the end of the text."""
    lists: list[tuple[str, int]] = []
    inside = ""  # the brackets that are open; one that fits none is passed over
    key, keys, all_lists = "", 0, 0
    for match in _SHAPE.finditer(text, start):
        token, end = match[0], match.end()
        if token[0] == '"' and inside == "{":
            behind = _past_space(text, end)
            if text[behind : behind + 1] == ":":
                key, keys = token.strip('"'), keys + 1
        elif token in "[{":
            inside += token
            if inside == "{[":
                all_lists += 1
                behind = _past_space(text, end)
                if text[behind : behind + 1] == "{":
                    lists.append((key, end))
        elif token in "]}":
            opener = "[" if token == "]" else "{"
            if inside.endswith(opener) or (token == "]" and opener in inside):
                inside = inside[: inside.rindex(opener)]
            if not inside and _past_space(text, end) < len(text):
                return None
    return _Shape(lists, all_lists == keys > 1)


class _Scan:
    """A place in a text that may still be growing, and its line."""

    def __init__(self, text: str, at: int, line: int, read: Callable[[int], str] = lambda _: "") -> None:
        self.text, self.at, self.line, self._read = text, at, line, read
        self.column = at - text.rfind("\n", 0, at) - 1

    def more(self) -> bool:
        """Read on; what lies behind is let go. False at the end of the file."""
        chunk = self._read(max(_CHUNK, len(self.text) - self.at))  # at least twice as much, for one huge item
        if chunk:
            self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def go(self, to: int) -> None:
        lines = self.text.count("\n", self.at, to)
        self.line += lines
        self.column = to - self.text.rfind("\n", 0, to) - 1 if lines else self.column + to - self.at
        self.at = to

    def at_end(self) -> bool:
        """Pass over white space; whether nothing follows it."""
        while True:
            self.go(_past_space(self.text, self.at))
            if self.at < len(self.text):
                return False
            if not self.more():
                return True


def _items(scan: _Scan) -> Iterator[Row | Bad]:
    """The items of a list, from behind its `[` to behind its `]`."""
    number = 0
    while not scan.at_end():
        if scan.text[scan.at] in ",]":
            scan.go(scan.at + 1)
            if scan.text[scan.at - 1] == "]":
                return
            continue
        number += 1
        value, end, problem = _item(scan)
        text = scan.text[scan.at : min(end, scan.at + QUOTED)]
        if problem:
            yield Bad(scan.line, problem, text, number)
        elif isinstance(value, dict):
            yield Row(scan.line, value, number)
        else:
            yield Bad(scan.line, no_object(value), text, number)
        scan.go(end)
        if problem and scan.at_end():
            return  # that the list has no end either is no other mistake
    yield Bad(scan.line, "the list has no end", "", number)


def _item(scan: _Scan) -> tuple[Any, int, str]:
    """The item at the scan's place, where it ends, and what is wrong with it. Reads on where it may be cut off."""
    while True:
        try:
            value, end = DECODER.raw_decode(scan.text, scan.at)
        except (RecursionError, ValueError) as error:
            value, end, problem = None, len(scan.text), why(error)
            # a text that is cut off is said to begin where it does, anything else to fail close to the end
            cut = isinstance(error, json.JSONDecodeError) and (
                error.msg.startswith("Unterminated") or error.pos > len(scan.text) - 16
            )
        else:
            problem = ""
            behind = _past_space(scan.text, end)
            if behind < len(scan.text):
                if scan.text[behind] in ",]{":
                    return value, end, ""
                problem = "not JSON: Expecting ',' delimiter"
            cut = behind == len(scan.text)
        if cut:
            if scan.more():
                continue
            if not problem:
                return value, end, ""
        if (found := _end_of_broken(scan)) is not None or not scan.more():
            return None, len(scan.text) if found is None else found, problem


def _end_of_broken(scan: _Scan) -> int | None:
    """Where a broken item ends: at its comma, at the list's end, or at a line that begins as an item does."""
    next_line = re.compile(rf"\n[ \t]{{0,{min(scan.column, 1000)}}}\{{").search(scan.text, scan.at)
    border = next_line.start() if next_line else len(scan.text)
    depth = 0
    for match in _SHAPE.finditer(scan.text, scan.at, border):
        token = match[0]
        if token in "[{":
            depth += 1
        elif depth == 0 and token in ",]":
            return match.start()
        elif token in "]}":
            depth = max(0, depth - 1)
    return border if next_line else None
