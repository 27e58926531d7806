"""Examples on disk: each row once, tested rather than trained on, whole or not there; bad ones have a reason."""

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import film, jsonl, quarantine, refused, rows_of, texts, write_films
from hypothesis import given
from hypothesis import strategies as st

from ift.data import cache as caches
from ift.data import examples as reading
from ift.data import formats
from ift.data.examples import examples_of
from ift.errors import IftError
from ift.tasks import task as tasks


def test_one_file_has_no_splits(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, rows=[film(0), film(1)])
    assert texts(rows) == {None: ["film 0", "film 1"]}
    assert (rows.total, rows.twins, rows.bad.count) == (2, [], 0)


SPLITS = "{files: {train: a.jsonl, validation: b.jsonl, test: c.jsonl}}"
numbers = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(train=numbers, validation=numbers, test=numbers)
def test_a_row_of_two_splits_is_tested_last(
    tmp_path_factory: pytest.TempPathFactory, train: list[int], validation: list[int], test: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = rows_of(
        folder, SPLITS, a=list(map(film, train)), b=list(map(film, validation)), c=list(map(film, test))
    )
    found = {split: {int(t.split()[1]) for t in part} for split, part in texts(rows).items()}
    wanted = {
        "test": set(test),
        "validation": set(validation) - set(test),
        "train": set(train) - set(validation) - set(test),
    }
    assert found == {split: some for split, some in wanted.items() if some}
    assert rows.total == len(train) + len(validation) + len(test)
    assert len(rows.twins) == rows.total - len({*train, *validation, *test})


def test_duplicates_differ_in_nothing_that_counts_and_are_listed(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        rows=[film(1), film(1), film(1, note="x"), {"text": " film 1 ", "label": "good"}, film(1, label=0)],
    )
    assert [(e.fields["text"], e.label) for e in rows] == [("film 1", "good"), ("film 1", "bad")]  # type: ignore[attr-defined]
    file = str(tmp_path / "rows.jsonl")
    assert rows.twins == [
        {"task": "films", "file": file, "line": line, "example": rows[0].id} for line in (2, 3, 4)
    ]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6), st.data())
def test_what_is_written_is_what_is_looked_up(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    labels = [data.draw(st.integers(0, 1)) for _ in written]
    source = [{"text": text, "label": label} for text, label in zip(written, labels, strict=True)]
    file = write_films(folder, rows=source)
    task = tasks.load(file=str(file))
    wanted = {example.id: example for example in map(task.example, source)}
    found = examples_of(task, folder / "cache")
    assert [found[place] for place in range(len(found))] == list(wanted.values())
    assert found.ids.tolist() == [int(id_, 16) for id_ in wanted]
    carried = pickle.loads(pickle.dumps(found.lookup))
    place = data.draw(st.integers(0, len(found) - 1))
    assert carried[place] == found[place]
    assert json.loads(carried.line(place)) == found[place].fields
    assert found.where(place)["line"] == 1 + min(
        n for n, row in enumerate(source) if task.example(row).id == found[place].id
    )


def test_a_filter_takes_the_rows_of_one_source(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "{files: rows.jsonl, where: {origin: press, year: '2004'}}",
        rows=[
            film(0, origin="press", year=2004),
            film(1, origin="blog", year=2004),
            film(2, origin="press", year=2005),
            film(3),
            {"text": "", "origin": "blog"},  # bad, but of another source
        ],
    )
    assert texts(rows) == {None: ["film 0"]}
    assert (rows.total, rows.bad.count) == (1, 0)


def test_quarantine_has_file_line_and_reason(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "{files: {train: a.jsonl, test: b.jsonl}}",
        a=[film(0), "{broken", film(1), {"text": "x", "label": 7}],
        b=[{"text": "no label"}, film(2)],
    )
    assert texts(rows) == {"test": ["film 2"], "train": ["film 0", "film 1"]}
    assert (rows.total, rows.bad.count) == (6, 3)
    found = quarantine(rows)
    assert [(Path(str(q["file"])).name, q["line"], q["reason"]) for q in found] == [
        ("b.jsonl", 1, "no column `label`; the row has text"),
        ("a.jsonl", 2, "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("a.jsonl", 4, "`label` is '7'; wanted one of bad, good"),
    ]
    assert found[2]["text"] == "{'text': 'x', 'label': 7}"
    assert {q["task"] for q in found} == {"films"}
    assert rows.bad.first == found[0]
    assert rows.bad.reasons == {q["reason"]: 1 for q in found}


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no data file DIR/rows.jsonl" in refused(tmp_path, "{files: rows.jsonl}")


def test_a_number_or_a_truth_value_in_where_is_what_yaml_writes(tmp_path: Path) -> None:
    rows = [film(0, ok=True, n=1.0), film(1, ok=False, n=1), film(2, ok=True, n=2), film(3, ok=None)]
    found = rows_of(tmp_path, "{files: rows.jsonl, where: {ok: 'true', n: '1'}}", rows=rows)
    assert texts(found) == {None: ["film 0"]}


def test_a_list_in_one_json_line_counts_its_items(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([film(0), {"text": "x"}, film(1)]), encoding="utf-8")
    (bad,) = quarantine(rows_of(tmp_path, "{files: a.json}"))
    assert (bad["line"], bad["item"], bad["reason"]) == (1, 2, "no column `label`; the row has text")


def test_the_hook_leaves_rows_out(tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text(
        "def row(row):\n    return None if row['text'] == 'film 1' else {**row, 'label': 1 // row['label']}\n",
        encoding="utf-8",
    )
    rows = rows_of(
        tmp_path,
        more="hook: prepare.py:row",
        rows=[film(1), {"text": "b", "label": 1}, {"text": "c", "label": 0}],
    )
    assert texts(rows) == {None: ["b"]}
    assert (rows.total, [q["line"] for q in quarantine(rows)]) == (2, [3])


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("'a\\0b'", "`text` holds a NUL character"),
        ("'\\ud800'", r"`text` holds half a character (\ud800)"),
        (
            "functools.reduce(lambda inner, _: [inner], range(200), [])",
            "`text` is nested more than 100 levels deep",
        ),
        (
            "functools.reduce(lambda inner, _: [inner], range(5000), [])",
            "it is nested more than 100 levels deep",
        ),
    ],
)
def test_what_a_hook_makes_is_looked_at_too(tmp_path: Path, made: str, reason: str) -> None:
    code = (
        f"import functools\n\ndef row(row):\n    return {{**row, 'text': {made}}} if row['label'] else row\n"
    )
    (tmp_path / "prepare.py").write_text(code, encoding="utf-8")
    rows = rows_of(tmp_path, more="hook: prepare.py:row", rows=[film(0), film(1)])
    assert texts(rows) == {None: ["film 0"]}
    assert [(q["line"], q["reason"]) for q in quarantine(rows)] == [(2, reason)]


@pytest.mark.parametrize("row", ['{"text": "\\ud800", "label": 1}', '{"\\ud800": 1, "label": 1}'])
def test_half_a_character_is_set_aside(tmp_path: Path, row: str) -> None:
    rows = rows_of(tmp_path, rows=[row, film(1)])
    assert texts(rows) == {None: ["film 1"]}
    assert [q["line"] for q in quarantine(rows)] == [1]


def test_a_nul_in_json_in_a_text_is_set_aside(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a\0b"}]
    (tmp_path / "a.jsonl").write_text(jsonl([{"messages": json.dumps(turns)}, {"messages": turns[:1]}]))
    path = tmp_path / "talk.yaml"
    path.write_text(
        "name: talk\nkind: chat\nlicense: MIT\nsource: {files: a.jsonl}\nfields: {messages: {turns: messages}}\n"
    )
    rows = examples_of(tasks.load(file=str(path)), tmp_path / "cache")
    assert [(q["line"], q["reason"]) for q in quarantine(rows)] == [(1, "`messages` holds a NUL character")]
    assert len(rows) == 1


def test_what_a_group_column_holds_is_kept_as_a_number(tmp_path: Path) -> None:
    films = [film(0, by="a"), film(1, by="b"), film(2, by="a"), film(3, by=None), film(4)]
    groups = rows_of(tmp_path, more="group: by", rows=films).groups.tolist()
    assert groups[0] == groups[2] != groups[1]
    assert 0 not in groups[:3]
    assert groups[3:] == [0, 0]
    with pytest.raises(IftError, match="no row of `films` has anything in `yb`, its `group`"):
        rows_of(tmp_path, more="group: yb", rows=films)


# ── several files ──


def test_a_star_stands_for_several_files_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "a [1]?"
    (folder / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(["2.jsonl", "1.jsonl", "deep/er/3.jsonl", "4.csv"]):
        (folder / name).write_text(json.dumps(film(number)) + "\n{broken", encoding="utf-8")
    (folder / "0.jsonl").mkdir()
    rows = rows_of(tmp_path, "{files: 'a [1]?/*.jsonl'}")
    assert texts(rows) == {None: ["film 1", "film 0"]}
    assert [Path(str(q["file"])).name for q in quarantine(rows)] == ["1.jsonl", "2.jsonl"]
    assert texts(rows_of(tmp_path, "{files: 'a [1]?/**/*.jsonl'}")) == {None: ["film 1", "film 0", "film 2"]}
    assert refused(tmp_path, "{files: 'a/*.jsonl'}") == (
        "no file is called like DIR/a/*.jsonl\n  wanted: a path, where `*` stands for any letters"
    )


def test_empty_files_among_others_are_passed_over(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path, "{files: {train: 'r*.jsonl', test: t.jsonl}}", r1=[], r2=[film(1)], r3=[""], t=[film(2)]
    )
    assert texts(rows) == {"test": ["film 2"], "train": ["film 1"]}
    assert [Path(name).name for name in rows.empty] == ["r1.jsonl", "r3.jsonl"]
    with pytest.raises(formats.Empty, match=r"r1\.jsonl is empty"):
        rows_of(tmp_path, "{files: r1.jsonl}")
    (tmp_path / "r2.jsonl").unlink()
    with pytest.raises(formats.Empty, match=r"r3\.jsonl is empty"):
        rows_of(tmp_path, "{files: 'r*.jsonl'}")


def test_columns_of_a_table_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("film a\t1\nfilm b\n", encoding="utf-8")
    rows = rows_of(tmp_path, "{files: a.tsv, columns: [text, label]}")
    assert texts(rows) == {None: ["film a"]}
    assert [q["reason"] for q in quarantine(rows)] == ["1 columns, `columns` names 2"]


# ── the cache ──


def edit_row(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(jsonl([film(0), film(2)]), encoding="utf-8")


def edit_task(folder: Path) -> None:
    path = folder / "films.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("Apache-2.0", "MIT"), encoding="utf-8")


def edit_hook(folder: Path) -> None:
    with (folder / "prepare.py").open("a", encoding="utf-8") as file:
        file.write("# another one\n")


def stay(folder: Path) -> None:
    os.utime(folder / "rows.jsonl", (0, 0))


@pytest.mark.parametrize(
    ("edit", "anew"), [(edit_row, True), (edit_task, True), (edit_hook, True), (stay, False)]
)
def test_the_address_says_what_the_content_hangs_on(
    tmp_path: Path, edit: Callable[[Path], None], anew: bool
) -> None:
    (tmp_path / "prepare.py").write_text("def row(row):\n    return row\n", encoding="utf-8")
    file = write_films(tmp_path, more="hook: prepare.py:row", rows=[film(0), film(1)])
    first = examples_of(tasks.load(file=str(file)), tmp_path / "cache").lookup.folder
    edit(tmp_path)
    second = examples_of(tasks.load(file=str(file)), tmp_path / "cache").lookup.folder
    assert (first != second) == anew
    assert first.is_dir()


def test_another_version_of_the_code_reads_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows_of(tmp_path, rows=[film(0)]).lookup.folder
    monkeypatch.setattr(caches, "code_version", lambda: "another")
    assert rows_of(tmp_path, rows=[film(0)]).lookup.folder != first


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows_of(tmp_path, rows=[film(0), film(1)])
    monkeypatch.setattr(reading, "_write", None)
    again = rows_of(tmp_path, rows=[film(0), film(1)])
    assert texts(again) == texts(first)


@pytest.mark.parametrize(
    ("name", "left"), [("index.npz", 0), ("index.npz", 30), ("examples.jsonl", 20), ("meta.json", 0)]
)
def test_what_a_power_failure_has_cut_is_read_anew(tmp_path: Path, name: str, left: int) -> None:
    films = [film(0), film(1), film(2)]
    folder = rows_of(tmp_path, rows=films).lookup.folder
    os.truncate(folder / name, left)
    assert texts(rows_of(tmp_path, rows=films)) == {None: ["film 0", "film 1", "film 2"]}


def test_a_disk_that_fails_costs_no_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rows_of(tmp_path, rows=[film(0)]).lookup.folder

    def failing(*_: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(reading.np, "load", failing)
        with pytest.raises(IftError, match=r"cannot be read: Stale file handle"):
            rows_of(tmp_path, rows=[film(0)])
    assert (folder / "meta.json").is_file()


class Killed(BaseException):
    """Stands for a process that ends here."""


def test_a_process_that_dies_while_it_reads_leaves_nothing_that_passes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = [film(0), film(1), "{broken", film(1)]
    whole = rows_of(tmp_path, rows=films)
    wanted = {path.name: path.read_bytes() for path in whole.lookup.folder.iterdir() if path.suffix != ".npz"}
    died = 0
    for name in ("replace", "rename"):
        real = getattr(os, name)
        for count in range(9):
            calls = iter(range(count))

            def once(*arguments: Any, real: Any = real, calls: Any = calls) -> None:
                if next(calls, None) is None:
                    raise Killed
                real(*arguments)

            folder = tmp_path / f"{name}-{count}"
            folder.mkdir()
            with monkeypatch.context() as patch:
                patch.setattr(os, name, once)
                patch.setattr(
                    caches.shutil, "rmtree", lambda *_, **__: None
                )  # nobody clears up behind a dead process
                try:
                    file = write_films(tmp_path, rows=films)
                    examples_of(tasks.load(file=str(file)), folder)
                except Killed:
                    died += 1
                    assert not [
                        p for p in folder.rglob("meta.json") if not p.parent.name.startswith(".part-")
                    ]
            again = examples_of(tasks.load(file=str(tmp_path / "films.yaml")), folder)
            found = {path.name: path.read_bytes() for path in again.lookup.folder.iterdir()}
            with (
                np.load(again.lookup.folder / "index.npz") as one,
                np.load(whole.lookup.folder / "index.npz") as other,
            ):
                assert one.files == other.files
                assert all((one[name] == other[name]).all() for name in one.files)
            assert {name: content for name, content in found.items() if name in wanted} == wanted
    assert died >= 3  # the duplicates, the counts, the folder
