"""What was predicted before is found again, and only that."""

import math
from pathlib import Path
from typing import Any

import pytest

from ift.evaluate import store as stores
from ift.evaluate.store import Store

ITEMS = [
    {"name": "copying", "id": "a", "prompt": "x", "choices": ["1", "2"]},
    {"name": "copying", "id": "b", "prompt": "y"},
]
MADE = [{"name": "copying", "id": "a", "score": 1.0}, {"name": "copying", "id": "b", "score": 0.25}]


def test_what_was_put_is_found(tmp_path: Path) -> None:
    Store(tmp_path, model="m", dtype="float32").put(ITEMS, MADE, seconds=1.5)
    assert Store(tmp_path, model="m", dtype="float32").get(ITEMS) == (MADE, 1.5)


@pytest.mark.parametrize(
    ("model", "dtype", "items"),
    [
        ("other", "float32", ITEMS),
        ("m", "bfloat16", ITEMS),
        ("m", "float32", ITEMS[:1]),
        ("m", "float32", ITEMS[::-1]),
        ("m", "float32", [{**ITEMS[0], "prompt": "z"}, ITEMS[1]]),
    ],
)
def test_another_model_number_format_or_batch_is_not(
    tmp_path: Path, model: str, dtype: str, items: Any
) -> None:
    Store(tmp_path, model="m", dtype="float32").put(ITEMS, MADE, seconds=1.5)
    assert Store(tmp_path, model=model, dtype=dtype).get(items) is None


def test_other_code_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path, model="m").put(ITEMS, MADE, seconds=1.5)
    monkeypatch.setattr(stores, "_code", lambda: "another")
    assert Store(tmp_path, model="m").get(ITEMS) is None


@pytest.mark.parametrize("section", ["evaluate", "models", "prompts", "tasks"])
def test_what_loads_words_runs_or_grades_is_part_of_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    monkeypatch.setattr(stores, "_HOUSE", tmp_path)
    (tmp_path / section).mkdir()
    found = []
    for text in ("x = 1", "x = 2"):
        (tmp_path / section / "base.py").write_text(text)
        found.append(stores._code.__wrapped__())
    assert found[0] != found[1]


def test_a_score_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    Store(tmp_path, model="m").put(ITEMS, [MADE[0], {**MADE[1], "score": math.nan}], seconds=1.5)
    assert Store(tmp_path, model="m").get(ITEMS) is None
