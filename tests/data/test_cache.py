"""The cache's folders: whole or not there, under an address that changes with all that the content hangs on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift import storage
from ift.data import cache as caches

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_other_parts_have_another_address(one: Any, other: Any) -> None:
    here = Path("cache")
    addresses = [caches.address(here, "examples", "films", part) for part in (one, other)]
    assert (addresses[0] == addresses[1]) == (repr_of(one) == repr_of(other))
    assert addresses[0].parent == here / "examples"
    assert addresses[0].name.startswith("films-")


def repr_of(value: Any) -> str:
    """Equal for values that JSON writes alike: 1 and True are two, the order of a mapping's keys is none."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_of(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_of, value)) + "]"
    return repr(value)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of a few files, in a folder called `library`, as any user may have one."""
    root = tmp_path / "library" / "ift"
    names = (
        *("prompts/chat.py", "tasks/task.py", "tasks/library/trec.py", "data/split.py", "train/loop.py"),
        *("models/base.py", "models/plan.py"),
    )
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(caches, "_HOUSE", root)
    caches.code_version.cache_clear()
    yield root
    caches.code_version.cache_clear()


@pytest.mark.parametrize(
    ("name", "anew"),
    [
        ("prompts/chat.py", True),
        ("tasks/task.py", True),
        ("data/split.py", True),
        ("data/new.py", True),
        ("tasks/library/trec.py", False),  # counts with its task
        ("train/loop.py", False),
        ("models/base.py", True),  # has what loads a tokenizer
        ("models/plan.py", False),
    ],
)
def test_code_that_words_or_tokenizes_is_part_of_the_address(house: Path, name: str, anew: bool) -> None:
    before = caches.code_version()
    (house / name).write_text("x = 2\n", encoding="utf-8")
    caches.code_version.cache_clear()
    assert (caches.code_version() != before) == anew


def test_another_version_of_a_library_counts(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = caches.code_version()
    monkeypatch.setattr(storage.metadata, "version", lambda name: "0.0" if name == "tokenizers" else "1.0")
    caches.code_version.cache_clear()
    assert caches.code_version() != before


def test_a_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "kind" / "name"
    with caches.made(place) as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        assert not place.exists()
    assert [path.name for path in place.iterdir()] == ["a"]
    assert [path.name for path in place.parent.iterdir()] == ["name"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_that_breaks_off_is_not_there(tmp_path: Path, error: type[BaseException]) -> None:
    place = tmp_path / "kind" / "name"

    def breaking_off() -> None:
        with caches.made(place) as folder:
            (folder / "a").write_text("1", encoding="utf-8")
            raise error

    with pytest.raises(error):
        breaking_off()
    assert list(place.parent.iterdir()) == []


def test_the_quicker_of_two_stays(tmp_path: Path) -> None:
    place = tmp_path / "name"
    with caches.made(place) as slow:
        (slow / "a").write_text("slow", encoding="utf-8")
        with caches.made(place) as quick:
            (quick / "a").write_text("quick", encoding="utf-8")
    assert (place / "a").read_text(encoding="utf-8") == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f".part-{name}").mkdir()
        (tmp_path / f".part-{name}" / "examples.jsonl").touch()
    os.utime(tmp_path / ".part-old", (0, 0))
    with caches.made(tmp_path / "name"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part-new", "name"]


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    for name, content in {"a": b"1", "b": b"1", "c": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (caches.digest_of(tmp_path / name) for name in "abc")
    assert a == b != c
