"""A corpus of bad files: each row that cannot be used has its reason, each good one beside it survives.

A file is made here, read, and its rows become examples of a task. `Case` says what has to come out: the good rows
(line and text), the bad ones (line and reason), or why the whole file is refused. A reason that ends in "…" goes on
with the words of a library.
"""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from ift.data import formats
from ift.data.examples import example_of, examples_of
from ift.errors import IftError
from ift.tasks import task as tasks

TASKS = {
    "films": """\
kind: classification
license: Apache-2.0
source: {files: "*.jsonl"}
choices: {field: label, names: [bad, good]}
metric: accuracy
templates: [{id: ask, prompt: "{{ text }} Good or bad?", completion: "{{ label }}"}]
""",
    "films_without_header": """\
kind: classification
license: Apache-2.0
source: {files: a.txt, columns: [label, text]}
choices: {field: label, names: [bad, good]}
metric: accuracy
templates: [{id: ask, prompt: "{{ text }} Good or bad?", completion: "{{ label }}"}]
""",
    "names": """\
kind: labelling
license: Apache-2.0
source: {files: a.conll}
fields:
  text: {join: [tokens]}
  names: {bio: tokens, tags: tags}
metric: span_f1
templates: [{id: ask, prompt: "{{ text }}", completion: "{{ names | map(attribute='text') | join('; ') or 'none' }}"}]
""",
    "talk": """\
kind: chat
license: Apache-2.0
source: {files: a.yml}
fields: {messages: {turns: messages}}
""",
}

At = tuple[int, str]  # a line, and what is expected there


@dataclass(frozen=True)
class Case:
    name: str
    content: bytes
    good: list[At] = field(default_factory=list)
    bad: list[At] = field(default_factory=list)
    refused: str = ""
    file: str = "a.jsonl"
    task: str = "films"


def film(i: int) -> bytes:
    return b'{"text": "film %d", "label": %d}\n' % (i, i % 2)


def line(name: str, content: bytes | str, reason: str) -> Case:
    """A bad line between two good ones."""
    content = content.encode() if isinstance(content, str) else content
    good = [(1, "film 1"), (3, "film 3")]
    return Case(name, film(1) + content + b"\n" + film(3), good, [(2, reason)])


def fine(name: str, content: bytes | str, text: str) -> Case:
    """A line that looks worse than it is."""
    case = line(name, content, "")
    return Case(name, case.content, [case.good[0], (2, text), case.good[1]])


def cell(name: str, content: bytes, reason: str) -> Case:
    """A bad row of a table between two good ones."""
    good = [(2, "film 1"), (4, "film 3")]
    return Case(
        name, b"text,label\nfilm 1,1\n" + content + b"\nfilm 3,1\n", good, [(3, reason)], file="a.csv"
    )


def noise(count: int) -> list[str]:
    """Texts that hardly pack, so that what is left of a file says how much of the text is."""
    draw = random.Random(count)
    return [draw.randbytes(30).hex() for _ in range(count)]


def some(texts: list[str], count: int, *, first: int = 1, height: int = 1) -> list[At]:
    return [(first + height * i, text) for i, text in enumerate(texts[:count])]


def rows_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts).encode()


def cut_off(content: bytes, kept: int) -> bytes:
    """Of a gzip file that does not make anything smaller: 10 bytes of header, 5 of its block's, then the content."""
    return gzip.compress(content, 0, mtime=0)[: 10 + 5 + kept]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, **options)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def arrow(columns: dict[str, Any], new: Callable[..., Any] = pa.ipc.new_stream) -> bytes:
    """Batches of two rows."""
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def put(content: bytes, at: int, patch: bytes) -> bytes:
    return content[:at] + patch + content[at + len(patch) :]


CUT = "the file ends in the middle: the rows from here on are missing"
NAME_WANTED = "not JSON: Expecting property name enclosed in double quotes at column "
NOT_UTF_8 = "`text` is not UTF-8"
TOO_DEEP = "is nested more than 100 levels deep"
EMPTY = "DIR/{} is empty\n  wanted: one row or more"
UTF_16 = "DIR/{0} is in UTF-16\n  wanted: UTF-8\n  next:   iconv -f UTF-16 -t UTF-8 {0} > NEW"

JSONL = [
    line("broken", "{broken", NAME_WANTED + "2"),
    line("single quotes", "{'text': 'a', 'label': 1}", NAME_WANTED + "2"),
    line("trailing comma", '{"text": "a", "label": 1,}', NAME_WANTED + "26"),
    line("no closing brace", '{"text": "a", "label": 1', "not JSON: Expecting ',' delimiter at column 25"),
    line("no closing quote", '{"text": "a, "label": 1}', "not JSON: Expecting ',' delimiter at column 15"),
    line("cut within a text", '{"text": "a b', "not JSON: Unterminated string starting at column 10"),
    line("two objects", '{"text": "a", "label": 1} {"label": 0}', "not JSON: Extra data at column 27"),
    line("Python's None", '{"text": None, "label": True}', "not JSON: Expecting value at column 10"),
    line("a list", '["a", 1]', "a JSON list, not an object"),
    line("a text", '"a"', "a JSON text, not an object"),
    line("a number", "42", "a JSON number, not an object"),
    line("null", "null", "a JSON null, not an object"),
    line("a bare tab", '{"text": "a\tb", "label": 1}', "not JSON: Invalid control character at column 12"),
    line("a bare CR", '{"text": "a\rb", "label": 1}', "not JSON: Invalid control character at column 12"),
    line("wrong escape", r'{"text": "C:\data"}', r"not JSON: Invalid \escape at column 13"),
    line("half an escape", r'{"text": "\u12"}', r"not JSON: Invalid \uXXXX escape at column 12"),
    line("a web page", "<!DOCTYPE html><html><body>404", "not JSON: Expecting value at column 1"),
    line("key twice", '{"text": "a", "label": 1, "text": "b"}', "the key `text` comes more than once in one object"),
    line("key twice inside", '{"text": "a", "label": 1, "meta": [{"x": 1, "x": 2}]}',
         "the key `x` comes more than once in one object"),
    line("key twice, once escaped", r'{"text": "a", "label": 1, "\u0074ext": "b"}',
         "the key `text` comes more than once in one object"),
    line("infinity", '{"text": "a", "label": 1, "score": -Infinity}', "-Infinity is no JSON number"),
    line("too large a number", '{"text": "a", "label": 1, "score": -1e400}', "-1e400 is too large for a number"),
    line("NaN in a field", '{"text": "a", "label": NaN}', "`label` is null"),
    fine("NaN elsewhere", '{"text": "a", "label": 0, "score": NaN}', "a"),
    line("lone surrogate", r'{"text": "smile \ud83d", "label": 1}', r"`text` holds half a character (\ud83d)"),
    line("surrogates turned round", r'{"text": "\ude00\ud83d", "label": 1}', r"`text` holds half a character (\ude00)"),
    line("surrogate in a key", r'{"text": "a", "label": 1, "\udc00": 2}',
         r"the column name `?` holds half a character (\udc00)"),
    line("surrogate in bytes", b'{"text": "\xed\xa0\xbd", "label": 1}', NOT_UTF_8),
    line("latin-1", b'{"text": "caf\xe9", "label": 1}', NOT_UTF_8),
    line("overlong UTF-8", b'{"text": "\xc0\xaf", "label": 1}', NOT_UTF_8),
    line("half a letter of UTF-8", b'{"text": "caf\xc3", "label": 1}', NOT_UTF_8),
    line("latin-1 deep inside", b'{"text": "a", "label": 1, "meta": [{"by": "Zo\xeb"}]}', "`meta` is not UTF-8"),
    line("NUL escaped", r'{"text": "a\u0000b", "label": 1}', "`text` holds a NUL character"),
    line("NUL byte", b'{"text": "a\x00b", "label": 1}', "not JSON: a NUL byte at column 12"),
    line("a hole of NULs", b"\x00" * 4096, "not JSON: a NUL byte at column 1"),
    line("nested lists", '{"text": "a", "label": 1, "tree": ' + "[" * 500 + "]" * 500 + "}", f"`tree` {TOO_DEEP}"),
    line("nested beyond reading", "[" * 100_000, f"it {TOO_DEEP}"),
    line("nested objects", '{"a": ' * 100_000 + "1" + "}" * 100_000, f"it {TOO_DEEP}"),
    line("huge integer", '{"text": "a", "label": ' + "9" * 5000 + "}", "a number of too many digits"),
    line("large integer", '{"text": "a", "label": 18446744073709551616}',
         "`label` is '18446744073709551616'; wanted one of bad, good"),
    line("null field", '{"text": null, "label": 1}', "`text` is null"),
    line("empty field", r'{"text": " \n ", "label": 1}', "`text` is empty"),
    line("no such field", '{"Text": "a", "label": 1}', "no column `text`; the row has Text, label"),
    line("another schema", '{"prompt": "a", "completion": "b"}', "no column `label`; the row has prompt, completion"),
    fine("a number as text", '{"text": 3.5, "label": 1}', "3.5"),
    line("list as label", '{"text": "a", "label": [1, [0]]}', "`label` is '[1, [0]]'; wanted one of bad, good"),
    line("object as label", '{"text": "a", "label": {"is": 1}}', "`label` is '{\"is\": 1}'; wanted one of bad, good"),
    line("label out of range", '{"text": "a", "label": 7}', "`label` is '7'; wanted one of bad, good"),
    line("label of 100,000 letters", '{"text": "a", "label": "' + "x" * 100_000 + '"}',
         "`label` is '" + "x" * 125 + " … " + "x" * 34 + "'; wanted one of bad, good"),
    line("label that moves the cursor", r'{"text": "a", "label": "\u001b[31mred\nblue\u202e"}',
         r"`label` is '\x1b[31mred\nblue\u202e'; wanted one of bad, good"),
    fine("right to left, emoji", '{"text": "فيلم \u200f\u2067جيد\u2069 👩‍👧 \\ud83d\\ude00", "label": 1}',
         "فيلم \u200f\u2067جيد\u2069 👩‍👧 😀"),
    Case("a mark at the start", b"\xef\xbb\xbf" + film(1) + b"{\n", [(1, "film 1")], [(2, NAME_WANTED + "2")]),
    Case("a mark in the middle", film(1) + b"\xef\xbb\xbf" + film(2), [(1, "film 1"), (2, "film 2")]),
    Case("CRLF", (film(1) + b"{\n" + film(3)).replace(b"\n", b"\r\n"), [(1, "film 1"), (3, "film 3")],
         [(2, NAME_WANTED + "2")]),
    Case("CR alone", (film(1) + b"{\n" + film(3)).replace(b"\n", b"\r"), [(1, "film 1"), (3, "film 3")],
         [(2, NAME_WANTED + "2")]),
    Case("blank lines", b"\n \n" + film(1) + b"\t\r\n\n" + film(2), [(3, "film 1"), (6, "film 2")]),
    Case("cut off", film(1) + film(2)[:-9], [(1, "film 1")],
         [(2, "not JSON: Unterminated string starting at column 20")]),
    Case("all lines bad", b"{\n[1]\nnull\n", [],
         [(1, NAME_WANTED + "2"), (2, "a JSON list, not an object"), (3, "a JSON null, not an object")]),
    Case("white space", b" \n\t\r\n" * 50, refused=EMPTY.format("a.jsonl")),
    Case("nothing", b"", refused=EMPTY.format("a.jsonl")),
    Case("UTF-16", film(1).decode().encode("utf-16"), refused=UTF_16.format("a.jsonl")),
    Case("UTF-16 without a mark", film(1).decode().encode("utf-16-be"), refused=UTF_16.format("a.jsonl")),
    Case("UTF-32", film(1).decode().encode("utf-32"), refused=UTF_16.replace("16", "32").format("a.jsonl")),
    Case("UTF-32 without a mark", film(1).decode().encode("utf-32-be"),
         refused=UTF_16.replace("16", "32").format("a.jsonl")),
    Case("gzip under another name", gzip.compress(film(1)), refused="DIR/a.jsonl is packed with gzip\n…"),
]  # fmt: skip

PACKED = rows_of(noise(4))
WIDTH = len(PACKED) // 4
GZIP = gzip.compress(PACKED, mtime=0)
DAMAGED = (
    "\n  wanted: a whole gzip file\n  next:   fetch it again: which of its rows are sound cannot be told"
)
TALL = "".join(f'"{text}\n{text}",1\n' for text in noise(6)).encode()

ARCHIVES = [
    Case("gzip cut", cut_off(PACKED, 2 * WIDTH + 9), some(noise(4), 2), [(3, CUT)], file="a.jsonl.gz"),
    Case("gzip cut between lines", cut_off(PACKED, 2 * WIDTH), some(noise(4), 2), [(3, CUT)], file="a.jsonl.gz"),
    Case("gzip cut in its header", GZIP[:5], [], [(1, CUT)], file="a.jsonl.gz"),
    Case("gzip without its end", GZIP[:-8], some(noise(4), 4), [(5, CUT)], file="a.jsonl.gz"),
    Case("gzip of another sum", GZIP[:-8] + bytes(8), refused="DIR/a.jsonl.gz cannot be unpacked: CRC check failed …",
         file="a.jsonl.gz"),
    Case("gzip damaged", put(GZIP, 60, b"\xff" * 30), refused="DIR/a.jsonl.gz cannot be unpacked: Error -3 …",
         file="a.jsonl.gz"),
    Case("gzip of nothing", gzip.compress(b"", mtime=0), refused=EMPTY.format("a.jsonl.gz"), file="a.jsonl.gz"),
    Case("no gzip", film(1), refused="DIR/a.jsonl.gz cannot be unpacked: Not a gzipped file (b'{\"')" + DAMAGED,
         file="a.jsonl.gz"),
    # zstd gives whole blocks of 128 KiB; of these there are more than two
    Case("zstd cut", zstd(rows_of(noise(4000)))[:-20], some(noise(4000), (2 << 17) // WIDTH),
         [(1 + (2 << 17) // WIDTH, CUT)], file="a.jsonl.zst"),
    Case("zstd cut at once", zstd(PACKED)[:-20], [], [(1, CUT)], file="a.jsonl.zst"),
    Case("no zstd", film(1), refused="DIR/a.jsonl.zst cannot be unpacked: ZSTD …", file="a.jsonl.zst"),
    Case("CSV cut within quotes", cut_off(b"text,label\n" + TALL, len(TALL) - 50),
         [(at, f"{text}\n{text}") for at, text in some(noise(6), 5, first=2, height=2)], [(13, CUT)], file="a.csv.gz"),
    Case("sentences cut", cut_off("".join(f"{t} O\nand O\n\n" for t in noise(3)).encode(), 100),
         [(1, noise(3)[0] + " and")], [(4, CUT)], file="a.conll.gz", task="names"),
    Case("conversations cut", cut_off(b"conversations:\n- - Hello.\n  - Hi.\n- - Bye.\n  - So long.", 50),
         [(2, "Hello.")], [(4, CUT)], file="a.yml.gz", task="talk"),
    Case("list cut", cut_off(b"[" + b",\n".join(PACKED.splitlines()) + b"]", 3 * WIDTH),
         some(noise(4), 2), [(3, CUT)], file="a.json.gz"),
]  # fmt: skip

ONE, TWO = '{"text": "film 1", "label": 1}', '{"text": "film 2", "label": 0}'


def listed(name: str, item: str, *reasons: str) -> Case:
    """Bad items in a line of a list, between good ones."""
    content = f"[{ONE},\n{item},\n{TWO}]".encode()
    return Case(
        name, content, [(1, "film 1"), (3, "film 2")], [(2, reason) for reason in reasons], file="a.json"
    )


JSON = [
    listed("values among objects", '3, null, ["a"]', "a JSON number, not an object", "a JSON null, not an object",
           "a JSON list, not an object"),
    listed("broken item", '{"text": oops, "label": 1}', "not JSON: Expecting value"),
    listed("item without an end", '{"text": "a", "label": 1',
           "not JSON: Expecting property name enclosed in double quotes"),
    listed("item with a key twice", '{"text": "a", "text": "b"}', "the key `text` comes more than once in one object"),
    listed("item with half a character", r'{"text": "\ud800"}', r"`text` holds half a character (\ud800)"),
    listed("item too deep", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", f"it {TOO_DEEP}"),
    listed("list in the list", f"[{ONE}]", "a JSON list, not an object"),
    Case("list cut off", f'[{ONE},\n{{"text": "fil'.encode(), [(1, "film 1")],
         [(2, "not JSON: Unterminated string starting")], file="a.json"),
    Case("list without an end", f"[{ONE},\n{TWO}\n".encode(), [(1, "film 1"), (2, "film 2")],
         [(3, "the list has no end")], file="a.json"),
    Case("two lists, one after the other", f"[{ONE}]\n[{TWO}]".encode(), [(1, "film 1")],
         [(2, "text behind the end of the list")], file="a.json"),
    Case("two lists under keys", f'{{"train": [{ONE}, {TWO}], "test": [{TWO}]}}'.encode(),
         refused="DIR/a.json has several lists of rows: `train`, `test`\n…", file="a.json"),
    Case("one list under a key that comes twice", f'{{"rows": [{ONE}],\n"rows": [{TWO}]}}'.encode(), [],
         [(1, "the key `rows` comes more than once in one object")], file="a.json"),
    Case("a list of nothing", b"[]", refused=EMPTY.format("a.json"), file="a.json"),
    Case("YAML in a JSON file", b"text: film 1\nlabel: 1\n", [],
         [(1, "not JSON: Expecting value at column 1"), (2, "not JSON: Expecting value at column 1")], file="a.json"),
]  # fmt: skip

TABLES = [
    cell("more columns", b"a, b,1", "3 columns, the header has 2"),
    cell("fewer columns", b"a", "1 columns, the header has 2"),
    cell("a quote that never closes", b'"a,1', "not CSV: a quote opens and never closes"),
    cell("text behind a quote", b'"a"b,1', "not CSV: ',' expected after '\"'"),
    cell("NUL in a cell", b"a\x00b,1", "`text` holds a NUL character"),
    cell("latin-1 in a cell", b"caf\xe9,1", NOT_UTF_8),
    cell("empty cell", b",1", "`text` is empty"),
    cell("unknown label", b"a,maybe", "`label` is 'maybe'; wanted one of bad, good"),
    cell("the header again", b"\xef\xbb\xbftext,label", "the header once more"),
    cell("CR in a cell", b"a\rb,1", "not CSV: a carriage return in a field without quotes"),
    Case("right to left and emoji in cells", 'text,label\n"فيلم, جيد 👍🏽",1\n'.encode(), [(2, "فيلم, جيد 👍🏽")],
         file="a.csv"),
    Case("CSV with CR alone", b"text,label\rfilm 1,1\ra\rfilm 3,1\r", [(2, "film 1"), (4, "film 3")],
         [(3, "1 columns, the header has 2")], file="a.csv"),
    Case("semicolons", b"text;label\nfilm 1;1\n", [], [(2, "no column `label`; the row has text;label")], file="a.csv"),
    Case("a name twice", b"text,text\na,b\n", refused="DIR/a.csv:1: two columns are named `text`\n…", file="a.csv"),
    Case("a header alone", b"text,label\n", refused=EMPTY.format("a.csv"), file="a.csv"),
    Case("a broken header", b'"text"x,label\na,1\n', refused="DIR/a.csv:1: not CSV: ',' expected after '\"'\n…",
         file="a.csv"),
    Case("CSV in UTF-16", "text,label\na,1\n".encode("utf-16"), refused=UTF_16.format("a.csv"), file="a.csv"),
    Case("a space for a tab", b"text\tlabel\nfilm 1\t1\nfilm 2 0\n", [(2, "film 1")],
         [(3, "1 columns, the header has 2")], file="a.tsv"),
    Case("a mark of speech before a tab", b'text\tlabel\nfilm 1\t1\n"Hello\t1\nWorld"\t0\nfilm 3\t1\n',
         [(2, "film 1"), (4, 'World"'), (5, "film 3")],
         [(3, "a quote opens, and closes behind a tab and a line's end")], file="a.tsv"),
    Case("a quoted cell of two lines", b'text\tlabel\n"a\nb"\t1\n"c\td"\t0\n', [(2, "a\nb"), (4, "c\td")],
         file="a.tsv"),
    Case("a table without a header", b'1\tfilm 1\n0\t"film 2\nfilm 3\n', [(1, "film 1"), (2, '"film 2')],
         [(3, "1 columns, `columns` names 2")], file="a.txt", task="films_without_header"),
]  # fmt: skip

HELLO = "conversations:\n- - Hello.\n  - Hi.\n"
BYE = "- - Bye.\n  - So long.\n"

OTHERS = [
    Case("sentences of other widths", b"Ada B-PER\nmet O\n\nnobody\n\nBob B-PER x O\nran O\n\nEve B-PER\n",
         [(1, "Ada met"), (9, "Eve")],
         [(4, "line 4 has 1 columns; wanted 2, token first"), (6, "line 6 has 4 columns; wanted 2, token first")],
         file="a.conll", task="names"),
    Case("prose for tokens", b"It was a dark night.\nNo moon.\n", [],
         [(1, "line 2 has 2 columns; wanted 5, token first")], file="a.conll", task="names"),
    Case("latin-1 token", b"Zo\xeb B-PER\n\nBob B-PER\n", [(3, "Bob")], [(1, "`tokens` is not UTF-8")],
         file="a.conll", task="names"),
    Case("NUL in a token", b"A\x00da B-PER\n\nBob B-PER\n", [(3, "Bob")], [(1, "`tokens` holds a NUL character")],
         file="a.bio", task="names"),
    Case("YAML indented wrongly", (HELLO + "- - Bye.\n - So long.\n").encode(), [(2, "Hello.")],
         [(4, "not YAML: did not find expected key in line 5; from here on nothing can be read")],
         file="a.yml", task="talk"),
    Case("a turn that is a mapping", (HELLO + "- - Rule one: none.\n  - Fine.\n" + BYE).encode(),
         [(2, "Hello."), (6, "Bye.")], [(4, "a turn is no text; text with `: ` needs quotes")],
         file="a.yml", task="talk"),
    Case("NUL in YAML", (HELLO + "- - Go\0od.\n  - Yes.\n" + BYE).encode(), [(2, "Hello."), (6, "Bye.")],
         [(4, "`messages` holds a NUL character")], file="a.yml", task="talk"),
    Case("latin-1 in YAML", (HELLO + "- - Café?\n  - Yes.\n").encode("latin-1"), [(2, "Hello.")],
         [(4, "`messages` is not UTF-8")], file="a.yaml", task="talk"),
    Case("YAML within YAML", (HELLO + "- " + "[" * 3000 + "]" * 3000 + "\n" + BYE).encode(),
         [(2, "Hello."), (5, "Bye.")], [(4, "a turn is no text; text with `: ` needs quotes")],
         file="a.yml", task="talk"),
    Case("tabs in YAML", b"conversations:\n\t- - Hello.\n",
         refused="DIR/a.yml:2: not YAML: found character that cannot start any token", file="a.yml", task="talk"),
    Case("YAML of something else", b"text: a\n", refused="DIR/a.yml has no conversations\n…",
         file="a.yml", task="talk"),
]  # fmt: skip

FILMS = {"text": ["film 0", "film 1", "film 2", "film 3"], "label": [0, 1, None, 7]}
WRONG = [(3, "`label` is null"), (4, "`label` is '7'; wanted one of bad, good")]
FIRST = [(1, "film 0"), (2, "film 1")]
STREAM, FILE = arrow(FILMS), arrow(FILMS, pa.ipc.new_file)
# of two texts of six letters, where they begin and end: taken on trust, a wrong place ends the process
PLACES = np.array([0, 6, 12], np.int32).tobytes()
GROUPS = parquet(
    {"text": noise(6), "label": [1] * 6}, row_group_size=2, use_dictionary=False, compression="none"
)
HALF = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")]
)

COLUMNS = [
    Case("nulls in Parquet", parquet(FILMS), FIRST, WRONG, file="a.parquet"),
    Case("NaN in Parquet", parquet({"text": ["a", "b"], "label": [0.0, float("nan")]}), [(1, "a")],
         [(2, "`label` is null")], file="a.parquet"),
    Case("bytes in Parquet", parquet({"text": [b"a", b"\xff"], "label": [0, 1]}), [(1, "a")],
         [(2, "`text` is null")], file="a.parquet"),
    Case("a picture beside the fields", parquet({"text": ["a"], "label": [0], "thumb": [b"\xff\xd8"]}), [(1, "a")],
         file="a.parquet"),
    Case("NUL in Parquet", parquet({"text": ["a", "b\0"], "label": [0, 1]}), [(1, "a")],
         [(2, "`text` holds a NUL character")], file="a.parquet"),
    Case("nested lists in Parquet", parquet({"text": ["a", "b"], "label": [[[1]], [[0]]]}), [],
         [(1, "`label` is '[[1]]'; wanted one of bad, good"), (2, "`label` is '[[0]]'; wanted one of bad, good")],
         file="a.parquet"),
    Case("a damaged row group", put(GROUPS, GROUPS.index(noise(6)[2].encode()) - 60, b"\xff" * 60),
         [at for at in some(noise(6), 6) if at[0] not in (3, 4)],
         [(3, "2 rows from here on cannot be read: …")], file="a.parquet"),
    Case("Parquet cut", parquet(FILMS)[:-20], refused="DIR/a.parquet cannot be read: Parquet magic bytes not found …",
         file="a.parquet"),
    Case("CSV for Parquet", b"text,label\na,1\n", refused="DIR/a.parquet cannot be read: Parquet magic bytes …",
         file="a.parquet"),
    Case("an empty Parquet shard", b"", refused=EMPTY.format("a.parquet"), file="a.parquet"),
    Case("Parquet without rows", parquet({"text": [], "label": []}), refused=EMPTY.format("a.parquet"),
         file="a.parquet"),
    Case("an Arrow stream cut", STREAM[:-100], FIRST, [(3, f"{CUT}, or damaged (Expected …")], file="a.arrow"),
    Case("an Arrow file cut", FILE[: len(FILE) // 2], FIRST, [(3, f"{CUT}, or damaged (Expected …")], file="a.arrow"),
    Case("an Arrow file without its index", FILE[:-20], FIRST, [*WRONG, (5, CUT)], file="a.arrow"),
    Case("a damaged Arrow batch", put(STREAM, STREAM.index(PLACES) + 4, np.int32(1 << 30).tobytes()), [],
         [(1, "`text` is damaged in 2 rows from here on: …"), *WRONG], file="a.arrow"),
    Case("latin-1 in Arrow", arrow({"text": HALF, "label": [0, 1]}), [(1, "a")], [(2, NOT_UTF_8)], file="a.arrow"),
    Case("CSV for Arrow", b"text,label\n" * 9, refused="DIR/a.arrow cannot be read: …", file="a.arrow"),
]  # fmt: skip

CORPUS = [*JSONL, *ARCHIVES, *JSON, *TABLES, *OTHERS, *COLUMNS]


def agrees(said: str, expected: str) -> bool:
    return said.startswith(expected[:-1]) if expected.endswith("…") else said == expected


def text_of(fields: dict[str, Any]) -> str:
    return str(fields["messages"][0]["content"]) if "messages" in fields else str(fields["text"])


def load(folder: Path, name: str) -> tasks.Task:
    (folder / f"{name}.yaml").write_text(f"name: {name}\n{TASKS[name]}", encoding="utf-8")
    return tasks.load(file=str(folder / f"{name}.yaml"))


def outcome(path: Path, task: tasks.Task) -> tuple[list[At], list[formats.Bad], str]:
    good, bad = list[At](), list[formats.Bad]()
    try:
        for row in formats.read(path, task.source.columns):
            example = example_of(task, row)
            if isinstance(example, formats.Bad):
                bad.append(example)
            elif example:
                good.append((row.line, text_of(dict(example.fields))))
    except IftError as error:
        return [], [], str(error).replace(str(path.parent), "DIR")
    return good, bad, ""


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len({case.content for case in CORPUS}) >= 130
    assert len({case.name for case in CORPUS}) == len(CORPUS)
    endings = {"".join(Path(case.file).suffixes) for case in CORPUS}
    kinds = {
        ".jsonl",
        ".json",
        ".csv",
        ".tsv",
        ".txt",
        ".conll",
        ".bio",
        ".yml",
        ".yaml",
        ".parquet",
        ".arrow",
    }
    assert kinds | {".jsonl.gz", ".jsonl.zst", ".json.gz", ".csv.gz", ".conll.gz", ".yml.gz"} == endings


@pytest.mark.parametrize("case", CORPUS, ids=[case.name for case in CORPUS])
def test_bad_rows_have_their_reasons_and_good_ones_survive(tmp_path: Path, case: Case) -> None:
    (tmp_path / case.file).write_bytes(case.content)
    good, bad, refused = outcome(tmp_path / case.file, load(tmp_path, case.task))
    assert agrees(refused, case.refused), refused
    assert good == case.good
    assert [row.line for row in bad] == [at for at, _ in case.bad]
    for row, (_, reason) in zip(bad, case.bad, strict=True):
        assert agrees(row.reason, reason), row.reason
        assert len(row.reason) <= 200
        assert row.reason.isprintable()
        assert len(row.text) <= 500
        json.dumps(vars(row), ensure_ascii=False).encode()  # can be written down


def test_the_quarantine_names_source_line_and_reason(tmp_path: Path) -> None:
    """All the JSONL files as one source."""
    usable = [case for case in JSONL if not case.refused]
    expected = []
    for number, case in enumerate(usable):
        path = tmp_path / f"{number:03}.jsonl"
        path.write_bytes(case.content)
        expected += [(str(path), at, reason) for at, reason in case.bad]
    examples = examples_of(load(tmp_path, "films"), tmp_path / "cache")
    with (examples.lookup.folder / "quarantine.jsonl").open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    assert [(row["file"], row["line"], row["reason"]) for row in found] == expected
    assert {text for case in usable for _, text in case.good} == {
        text_of(dict(examples[place].fields)) for place in range(len(examples))
    }


LARGE = {  # name: file, what its bad or large row begins with, goes on with and ends with, and whether it is one
    "a text": ("a.jsonl", '{"text": "', "a b ", '"}\n', "Row"),
    "a text with one emoji": ("a.jsonl", '{"text": "😀', "a b ", '"}\n', "Row"),
    "a text that never ends": ("a.jsonl", '{"text": "', "a b ", "\n", "Bad"),
    "no UTF-8": ("a.jsonl", '{"text": "', "a \udce9 ", '"}\n', "Bad"),
    "a hole": ("a.jsonl", "", "\0", "\n", "Bad"),
    "brackets": ("a.jsonl", "", "[", "\n", "Bad"),
    "numbers": ("a.jsonl", '{"text": [1', ", 100", "]}\n", "Row"),
    "a number": ("a.jsonl", '{"text": ', "1", "}\n", "Bad"),
    "an item": ("a.json", '[{"text": "', "a b ", '"},\n', "Row"),
    "a cell": ("a.csv", 'text\n"', "a b ", '"\n', "Row"),
    "a quote that never closes": ("a.csv", 'text\n"', "a b " * 25 + "\n", "", "Bad"),
}
TAIL = {"a.jsonl": '{"text": "last"}\n', "a.json": '{"text": "last"}]', "a.csv": "last\n"}
READ = """
import re, sys, time
from pathlib import Path
from ift.data import formats

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

before, start, first = peak(), time.process_time(), None
for last in formats.read(Path(sys.argv[1])):
    first = first or type(last).__name__
print(first, last.values["text"], peak() - before, time.process_time() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", LARGE)
def test_a_line_of_50_megabytes(tmp_path: Path, what: str) -> None:
    """Read in a process of its own, whose memory is measured from before to its highest point."""
    size = 50 << 20
    name, start, middle, end, kind = LARGE[what]
    path = tmp_path / name
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(start)
        file.write(middle * (size // len(middle)))
        file.write(end + TAIL[name])
    done = subprocess.run([sys.executable, "-c", READ, path], check=True, capture_output=True, text=True)
    first, last, memory, seconds = done.stdout.split()
    print(f"{what}: {memory} MiB, {float(seconds):.1f} s")
    assert (first, last) == (kind, "last")
    assert int(memory) < 10 * 50
    assert float(seconds) < 120
