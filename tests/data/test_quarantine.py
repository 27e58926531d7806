"""The quarantine: all bad rows in a file, their tally in memory, and a refusal where they are too many."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data.quarantine import Quarantine, Tally
from ift.errors import IftError

rows = st.lists(st.tuples(st.text(), st.text(), st.integers(1, 99)), max_size=6)


@given(rows, rows)
def test_what_is_set_aside_is_listed_and_counted(
    tmp_path_factory: pytest.TempPathFactory,
    one: list[tuple[str, str, int]],
    other: list[tuple[str, str, int]],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, some in (("one", one), ("other", other)):
        with Quarantine(folder / name) as quarantine:
            for reason, text, line in some:
                quarantine.add(task="films", file="a.jsonl", line=line, reason=reason, text=text)
    with Quarantine(folder / "both") as both:
        both.take(folder / "one")
        both.take(folder / "other")
    listed = [json.loads(line) for line in (folder / "both").read_bytes().split(b"\n") if line]
    assert [(row["reason"], row["text"], row["line"]) for row in listed] == [*one, *other]
    assert both.tally.count == len(listed) == both.tally.reasons.total()
    assert both.tally.first == (listed[0] if listed else None)


def test_half_of_a_character_in_a_bad_row_can_be_written(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "q") as quarantine:
        quarantine.add(task="films", file=None, line=1, reason="x", text="\ud800")
    assert len((tmp_path / "q").read_text(encoding="utf-8").splitlines()) == 1


def test_no_more_of_a_row_is_kept_than_is_read(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "q") as quarantine:
        kept = quarantine.add(task="films", file=None, line=1, reason="x", text="very " * 500)
    assert kept["text"] == "very " * 100


@pytest.mark.parametrize(
    ("allowed", "refused"), [(0.1, False), (0.09, True), (10, False), (9, True), (0, True), (1.0, False)]
)
def test_a_share_or_a_count_of_bad_rows_is_allowed(allowed: float | int, refused: bool) -> None:
    tally = Tally()
    for line in range(1, 11):
        tally.add({"file": "a.jsonl", "line": line, "reason": "not JSON"})
    if not refused:
        tally.refuse("films", 100, allowed)
        return
    with pytest.raises(
        IftError, match=r"^a\.jsonl:1: 10 of 100 rows of `films` are bad \(10\.0%\): not JSON \(10\)"
    ):
        tally.refuse("films", 100, allowed)
