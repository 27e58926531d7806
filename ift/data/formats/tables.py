"""Tables: comma- or tab-separated values, with or without quotes.

In:  lines, the delimiter, and the columns where no first line names them.
Out: a `Row` for each that has as many values as there are columns, a `Bad` for any other.

    list(read_table(["text,label\\n", "Fun.,1\\n", "Dull.\\n"], path, ",", None, quoted=True))
    # [Row(2, {"text": "Fun.", "label": "1"}), Bad(3, "1 columns, the header has 2", "Dull.")]
"""

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from ift.data.formats.rows import MARK, QUOTED, Bad, Empty, Row
from ift.errors import IftError

_HOLDS_ROWS = re.compile(r"\t[^\r\n]*[\r\n]|[\r\n][^\t]*\t")
_FIELD, _LINES = 1 << 26, 100_000  # characters and lines of a row: a quote may never close


def read_table(
    lines: Iterable[str], path: Path, delimiter: str, columns: Sequence[str] | None, *, quoted: bool
) -> Iterator[Row | Bad]:
    """A quoted field may span lines. Where it never closes, only its first line is bad; reading goes on behind it.

    So it does where tabs part the values and a quoted one holds a tab and a line's end: that is two rows of a file
    without quotes, the first of which begins with a mark of speech.
    """
    csv.field_size_limit(_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    waiting: deque[str] = deque()  # lines that a broken row swallowed, to be read again
    taken: list[str] = []  # the lines of the row being read

    def feed() -> Iterator[str]:
        for line in chain(iter(lambda: waiting.popleft() if waiting else None, None), lines):
            if len(taken) >= _LINES:
                waiting.appendleft(line)
                raise csv.Error(f"a quote opens and does not close within {_LINES:,} lines")
            taken.append(line)
            yield line if len(taken) > 1 else line.removeprefix(MARK)

    line = 1
    reader = csv.reader(feed(), delimiter=delimiter, strict=True, quoting=quoting)
    header = list(columns) if columns else _header(reader, path)
    named = "`columns` names" if columns else "the header has"
    while True:
        line += len(taken)
        taken.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            values, fault = [], _not_csv(error)
        else:
            merged = delimiter == "\t" and len(taken) > 1 and any(map(_HOLDS_ROWS.search, values))
            fault = "a quote opens, and closes behind a tab and a line's end" if merged else ""
        if fault:
            yield Bad(line, fault, taken[0])
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
            reader = csv.reader(feed(), delimiter=delimiter, strict=True, quoting=quoting)
            continue
        if not values:
            continue
        if values == header and len(header) > 1 and not columns:
            yield Bad(line, "the header once more", delimiter.join(values)[:QUOTED])
        elif len(values) != len(header):
            yield Bad(line, f"{len(values)} columns, {named} {len(header)}", delimiter.join(values)[:QUOTED])
        else:
            yield Row(line, dict(zip(header, values, strict=True)))


def _not_csv(error: csv.Error) -> str:
    plain = {
        "unexpected end": "a quote opens and never closes",
        "field larger": f"a field of more than {_FIELD:,} characters, or a quote that never closes",
        "new-line character": "a carriage return in a field without quotes",
    }
    return f"not CSV: {next((why for start, why in plain.items() if str(error).startswith(start)), error)}"


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
    wanted, where = "a first line that names the columns", f"{path}:1"
    try:
        header = next(filter(None, reader), None)
    except csv.Error as error:
        raise IftError(_not_csv(error), wanted=wanted, where=where) from None
    if header is None:
        raise Empty(f"{path} is empty", wanted=wanted)
    if repeated := [name for name in header if header.count(name) > 1]:
        raise IftError(f"two columns are named `{repeated[0]}`", wanted="a name for each", where=where)
    return header
