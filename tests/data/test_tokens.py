"""The token cache: what is written is found by its key, whatever was written before, beside or half."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.data import tokens
from ift.data.draws import Request, Requests
from ift.data.tokenize import Document
from ift.data.tokens import Reader, Tokens, keys_of
from ift.data.wording import Made
from ift.errors import IftError


@st.composite
def documents(draw: st.DrawFn) -> Document:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
    marks = draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))
    return Document(ids, [False, *marks])


good = st.builds(
    Made,
    documents(),
    st.sampled_from(["", "ask", "tell"]),
    shots=st.integers(0, 3),
    options_shown=st.booleans(),
    cut=st.booleans(),
)
bad = st.builds(Made, st.none(), st.just("ask"), reason=st.text(max_size=5), too_long=st.booleans())
made = st.lists(good, min_size=1, max_size=3) | bad.map(lambda one: [one])
cached = st.dictionaries(st.integers(0, 2**64 - 1), made, max_size=8)


def of(documents: dict[int, list[Made]], folder: Path) -> None:
    tokens.write(folder, np.array(list(documents), dtype=np.uint64), list(documents.values()))


def read(folder: Path, keys: list[int]) -> list[list[Made]]:
    """What the cache has of each key, as it was made; its words are not kept."""
    found, reader, all_made = Tokens(folder), Reader(), []
    first, count = found.find(np.array(keys, dtype=np.uint64))
    for start, n in zip(first.tolist(), count.tolist(), strict=True):
        one = []
        for row in range(start, start + n):
            marked = reader.read(found.paths[found.file[row]], int(found.start[row]), int(found.length[row]))
            ids = [~token if token < 0 else token for token in marked.tolist()]
            document = Document(ids, [token < 0 for token in marked.tolist()]) if ids else None
            assert int(found.supervised[row]) == sum(token < 0 for token in marked.tolist())
            one.append(
                Made(
                    document,
                    found.templates[found.template[row]],
                    shots=int(found.shots[row]),
                    options_shown=bool(found.options[row]),
                    reason=found.reasons.get(row),
                    too_long=bool(found.too_long[row]),
                    cut=bool(found.cut[row]),
                )
            )
        all_made.append(one)
    return all_made


@settings(max_examples=40)
@given(st.lists(cached, max_size=4), st.integers(0, 2**64 - 1))
def test_what_is_written_is_found(
    tmp_path_factory: pytest.TempPathFactory, segments: list[dict[int, list[Made]]], other: int
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    known: dict[int, list[Made]] = {}
    for segment in segments:
        new = {key: made for key, made in segment.items() if key not in known}
        of(new, folder)
        known |= new
    assert read(folder, list(known)) == list(known.values())
    assert read(folder, [other]) == [known.get(other, [])]


@settings(max_examples=40)
@given(cached, cached, st.integers(0, 4), st.booleans())
def test_two_that_write_at_once_leave_what_each_has_made(
    tmp_path_factory: pytest.TempPathFactory,
    one: dict[int, list[Made]],
    other: dict[int, list[Made]],
    at: int,
    same: bool,
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    other = dict(one) if same else {**other, **dict(list(one.items())[:3])}  # equal keys, equal documents
    real, calls = os.replace, iter(range(at))

    def interrupted(*arguments: Any) -> None:
        if next(calls, None) is None:
            patch.undo()
            of(other, folder)  # the other comes from here to its end
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        of(one, folder)
    of(other, folder)
    everything = {**one, **other}
    assert read(folder, list(everything)) == list(everything.values())


class Killed(BaseException):
    """Stands for a process that ends here."""


@given(cached, cached, st.integers(0, 2))
def test_a_process_that_dies_while_it_writes_has_written_nothing_or_all(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[int, list[Made]],
    new: dict[int, list[Made]],
    at: int,
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    of(before, folder)
    new = {key: made for key, made in new.items() if key not in before}
    real, calls = os.replace, iter(range(at))

    def dying(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise Killed
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dying)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody clears up behind a dead process
        try:
            of(new, folder)
        except Killed:
            assert at < 2
        else:
            assert at == 2
    assert read(folder, list(before)) == list(before.values())
    assert read(folder, list(new)) == (list(new.values()) if at == 2 else [[] for _ in new])
    of(new, folder)
    everything = {**before, **new}
    assert read(folder, list(everything)) == list(everything.values())


MADE = {7: [Made(Document([9, 4, 7, 2], [False, False, True, True]), "ask")]}


def test_a_segment_without_its_second_file_is_not_there(tmp_path: Path) -> None:
    of(MADE, tmp_path)
    [table] = tmp_path.glob("*.parquet")
    table.unlink()
    assert read(tmp_path, [7]) == [[]]


@pytest.mark.parametrize("left", [0, 4, 15, None])
def test_tokens_that_are_cut_off_do_not_pass_for_tokens(tmp_path: Path, left: int | None) -> None:
    of(MADE, tmp_path)
    [file] = tmp_path.glob("*.tokens")
    if left is None:
        file.unlink()
    else:
        os.truncate(file, left)
        with pytest.raises(EOFError, match=r"\.tokens ends within the tokens from 0 on"):
            Reader().read(str(file), 0, 4)
    assert read(tmp_path, [7]) == [[]]
    of(MADE, tmp_path)
    assert read(tmp_path, [7]) == [MADE[7]]


def test_a_disk_that_fails_costs_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.write(tmp_path, np.array([7], dtype=np.uint64), [[]])
    (path,) = tmp_path.glob("*.parquet")

    def failing(_: Path) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(tokens.pq, "read_table", failing)
        with pytest.raises(IftError, match=r"cannot be read: Stale file handle"):
            tokens.Tokens(tmp_path)
    assert path.is_file()
    path.write_bytes(path.read_bytes()[:-20])  # and one that is broken goes
    tokens.Tokens(tmp_path)
    assert not path.exists()


def test_the_drawing(tmp_path: Path) -> None:
    of(MADE, tmp_path)
    [file] = tmp_path.glob("*.tokens")
    assert Reader().read(str(file), 0, 4).tolist() == [9, 4, ~7, ~2]
    assert file.read_bytes() == np.array([9, 4, ~7, ~2], dtype="<i4").tobytes()


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "no", [7]) == [[]]


# ── keys ──

IDS = np.array([11, 12, 13, 14], dtype=np.uint64)
asked = st.tuples(
    st.integers(0, 3),  # place
    st.integers(0, 3),  # pass
    st.sampled_from([None, True, False]),
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.sampled_from(["train", "validation"]),
    st.integers(0, 2),  # epoch
)
Asked = tuple[int, int, bool | None, tuple[int, ...], str, int]


def key_of(one: Asked) -> int:
    place, pass_, shown, exemplars, split, epoch = one
    request = Requests(
        "films",
        split,
        epoch,
        np.array([place], dtype=np.int64),
        IDS[[place]],
        np.array([pass_], dtype=np.int64),
        np.array([-1 if shown is None else shown], dtype=np.int8),
        {0: exemplars} if exemplars else {},
    )
    assert request[0] == Request("films", place, int(IDS[place]), split, epoch, pass_, exemplars, shown)
    return int(keys_of(request, IDS)[0])


@given(asked, asked)
def test_a_key_says_what_the_words_hang_on_and_no_more(one: Asked, other: Asked) -> None:
    assert (key_of(one) == key_of(other)) == (one[:5] == other[:5])  # an epoch words nothing
