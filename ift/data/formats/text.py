"""Text files, plain or packed: opened, told from other files, and read by lines or as a whole.

In:  a path, `.gz` or `.zst` where it is packed, what its name says without that, and columns of a table.
Out: `Row`s and `Bad`s; where a packed file is cut off, those up to there and one `Bad`.

    list(read_text(Path("a.csv.gz"), ".gz", ".csv", None))
    # [Row(2, {"text": "Fun."}), Bad(3, "the file ends in the middle: the rows from here on are missing", "Du")]

Bytes that are not UTF-8 become lone surrogates on the way: the row that holds them is set aside, the file goes on.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ift.data.formats.conversations import read_conversations
from ift.data.formats.json_ import read_json
from ift.data.formats.jsonl import read_jsonl
from ift.data.formats.rows import CUT, QUOTED, Bad, Row, bytes_of, checked, text_of
from ift.data.formats.tables import read_table
from ift.data.formats.tokens import read_tokens
from ift.errors import IftError

TABLES = (".csv", ".tsv", ".txt")
_TOKENS = (".conll", ".bio", ".txt")
_YAML = (".yml", ".yaml")
TEXT = (".jsonl", ".ndjson", ".json", *TABLES, ".conll", ".bio", *_YAML)
PACKED = (".gz", ".zst")
_BUFFER = 1 << 16  # bytes read at once


def read_text(path: Path, packed: str, kind: str, columns: Sequence[str] | None) -> Iterator[Row | Bad]:
    """`packed` and `kind` are the endings, of which the first may be empty; `columns` are for tables alone."""
    try:
        unpacked = _Unpacked(path, packed) if packed else None
        with io.BufferedReader(unpacked or io.FileIO(path), _BUFFER) as raw:
            _refuse_others(path, raw.peek(_BUFFER), packed)
            if kind == ".json" or kind in _YAML:
                yield from _of_whole(raw, unpacked, path, kind)
            else:
                yield from _of_lines(raw, unpacked, path, kind, columns)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "gzip", error) from None
    except OSError as error:
        if packed != ".zst" or error.errno:
            raise IftError(f"{path} cannot be read: {error.strerror or error}") from None
        raise _damaged(path, "zstd", error) from None


def _damaged(path: Path, kind: str, error: Exception) -> IftError:
    hint = "fetch it again: which of its rows are sound cannot be told"
    return IftError(f"{path} cannot be unpacked: {error}", wanted=f"a whole {kind} file", hint=hint)


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file. Where it is cut off they come to an end, and `cut` is true."""

    def __init__(self, path: Path, packed: str) -> None:
        self._path, self._packed, self._at = path, packed, 0
        self.cut = False
        self._inner: Any = None  # in case that opening fails: even then it will be closed
        self._inner = self._open()

    def _open(self) -> Any:
        if self._packed == ".gz":
            return gzip.open(self._path)
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(self._path)), "zstd")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        super().close()

    def readinto(self, into: Any) -> int:
        if self.cut:
            return 0
        try:
            data = self._inner.read1(len(into))
        except EOFError:  # gzip
            self.cut, data = True, b""
        except OSError as error:
            if "Truncated" not in str(error):
                raise
            self.cut, data = True, self._rest(len(into))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _rest(self, most: int) -> bytes:
        """The last bytes of a zstd file that is cut off: a read that meets the cut loses all it had."""
        with self._open() as inner:
            left = self._at
            while left and (passed := inner.read(min(left, _BUFFER))):
                left -= len(passed)
            rest = bytearray()
            try:
                while len(rest) < most and (byte := inner.read(1)):
                    rest += byte
            except OSError:  # the cut
                return bytes(rest)
        return bytes(rest)


_UTF_32 = re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff|(?:[^\0]\0\0\0){2}|(?:\0\0\0[^\0]){2}")
_UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]")
_OTHERS = {
    b"\x1f\x8b": "packed with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
}


def _refuse_others(path: Path, head: bytes, packed: str) -> None:
    """A file of which not one line could be read gets one reason, not one for each line."""
    if wide := "UTF-32" if _UTF_32.match(head) else "UTF-16" if _UTF_16.match(head) else "":
        unpack = ", unpacked first" if packed else ""
        hint = f"iconv -f {wide} -t UTF-8 {path.name} > NEW{unpack}"
        raise IftError(f"{path} is in {wide}", wanted="UTF-8", hint=hint)
    if found := [what for start, what in _OTHERS.items() if head.startswith(start)]:
        raise IftError(
            f"{path} is {found[0]}", wanted="text, as its name says", hint="unpack it, or mend its name"
        )


# ── lines ──


class _Cut(Exception):
    """The line through which a packed file is cut off."""

    def __init__(self, line: int, text: bytes) -> None:
        self.line, self.text = line, text
        super().__init__()


def _before_cut(lines: Iterable[bytes], end: bytes, unpacked: _Unpacked) -> Iterator[bytes]:
    """Whole lines, and `_Cut` in place of one that may not be: a part of a row may look like a row."""
    number = 0
    for number, line in enumerate(lines, start=1):
        if unpacked.cut and not line.endswith(end):
            raise _Cut(number, line)
        yield line
    if unpacked.cut:
        raise _Cut(number + 1, b"")


def _of_lines(
    raw: "io.BufferedReader[Any]",
    unpacked: _Unpacked | None,
    path: Path,
    kind: str,
    columns: Sequence[str] | None,
) -> Iterator[Row | Bad]:
    """Lines end with LF or CRLF; in a file that begins without either, with CR."""
    head = raw.peek(_BUFFER)
    end = "\r" if b"\r" in head[:-1] and b"\n" not in head else "\n"
    # named for as long as it is read: one that nothing names closes the file
    wrapped = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline=end)
    lines: Iterable[bytes] = raw if end == "\n" else map(bytes_of, wrapped)
    text: Iterable[str] = wrapped
    if unpacked:
        lines = _before_cut(lines, end.encode(), unpacked)
        text = map(text_of, lines)
    try:
        if kind in (".jsonl", ".ndjson"):
            yield from read_jsonl(lines)
        elif kind in _TOKENS and not columns:
            yield from map(checked, read_tokens(text))
        else:
            delimiter = "," if kind == ".csv" else "\t"
            yield from map(checked, read_table(text, path, delimiter, columns, quoted=kind != ".txt"))
    except _Cut as cut:
        yield Bad(cut.line, CUT, text_of(cut.text[: 4 * QUOTED]))


def _of_whole(
    raw: "io.BufferedReader[Any]", unpacked: _Unpacked | None, path: Path, kind: str
) -> Iterator[Row | Bad]:
    file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = read_json(file, path) if kind == ".json" else read_conversations(file.read(), path)
    if not unpacked:
        yield from map(checked, rows)
        return
    last: Row | Bad | None = None
    for row in rows:
        if last:
            yield checked(last)
        last = row
    if unpacked.cut:
        # an object shows its end, so that one that could be read is whole; a list of texts may have had more
        if isinstance(last, Row) and kind == ".json":
            yield checked(last)
        yield Bad(last.line if last else 1, CUT, last.text if isinstance(last, Bad) else "")
    elif last:
        yield checked(last)
