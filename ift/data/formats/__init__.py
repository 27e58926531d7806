"""Rows out of files, each with the line it stands on; a broken line is a `Bad`, never the end of the file.

In:  a path. What its ending says decides how it is read; text may be packed as .gz or .zst:
         .jsonl .ndjson an object a line
         .json          a list of objects, bare or under one key; lists by column; objects a line
         .csv .tsv      a table, its first line naming the columns unless `columns` does
         .txt           with `columns`: a table with tabs; without: as .conll
         .conll .bio    a token and its tag a line, a blank line between sentences
         .yml .yaml     `conversations:`, a list of lists of texts
         .parquet .arrow
Out: `Row`s and `Bad`s in file order. In a `Row` all text is whole (no NUL, no half of a surrogate pair), nothing
     is nested beyond reason, and no key of an object hid another of the same name; JSON's NaN is None.

    list(read(Path("a.jsonl")))    # [Row(1, {"text": "Fun."}), Bad(2, "not JSON: Expecting value at column 9", "{...")]

A packed file or an Arrow file that is cut off gives its rows up to there, then one `Bad`. A packed file whose
bytes are damaged is refused, for nobody knows which of its rows are what they were.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ift.data.formats.arrow import ARROW, read_arrow
from ift.data.formats.rows import Bad, Empty, Row
from ift.data.formats.text import PACKED, TABLES, TEXT, read_text
from ift.errors import IftError

__all__ = ["ENDINGS", "WANTED", "Bad", "Empty", "Row", "no_file", "read"]

ENDINGS = (*TEXT, *ARROW, *PACKED)
WANTED = "a .jsonl, .json, .csv, .tsv, .txt, .conll, .bio, .yml, .parquet or .arrow file"


def read(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row | Bad]:
    """Rows of one file; `columns` names those of a table without a header line.

    Raises `Empty` where there are none, `IftError` where the file is missing, broken as a whole, or of an
    unknown format.
    """
    if not path.is_file():
        raise no_file(path)
    packed = path.suffix.lower() if path.suffix.lower() in PACKED else ""
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if kind not in TEXT and kind not in ARROW:
        raise IftError(f"{path} has an unknown format", wanted=f"{WANTED}; text also packed as .gz or .zst")
    if packed and kind in ARROW:
        raise IftError(f"{path} is packed", wanted=f"the {kind} file itself", hint="unpack it first")
    if columns and kind not in TABLES:
        raise IftError(f"{path} names its columns itself", wanted="`columns` for .csv, .tsv and .txt alone")
    none = True
    for row in read_arrow(path, kind) if kind in ARROW else read_text(path, packed, kind, columns):
        none = False
        yield row
    if none:
        raise Empty(f"{path} is empty", wanted="one row or more")


def no_file(path: Path) -> IftError:
    """That there is no such file, and what there is instead."""
    if path.is_dir():
        return IftError(
            f"{path} is a folder", wanted="files", hint=f"name those in it, such as {path}/*.jsonl"
        )
    near = sorted(p.name for p in path.parent.glob("*"))[:5] if path.parent.is_dir() else []
    return IftError(
        f"no data file {path}",
        wanted=WANTED,
        hint=f"its folder has {', '.join(near)}" if near else f"the folder {path.parent} is not there",
    )
