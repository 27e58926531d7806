"""Files: every good row comes back with its line, a broken one is set aside and ends nothing."""

import csv
import datetime
import decimal
import gzip
import io
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data import formats
from ift.data.formats import Bad, Row, arrow, json_, tables
from ift.errors import IftError


def read(path: Path, content: str | bytes, columns: list[str] | None = None) -> list[Row | Bad]:
    """What is found; an empty list for an empty file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        return list(formats.read(path, columns))
    except formats.Empty:
        return []


def values_of(found: list[Row | Bad]) -> list[dict[str, Any]]:
    return [row.values for row in found if isinstance(row, Row)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    packed_bytes: bytes = sink.getvalue().to_pybytes()
    return packed_bytes


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def refusal(path: Path, columns: list[str] | None = None) -> str:
    with pytest.raises(IftError) as caught:
        list(formats.read(path, columns))
    return str(caught.value).replace(str(path.parent), "DIR")


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
values = st.dictionaries(text, st.none() | st.integers() | st.booleans() | text, max_size=3)
BROKEN = [b"{broken", b"[1, 2]", b"3", b'{"a": "\xff\xfe"}', b'{"\xff": 1}', b'{"a": "\\ud800"}', b"[" * 9999,
          b'{"a": 1', b'{"a": 1}}', b"\x00\x01", b"9" * 5000, b'{"a": "\x0b"}']  # fmt: skip


@given(
    st.lists(values | st.sampled_from(BROKEN) | st.sampled_from([b"", b"  "])), st.booleans(), st.booleans()
)
def test_every_good_jsonl_row_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], ascii_: bool, windows: bool
) -> None:
    lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=ascii_).encode() for r in rows]
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    found = read(path, (b"\r\n" if windows else b"\n").join(lines))
    numbered = list(enumerate(rows, start=1))
    assert [(f.line, f.values) for f in found if isinstance(f, Row)] == [
        (i, r) for i, r in numbered if isinstance(r, dict)
    ]
    bad = [f for f in found if isinstance(f, Bad)]
    assert [f.line for f in bad] == [i for i, r in numbered if isinstance(r, bytes) and r.strip()]
    for row in bad:
        assert row.reason
        assert len(row.text) <= 500
        json.dumps(vars(row), ensure_ascii=False).encode()  # can be written down


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"[1]", "a JSON list, not an object"),
        (b'"text"', "a JSON text, not an object"),
        (b"null", "a JSON null, not an object"),
        (b'{"a": "b', "not JSON: Unterminated string starting at column 7"),
        (b"[" * 99_999, "it is nested more than 100 levels deep"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "`a` is nested more than 100 levels deep"),
        (b'{"a": ' + b'{"b": ' * 600 + b"1" + b"}" * 601, "`a` is nested more than 100 levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of too many digits"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}', "the key `c` comes more than once in one object"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": "x\\u0000"}', "`a` holds a NUL character"),
        (b'{"a": {"b\\u0000": 1}}', "`a` holds a NUL character"),
        (b'{"a": ["x\\udC00"]}', "`a` holds half a character (\\udc00)"),
        (b'{"a\\uD83d": 1}', "the column name `a?` holds half a character (\\ud83d)"),
        (b'{"a": "\\ude00\\ud83d"}', "`a` holds half a character (\\ude00)"),
        (b'{"a": "\x00"}', "not JSON: a NUL byte at column 8"),
        (b'{"text": "caf\xe9"}', "`text` is not UTF-8"),
        (b'{"t\xe9xt": "a"}', "the column name `t?xt` is not UTF-8"),
    ],
)
def test_reason_of_a_bad_line(tmp_path: Path, line: bytes, reason: str) -> None:
    first, bad, last = read(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert isinstance(bad, Bad)
    assert (bad.line, bad.reason) == (2, reason)
    assert (first, last) == (Row(1, {"a": 1}), Row(3, {"a": 2}))


SOUND = [b'{"a": "\\ud83d\\ude00"}', b'{"a": "\\\\u0000 \\\\ud800"}', b'{"a": {"b": 1}, "b": 1}', b'\t{"a": 1} \r',
         b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", b'{"a": [' + b"[]," * 999 + b"1]}",
         b'\xef\xbb\xbf{"a": 1}']  # fmt: skip


@pytest.mark.parametrize("line", SOUND)
def test_a_line_that_only_looks_bad(tmp_path: Path, line: bytes) -> None:
    expected = json.loads(line.decode("utf-8-sig"))
    assert read(tmp_path / "a.jsonl", b'{"a": 0}\n' + line) == [Row(1, {"a": 0}), Row(2, expected)]


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", '{"a": NaN, "b": [1, NaN], "c": "NaN"}')
    assert found == [Row(1, {"a": None, "b": [1, None], "c": "NaN"})]


cell = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@given(
    st.lists(st.tuples(cell, cell), max_size=8),
    st.sampled_from([("a.csv", ","), ("a.tsv", "\t")]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_csv_round_trip_with_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], kind: tuple[str, str], end: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=kind[1], lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["one", "two"])
    starts = []
    for row in rows:
        written = text.getvalue()
        starts.append(1 + written.count("\n"))
        writer.writerow(row)
    found = read(tmp_path_factory.getbasetemp() / kind[0], text.getvalue())
    assert found == [Row(line, {"one": a, "two": b}) for line, (a, b) in zip(starts, rows, strict=True)]


def test_csv_lines_behind_quoted_newlines(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", 'text,label\n"two\nlines, quoted",1\n\nplain,0\n"a ""b""",1\n') == [
        Row(2, {"text": "two\nlines, quoted", "label": "1"}),
        Row(5, {"text": "plain", "label": "0"}),
        Row(6, {"text": 'a "b"', "label": "1"}),
    ]


def test_a_wrong_count_of_columns(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "text,label\na,1,2\nb\nc,1\n") == [
        Bad(2, "3 columns, the header has 2", "a,1,2"),
        Bad(3, "1 columns, the header has 2", "b"),
        Row(4, {"text": "c", "label": "1"}),
    ]


def test_a_broken_csv_line(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", 'text,label\n"a"b,1\nc,0\n') == [
        Bad(2, "not CSV: ',' expected after '\"'", '"a"b,1\n'),
        Row(3, {"text": "c", "label": "0"}),
    ]


@pytest.mark.parametrize("rest", ["", 'e,1\n"f, g",0\n'])
def test_a_quote_that_never_closes_costs_its_line_alone(tmp_path: Path, rest: str) -> None:
    found = read(tmp_path / "a.csv", 'text,label\na,1\n"b,0\nc,1\nd,0\n' + rest)
    assert [f.line for f in found if isinstance(f, Bad)] == [3]
    assert [f.line for f in found] == list(range(2, 2 + len(found)))
    good = [f.values["text"] for f in found if isinstance(f, Row)]
    assert good == ["a", "c", "d", *(["e", "f, g"] if rest else [])]


def test_a_quote_that_never_closes_swallows_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_LINES", 4)
    content = 'text,label\n"a,1\n' + "".join(f"{i},1\n" for i in range(9)) + '"b\n\n\n",1\n'
    assert read(tmp_path / "a.csv", content) == [
        Bad(2, "not CSV: a quote opens and does not close within 4 lines", '"a,1\n'),
        *[Row(3 + i, {"text": str(i), "label": "1"}) for i in range(9)],
        Row(12, {"text": "b\n\n\n", "label": "1"}),
    ]
    monkeypatch.setattr(tables, "_LINES", 100)
    monkeypatch.setattr(tables, "_FIELD", 20)
    bad, *rows = read(tmp_path / "a.csv", content)
    assert isinstance(bad, Bad)
    assert bad.reason == "not CSV: a field of more than 20 characters, or a quote that never closes"
    assert len(rows) == 10


def test_latin_1_in_one_row(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", b"text,label\ncaf\xe9,1\ntea,0\n")
    assert found == [Bad(2, "`text` is not UTF-8", "caf?"), Row(3, {"text": "tea", "label": "0"})]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "é"}\n'),
        ("a.json", '[{"text": "é"}]'),
        ("a.csv", "text\né\n"),
        ("a.TSV", "text\né\n"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("packed", PACK)
def test_byte_order_mark_and_packing(
    tmp_path: Path, name: str, content: str, mark: bytes, packed: str
) -> None:
    found = read(tmp_path / (name + packed), PACK[packed](mark + content.encode()))
    assert values_of(found) == [{"text": "é"}]


def test_parquet(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": i % 2, "note": None} for i in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(formats.read(tmp_path / "a.parquet"))
    assert found == [Row(i, row) for i, row in enumerate(rows, start=1)]


def test_no_such_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no" / "a.jsonl") == (
        f"no data file DIR/a.jsonl\n  wanted: {formats.WANTED}\n  next:   the folder DIR is not there"
    )
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "c.csv").touch()
    assert refusal(tmp_path / "a.jsonl").endswith("\n  next:   its folder has b.jsonl, c.csv")


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"DIR/{tmp_path.name} is a folder\n  wanted: files\n"
        f"  next:   name those in it, such as DIR/{tmp_path.name}/*.jsonl"
    )


@pytest.mark.parametrize("name", ["a.doc", "a", "a.gz", "a.zst", "jsonl", "a.jsonl.bz2"])
def test_an_unknown_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert refusal(tmp_path / name) == (
        f"DIR/{name} has an unknown format\n  wanted: {formats.WANTED}; text also packed as .gz or .zst"
    )


def test_packed_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").touch()
    assert refusal(tmp_path / "a.parquet.gz") == (
        "DIR/a.parquet.gz is packed\n  wanted: the .parquet file itself\n  next:   unpack it first"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, b"") for name in ("a.jsonl", "a.json", "a.csv", "a.conll", "a.yml", "a.parquet", "a.arrow")),
        *((name, b"\n \n") for name in ("a.jsonl", "a.json", "a.conll", "a.yml")),
        ("a.csv", b"\n\n"),
        ("a.json", b"[]"),
        ("a.csv", b"text,label\n"),
        ("a.jsonl.gz", b""),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.zst", zstd(b"\n")),
    ],
)  # fmt: skip
def test_an_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(formats.Empty, match=rf"/{name} is empty\n  wanted: "):
        list(formats.read(tmp_path / name))


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1", b"ARROW1"])
def test_text_that_is_something_else(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(start + b"\x08\0\0\0\n" * 9)
    assert refusal(tmp_path / "a.csv").endswith(
        "\n  wanted: text, as its name says\n  next:   unpack it, or mend its name"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.conll"])
@pytest.mark.parametrize("packed", PACK)
def test_lines_that_end_with_a_carriage_return(tmp_path: Path, name: str, packed: str) -> None:
    lines = {"a.csv": ["text", "é", "b"], "a.conll": ["", "é O", "", "b O", ""]}
    rows = [{"text": "é"}, {"text": "b"}]
    content = "\r".join(lines.get(name) or map(json.dumps, rows))
    found = read(tmp_path / (name + packed), PACK[packed](content.encode()))
    if name == "a.conll":
        rows = [{"tokens": ["é"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["O"]}]
    lines_of = {"a.csv": [2, 3], "a.conll": [2, 4]}
    assert found == [Row(line, row) for line, row in zip(lines_of.get(name, [1, 2]), rows, strict=True)]


@pytest.mark.parametrize(
    ("name", "line"), [("a.jsonl", b'{"text": "x"}\n'), ("a.csv", b"text,n\nx,1\n"), ("a.conll", b"x O\n\n")]
)
def test_two_files_put_together(tmp_path: Path, name: str, line: bytes) -> None:
    found = read(tmp_path / name, (b"\xef\xbb\xbf" + line) * 2)
    if name == "a.jsonl":
        assert found == [Row(1, {"text": "x"}), Row(2, {"text": "x"})]
    elif name == "a.conll":
        assert found == [Row(at, {"tokens": ["x"], "tags": ["O"]}) for at in (1, 3)]
    else:
        assert found == [
            Row(2, {"text": "x", "n": "1"}),
            Bad(3, "the header once more", "text,n"),
            Row(4, {"text": "x", "n": "1"}),
        ]


@given(st.text(), st.text())
def test_what_is_said_of_a_bad_row_is_one_short_line(reason: str, text: str) -> None:
    for factor in (1, 5000):
        bad = Bad(1, reason * factor, text * factor)
        assert len(bad.reason) <= 200
        assert bad.reason.isprintable()
        assert len(bad.text) <= 500
        json.dumps(vars(bad), ensure_ascii=False).encode()
    if reason.isprintable() and len(reason) <= 200 and " ".join(reason.split()) == reason:
        assert Bad(1, reason, "").reason == reason


def test_a_blank_line_before_the_header(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "\n\ntext\na\n") == [Row(4, {"text": "a"})]


def test_csv_with_a_broken_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"a"b,c\n1,2\n', encoding="utf-8")
    assert refusal(tmp_path / "a.csv").startswith("DIR/a.csv:1: not CSV: ")


def noise(lines: int) -> list[str]:
    """Texts that do not pack well, so that a cut falls among them."""
    draw = random.Random(lines)
    return [f"{i} é {draw.randbytes(40).hex()}" for i in range(lines)]


def test_damaged_archives(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps({"a": text}) + "\n" for text in noise(1000)).encode())
    middle = whole[:9999] + b"\xff" * 99 + whole[9999:]
    for content in (b"not gzip", middle, whole[:-8] + b"\0" * 8, whole + b"more"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        assert refusal(tmp_path / "a.jsonl.gz").startswith("DIR/a.jsonl.gz cannot be unpacked: ")
    for content in (b"not zstd", zstd(b'{"a": 1}\n') + b"more"):
        (tmp_path / "a.jsonl.zst").write_bytes(content)
        assert refusal(tmp_path / "a.jsonl.zst").startswith("DIR/a.jsonl.zst cannot be unpacked: ")
        assert "\n  wanted: a whole zstd file\n" in refusal(tmp_path / "a.jsonl.zst")


PACKED_ROWS = noise(9000)  # more than one block of zstd, of which a reader has all or nothing
QUOTED_ROWS = "".join(f'"{text},\n{text}, 1",1\n' for text in PACKED_ROWS)
LAYOUT: dict[str, tuple[str, int, Callable[[dict[str, Any]], str]]] = {
    ".jsonl": ("".join(json.dumps({"text": t}) + "\n" for t in PACKED_ROWS), 1, lambda row: row["text"]),
    ".csv": ("text,label\n" + QUOTED_ROWS, 2, lambda row: row["text"].partition(",")[0]),
    ".conll": (
        "".join(f"{t.replace(' ', '_')} O\nand O\n\n" for t in PACKED_ROWS),
        3,
        lambda row: row["tokens"][0].replace("_", " "),
    ),
    ".json": (json.dumps([{"text": t} for t in PACKED_ROWS], indent=0), 3, lambda row: row["text"]),
    ".yml": (
        "conversations:\n" + "".join(f"- - {t}\n  - yes\n" for t in PACKED_ROWS),
        2,
        lambda row: row["messages"][0],
    ),
}


@pytest.mark.parametrize("kind", LAYOUT)
@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_a_packed_file_that_is_cut_off(tmp_path: Path, kind: str, packed: str, share: float) -> None:
    text, height, text_of = LAYOUT[kind]
    whole = PACK[packed](text.encode())
    *rows, last = read(tmp_path / f"a{kind}{packed}", whole[: int(share * len(whole))])
    good = values_of(rows)
    assert len(good) == len(rows)
    assert [text_of(row) for row in good] == PACKED_ROWS[: len(good)]
    # zstd gives whole blocks of 128 KiB, gzip whole symbols
    behind = (share * len(text.encode()) - (2 << 17 if packed == ".zst" else 1 << 15)) / len(text.encode())
    assert len(good) >= behind * len(PACKED_ROWS)
    assert isinstance(last, Bad)
    assert last.reason == "the file ends in the middle: the rows from here on are missing"
    assert rows[-1].line < last.line <= rows[-1].line + 2 * height


@given(st.integers(2, 400), st.sampled_from([".gz", ".zst"]))  # by two bytes one knows gzip
def test_wherever_a_packed_file_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, at: int, packed: str
) -> None:
    whole = PACK[packed]("".join(f"{i},{i * i}\n" for i in range(200)).encode())
    found = read(
        tmp_path_factory.getbasetemp() / f"a.csv{packed}", whole[: min(at, len(whole) - 1)], ["a", "b"]
    )
    rows = [row for row in found if isinstance(row, Row)]
    assert rows == [Row(i + 1, {"a": str(i), "b": str(i * i)}) for i in range(len(rows))]
    assert [row.line for row in found[len(rows) :]] == [len(rows) + 1]


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
@pytest.mark.parametrize("packed", PACK)
def test_utf_16(tmp_path: Path, mark: bytes, packed: str) -> None:
    (tmp_path / f"a.csv{packed}").write_bytes(PACK[packed](mark + "text\na\n".encode("utf-16-le")))
    text = refusal(tmp_path / f"a.csv{packed}")
    assert text.startswith(
        f"DIR/a.csv{packed} is in UTF-16\n  wanted: UTF-8\n  next:   iconv -f UTF-16 -t UTF-8 "
    )


def test_text_that_is_no_utf_8_deep_in_a_row(tmp_path: Path) -> None:
    content = b'{"a": {"b": ["caf\xe9"]}}\n{"a": [{"k\xe9y": 1}]}\n{"a": [["\\ud800"]]}\n{"a": {"b": ["x"]}}'
    *bad, good = read(tmp_path / "a.jsonl", content)
    half = "`a` holds half a character (\\ud800)"
    assert [row.reason for row in bad if isinstance(row, Bad)] == [
        "`a` is not UTF-8",
        "`a` is not UTF-8",
        half,
    ]
    assert good == Row(4, {"a": {"b": ["x"]}})


# ── JSON ──

LAYOUTS = [
    "[",
    '{"version": "1.1", "data": [',
    '{"data":\n[',
    "\n\n [\n",
    '{"notes": ["a", "b", "c"], "n": 2,\n "rows" : [',
]


@given(
    st.lists(values, min_size=1, max_size=5),
    st.sampled_from(LAYOUTS),
    st.sampled_from([None, 0, 1, 4]),
    st.integers(1, 60),
)
def test_a_json_list_is_read_however_it_is_laid_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], start: str, indent: int | None, chunk: int
) -> None:
    inside = json.dumps(rows, indent=indent, ensure_ascii=False)[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_, "_CHUNK", chunk)
        found = read(
            tmp_path_factory.getbasetemp() / "a.json", start + inside + ("}" if "{" in start else "")
        )
    assert values_of(found) == rows
    assert [row.item for row in found] == list(range(1, 1 + len(rows)))
    if indent == 1:
        lines = json.dumps(rows, indent=1, ensure_ascii=False).split("\n")
        starts = [number for number, line in enumerate(lines) if line in (" {", " {},", " {}")]
        assert [row.line for row in found] == [start.count("\n") + 1 + number for number in starts]


JSON_BROKEN = [b"{broken}", b"[1, 2]", b"3", b'"text"', b'{"a": "\xff\xfe"}', b'{"a": 1', b'{"a": "b}', b'{"a": 1}}',
               b'{"a": "\x0b"}', b"{'a': 1}", b'{"a": [1, 2}', b"9" * 5000, b"[" * 9999, b"nul"]  # fmt: skip


@given(
    st.lists(values | st.sampled_from(JSON_BROKEN), min_size=1, max_size=8), st.integers(1, 60), st.booleans()
)
def test_every_good_json_item_on_a_line_of_its_own_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], chunk: int, under_a_key: bool
) -> None:
    items = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in rows]
    content = b"[\n" + b",\n".join(items) + b"\n]"
    under_a_key = under_a_key and isinstance(
        rows[0], dict
    )  # its first item tells a list of objects from others
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_, "_CHUNK", chunk)
        found = read(
            tmp_path_factory.getbasetemp() / "a.json",
            b'{"data": ' + content + b"}" if under_a_key else content,
        )
    good = [(line, row) for line, row in enumerate(rows, start=2) if isinstance(row, dict)]
    assert [(f.line, f.values) for f in found if isinstance(f, Row)] == good
    bad = {f.line for f in found if isinstance(f, Bad)}
    assert bool(bad) == (
        len(good) < len(rows)
    )  # one that has no end may swallow those behind it, but no good one
    assert all(f.reason and len(f.text) <= 500 for f in found if isinstance(f, Bad))


def test_reasons_of_bad_json_items(tmp_path: Path) -> None:
    content = '[{"a": 1}, {a: 2}, [3],\n  {"a": 4} {"a": 5}, {"a": "x]}", "b"]}, "six",\n{"a": 7}, {"a'
    assert read(tmp_path / "a.json", content) == [
        Row(1, {"a": 1}, 1),
        Bad(1, "not JSON: Expecting property name enclosed in double quotes", "{a: 2}", 2),
        Bad(1, "a JSON list, not an object", "[3]", 3),
        Row(2, {"a": 4}, 4),
        Row(2, {"a": 5}, 5),
        Bad(2, "not JSON: Expecting ':' delimiter", '{"a": "x]}", "b"]}', 6),
        Bad(2, "a JSON text, not an object", '"six"', 7),
        Row(3, {"a": 7}, 8),
        Bad(3, "not JSON: Unterminated string starting", '{"a', 9),
    ]
    assert read(tmp_path / "a.json", '[{"a": 1},\n') == [
        Row(1, {"a": 1}, 1),
        Bad(2, "the list has no end", "", 1),
    ]
    assert read(tmp_path / "a.json", '[{"a": 1}] and more') == [
        Row(1, {"a": 1}, 1),
        Bad(1, "text behind the end of the list", "and more"),
    ]


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    lines = '{"a": 1, "messages": [{"b": 1}]}\n{broken\n\n{"a": 2, "messages": [{"b": 2}]}\n'
    assert [(type(row), row.line) for row in read(tmp_path / "a.json", lines)] == [
        (Row, 1),
        (Bad, 2),
        (Row, 4),
    ]
    assert values_of(read(tmp_path / "a.json", lines.removeprefix('{"a": 1'))) == [
        {"a": 2, "messages": [{"b": 2}]}
    ]
    first_broken = '{"messages": [{"b": }]}\n{"messages": [{"b": 2}]}'
    assert values_of(read(tmp_path / "a.json", first_broken)) == [{"messages": [{"b": 2}]}]
    assert read(tmp_path / "a.json", '{"a": "alone"}\n') == [Row(1, {"a": "alone"})]


@given(st.lists(values, min_size=2, max_size=5), st.integers(1, 60))
def test_json_lines_in_a_json_file_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_, "_CHUNK", chunk)
        found = read(tmp_path_factory.getbasetemp() / "a.json", "\n".join(map(json.dumps, rows)))
    assert found == [Row(line, row) for line, row in enumerate(rows, start=1)]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists_by_column(tmp_path: Path, indent: int | None) -> None:
    columns = {"text": ["a", "b"], "answers": [{"text": ["x"]}, {"text": []}], "tags": [[1], [2, 3]]}
    assert values_of(read(tmp_path / "a.json", json.dumps(columns, indent=indent))) == [
        {"text": "a", "answers": {"text": ["x"]}, "tags": [1]},
        {"text": "b", "answers": {"text": []}, "tags": [2, 3]},
    ]


def test_a_key_that_comes_twice_in_a_json_file(tmp_path: Path) -> None:
    reason = "the key `a` comes more than once in one object"
    assert read(tmp_path / "a.json", '[\n{"a": 1, "a": 1},\n{"a": 3}]') == [
        Bad(2, reason, '{"a": 1, "a": 1}', 1),
        Row(3, {"a": 3}, 2),
    ]
    for whole in (
        '{"a": 1,\n"b": 2,\n"a": 3}',
        '{"a": [1],\n"a": [2]}',
        '{"a": [{"b": 1}],\n"a": [{"b": 2}]}',
    ):
        assert read(tmp_path / "a.json", whole) == [Bad(1, reason, whole)]


def test_several_lists_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"train": [{"a": 1}, {"a": 2}], "test": [{"a": 3}]}', encoding="utf-8")
    assert refusal(tmp_path / "a.json") == (
        "DIR/a.json has several lists of rows: `train`, `test`\n  wanted: one list of objects a file"
    )


# ── tables without a header ──


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", 'a,"x, ""y"""\nb\nc,z\n'), ("a.txt", 'a\tx, "y"\nb\n\nc\tz')]
)
def test_a_table_without_a_header(tmp_path: Path, name: str, content: str) -> None:
    found = read(tmp_path / name, content, ["letter", "text"])
    last = content.count("\n") + (not content.endswith("\n"))
    assert found == [
        Row(1, {"letter": "a", "text": 'x, "y"'}),
        Bad(2, "1 columns, `columns` names 2", "b"),
        Row(last, {"letter": "c", "text": "z"}),
    ]


def test_quotes_mean_nothing_in_a_text_table(tmp_path: Path) -> None:
    assert values_of(read(tmp_path / "a.txt", 'ham\t"Yes\nspam\tNo" she said', ["label", "text"])) == [
        {"label": "ham", "text": '"Yes'},
        {"label": "spam", "text": 'No" she said'},
    ]


def test_columns_for_a_file_that_names_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}", encoding="utf-8")
    assert refusal(tmp_path / "a.jsonl", ["a"]) == (
        "DIR/a.jsonl names its columns itself\n  wanted: `columns` for .csv, .tsv and .txt alone"
    )


# ── tokens and tags ──


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tokens_with_tags(tmp_path: Path, name: str, end: str) -> None:
    lines = [
        "-DOCSTART- -X- -X- O",
        "",
        "EU NNP B-NP B-ORG",
        "rejects VBZ B-VP O",
        " ",
        "",
        "Peter NNP B-NP B-PER",
    ]
    assert read(tmp_path / name, end.join(lines)) == [
        Row(3, {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        Row(7, {"tokens": ["Peter"], "tags": ["B-PER"]}),
    ]
    content = "en:New York\tB-LOC\nen:\u00a0\tO\n\n"
    assert read(tmp_path / name, content) == [
        Row(1, {"tokens": ["en:New York", "en:\u00a0"], "tags": ["B-LOC", "O"]})
    ]


def test_a_token_without_a_tag_costs_its_sentence(tmp_path: Path) -> None:
    assert read(tmp_path / "a.conll", b"a\tO\nb\n\nc\tO\tO\n\nd\tO\n\ncaf\xe9\tO\n") == [
        Bad(1, "line 2 has 1 columns; wanted 2, token first", "a b"),
        Bad(4, "line 4 has 3 columns; wanted 2, token first", "c"),
        Row(6, {"tokens": ["d"], "tags": ["O"]}),
        Bad(8, "`tokens` is not UTF-8", r"['caf\udce9']"),
    ]


# ── conversations ──


def test_conversations(tmp_path: Path) -> None:
    content = """\
categories: [AI]
conversations:
- - What year is it?
  - 1984
- - Yes or no?
  - no
  - null
  - 12:30
- A lone text
- - "Good: quoted"
  - bad: not quoted
- []
"""
    assert read(tmp_path / "a.yml", content) == [
        Row(3, {"messages": ["What year is it?", "1984"]}, 1),
        Row(5, {"messages": ["Yes or no?", "no", "null", "12:30"]}, 2),
        Bad(9, "a conversation is a list of texts", "", 3),
        Bad(10, "a turn is no text; text with `: ` needs quotes", "Good: quoted", 4),
        Bad(12, "a conversation is a list of texts", "", 5),
    ]


def test_a_mistake_in_yaml_costs_what_is_behind_it(tmp_path: Path) -> None:
    content = "conversations:\n- - a\n  - b\n- - *c\n  - &d e\n- - f\n - g\n- - h\n  - i\n"
    assert read(tmp_path / "a.yml", content) == [
        Row(2, {"messages": ["a", "b"]}, 1),
        Bad(4, "a turn is no text; text with `: ` needs quotes", "e", 2),
        Bad(6, "not YAML: did not find expected key in line 7; from here on nothing can be read", "", 3),
    ]
    bell = "conversations:\n- - a\n" + "- - b\n" * 3000 + "- - \x07\n"
    *rows, last = read(tmp_path / "a.yml", bell)
    assert len(values_of(rows)) == len(rows) > 0
    assert isinstance(last, Bad)
    assert last.reason.startswith("not YAML: ")


def test_yaml_within_yaml_within_yaml(tmp_path: Path) -> None:
    deep = "[" * 3000 + "]" * 3000
    found: list[Row | Bad] = []
    before = threading.stack_size(1 << 18)  # on it a tree of this depth ends the process
    thread = threading.Thread(
        target=lambda: found.extend(
            read(tmp_path / "a.yml", f"other: {deep}\nconversations:\n- {deep}\n- [a]\n")
        )
    )
    thread.start()
    threading.stack_size(before)
    thread.join()
    assert found == [
        Bad(3, "a turn is no text; text with `: ` needs quotes", "", 1),
        Row(4, {"messages": ["a"]}, 2),
    ]


def test_conversations_that_are_not_utf_8(tmp_path: Path) -> None:
    content = b"conversations:\n- - caf\xe9\n  - yes\n- - caf\xc3\xa9 \xee\x80\x80\n  - yes\n"
    assert read(tmp_path / "a.yaml", content) == [
        Bad(2, "`messages` is not UTF-8", r"['caf\udce9', 'yes']", 1),
        Row(4, {"messages": ["café \ue000", "yes"]}, 2),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text: [\n- b\n", "DIR/a.yml:2: not YAML: "),
        ("\x07", "DIR/a.yml:1: not YAML: "),
        (
            "text: a",
            "DIR/a.yml has no conversations\n  wanted: `conversations:` and a list of lists of texts",
        ),
        ("- a", "DIR/a.yml has no conversations"),
        ("conversations: all", "DIR/a.yml has no conversations"),
        ("conversations: !!python/object/apply:os.system [ls]", ""),
    ],
)
def test_yaml_of_another_kind(tmp_path: Path, content: str, says: str) -> None:
    if not says:  # a tag makes nothing happen: all is text
        assert read(tmp_path / "a.yml", content) == [Bad(1, "a conversation is a list of texts", "", 1)]
        return
    (tmp_path / "a.yml").write_text(content, encoding="utf-8")
    assert refusal(tmp_path / "a.yml").startswith(says)


# ── Arrow ──

NESTED = [
    {"id": i, "answers": {"text": [f"a{i}", "b"], "start": [i]}, "turns": [{"role": "user"}], "score": i / 2}
    for i in range(5000)
]


def write_arrow(table: pa.Table, path: Path, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(table, path)
        return
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


KINDS = [("a.parquet", "parquet"), ("a.arrow", "file"), ("a.arrow", "stream")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_nested_values(tmp_path: Path, name: str, kind: str) -> None:
    write_arrow(pa.Table.from_pylist(NESTED), tmp_path / name, kind)
    assert list(formats.read(tmp_path / name)) == [Row(i, row) for i, row in enumerate(NESTED, start=1)]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_memory_is_bounded_where_rows_are_wide(
    tmp_path: Path, name: str, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "_BATCH_BYTES", rows * 1000)
    write_arrow(pa.table({"text": ["x" * 990] * 10}), tmp_path / name, kind)
    sizes: list[int] = []
    original = arrow._python_values

    def counted(batch: Any) -> Any:
        sizes.append(batch.num_rows)
        return original(batch)

    monkeypatch.setattr(arrow, "_python_values", counted)
    assert len(list(formats.read(tmp_path / name))) == 10
    assert max(sizes) <= rows


def test_types_that_json_lacks(tmp_path: Path) -> None:
    utc = datetime.timezone.utc  # noqa: UP017
    day = datetime.date(2024, 2, 29)
    moment = datetime.datetime(2024, 2, 29, 12, 30, 5)
    table = pa.table(
        {
            "day": pa.array([day]),
            "moment": pa.array([moment], pa.timestamp("ns")),
            "zoned": pa.array([moment.replace(tzinfo=utc)]),
            "span": pa.array([datetime.timedelta(hours=1)]),
            "price": pa.array([decimal.Decimal("1.10")]),
            "raw": pa.array(["é".encode()]),
            "half": pa.array([0.5], pa.float16()),
            "days": pa.array([[day, None]]),
            "inside": pa.array([{"when": day, "n": 1}]),
            "map": pa.array([[("a", day)]], pa.map_(pa.string(), pa.date32())),
            "word": pa.array(["x"]).dictionary_encode(),
            "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": [1]}'])),
            "picture": pa.array([{"bytes": b"\xff\x00", "path": "a.png"}]),
            "null": pa.nulls(1, pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = formats.read(tmp_path / "a.parquet")
    assert isinstance(row, Row)
    assert row.values == {
        "day": "2024-02-29",
        "moment": "2024-02-29T12:30:05",
        "zoned": "2024-02-29T12:30:05+00:00",
        "span": "1:00:00",
        "price": "1.10",
        "raw": "é",
        "half": 0.5,
        "days": ["2024-02-29", None],
        "inside": {"when": "2024-02-29", "n": 1},
        "map": {"a": "2024-02-29"},
        "word": "x",
        "json": {"a": [1]},
        "picture": {"bytes": None, "path": "a.png"},
        "null": None,
    }
    json.dumps(row.values)  # plain all the way down


def test_arrow_bytes_that_are_no_text(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")]
    )
    write_arrow(pa.table({"text": texts, "n": [1, 2, 3]}), tmp_path / "a.arrow", "file")
    assert list(formats.read(tmp_path / "a.arrow")) == [
        Row(1, {"text": "a", "n": 1}),
        Bad(2, "`text` is not UTF-8", ""),
        Row(3, {"text": "b", "n": 3}),
    ]
    pq.write_table(pa.table({"raw": [b"a", b"\xff"]}), tmp_path / "a.parquet")
    assert list(formats.read(tmp_path / "a.parquet")) == [
        Row(1, {"raw": "a"}),
        Row(2, {"raw": None}),
    ]


def test_numbers_of_half_and_single_width_are_as_short_as_they_were_written(tmp_path: Path) -> None:
    columns = {
        "single": pa.array([3.8, None], pa.float32()),
        "half": pa.array([np.float16(0.1), None], pa.float16()),
        "double": pa.array([3.8, None], pa.float64()),
        "list": pa.array([[0.1, None], []], pa.list_(pa.float32())),
        "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None], pa.month_day_nano_interval()),
    }
    write_arrow(pa.table(columns), tmp_path / "a.arrow", "file")
    first, second = (row.values for row in formats.read(tmp_path / "a.arrow") if isinstance(row, Row))
    assert [first[name] for name in ("single", "half", "double", "list")] == [3.8, 0.1, 3.8, [0.1, None]]
    assert isinstance(first["interval"], str)
    assert second["single"] is None


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_file_that_is_no_arrow(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"not it" * 10)
    assert refusal(tmp_path / name).startswith(f"DIR/{name} cannot be read: ")
    write_arrow(pa.Table.from_pylist(NESTED), tmp_path / name, kind)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    assert refusal(tmp_path / name).endswith(
        "\n  next:   it may be cut off or be something else: fetch it again"
    )


def test_parquet_that_is_cut_off(tmp_path: Path) -> None:
    write_arrow(pa.Table.from_pylist(NESTED), tmp_path / "a.parquet", "parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    assert refusal(tmp_path / "a.parquet").startswith(
        "DIR/a.parquet cannot be read: Parquet magic bytes not found"
    )


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_arrow_that_is_cut_off(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(pa.Table.from_pylist(NESTED), path, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    *rows, last = formats.read(path)
    assert rows == [Row(i, row) for i, row in enumerate(NESTED[: len(rows)], start=1)]
    assert len(rows) % 700 == 0
    assert len(rows) > (share - 0.2) * len(NESTED)
    assert isinstance(last, Bad)
    assert last.line == len(rows) + 1
    assert last.reason.startswith(
        "the file ends in the middle: the rows from here on are missing, or damaged ("
    )


def test_an_arrow_file_without_its_index(tmp_path: Path) -> None:
    write_arrow(pa.Table.from_pylist(NESTED), tmp_path / "a.arrow", "file")
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-10])
    *rows, last = formats.read(tmp_path / "a.arrow")
    assert rows == [Row(i, row) for i, row in enumerate(NESTED, start=1)]
    assert last == Bad(5001, "the file ends in the middle: the rows from here on are missing", "")


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_damaged_arrow_batch_costs_itself(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(pa.table({"text": [f"text {i}" for i in range(2100)]}), path, kind)
    content = bytearray(path.read_bytes())
    first = np.array(
        [0, 6, 12, 18], np.int32
    ).tobytes()  # where the texts begin: taken on trust, it ends the process
    content[content.index(first) + 8 : content.index(first) + 12] = np.int32(1 << 30).tobytes()
    path.write_bytes(content)
    bad, *rows = formats.read(path)
    assert isinstance(bad, Bad)
    assert bad.line == 1
    assert bad.reason.startswith("`text` is damaged in 700 rows from here on: Offset ")
    assert rows == [Row(i + 1, {"text": f"text {i}"}) for i in range(700, 2100)]


def test_a_damaged_row_group_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = noise(3000)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    at = column.data_page_offset
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    found = list(formats.read(path))
    assert [row for row in found if isinstance(row, Row)] == [
        Row(i + 1, {"text": text}) for i, text in enumerate(texts) if not 1000 <= i < 2000
    ]
    (bad,) = [row for row in found if isinstance(row, Bad)]
    assert bad.line == 1001
    assert bad.reason.startswith("1,000 rows from here on cannot be read: ")


def test_a_checksum_that_does_not_fit_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["right"]})
    plain = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **plain)
    content = path.read_bytes()
    assert list(formats.read(path)) == [Row(1, {"text": "right"})]
    path.write_bytes(content.replace(b"right", b"wrong", 1))
    (bad,) = formats.read(path)
    assert isinstance(bad, Bad)
    assert bad.reason.startswith("1 rows from here on cannot be read: ")


def test_json_in_a_column(tmp_path: Path) -> None:
    cells = ['{"a": 1}', "{", '{"a": 1, "a": 2}', "[" * 99_999]
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(cells))
    pq.write_table(pa.table({"j": column}), tmp_path / "a.parquet")
    assert list(formats.read(tmp_path / "a.parquet")) == [
        Row(1, {"j": {"a": 1}}),
        Bad(2, "`j` cannot be read: not JSON: Expecting property name enclosed in double quotes", ""),
        Bad(3, "`j` cannot be read: the key `a` comes more than once in one object", ""),
        Bad(4, "`j` cannot be read: it is nested more than 100 levels deep", ""),
    ]


def test_a_mapping_with_one_key_twice(tmp_path: Path) -> None:
    table = pa.table({"m": pa.array([[("a", 1), ("a", 2)], [("b", 1)]], pa.map_(pa.string(), pa.int64()))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(formats.read(tmp_path / "a.parquet")) == [
        Bad(1, "`m` is a mapping with one key more than once", ""),
        Row(2, {"m": {"b": 1}}),
    ]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    write_arrow(table, tmp_path / "a.arrow", "file")
    assert refusal(tmp_path / "a.arrow").startswith("DIR/a.arrow: two columns are named `a`")
