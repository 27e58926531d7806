"""Several runs on one page: side by side, over each other, and in what they differ."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from run_pages import (
    HOSTILE,
    check_page,
    everywhere,
    make_metrics,
    make_predictions,
    make_record,
    make_summary,
    svgs,
)

from ift.tracking import plots
from ift.tracking.comparison import letter, write_comparison
from ift.tracking.drawing import RUNS
from ift.tracking.record import Record


def render(folder: Path, runs: dict[str, Record]) -> str:
    path = folder / "comparison.html"
    write_comparison(path, runs)
    assert [entry.name for entry in folder.iterdir()] == ["comparison.html"]
    return path.read_text(encoding="utf-8")


def two(**changes: Any) -> dict[str, Record]:
    """A run, and the same with another gain, method and learning rate."""
    summary = make_summary()
    summary["task"][0] |= {
        "tuned": {"value": 0.713, "low": 0.66, "high": 0.77},
        "gain": {"value": 0.2, "low": 0.13, "high": 0.27},
    }
    summary["train"] |= {"method": "lora", "tokens_per_second": 287.9}
    summary["timings"]["train"] = 198.6
    other = {
        "summary": summary,
        "settings": {"name": "other", "train.learning_rate": 5e-4, "seed": 17},
        **changes,
    }
    return {"full": make_record(), "lora": make_record(**other)}


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    html = render(tmp_path, two())
    page = check_page(html)
    assert re.findall(r'<section id="(\w+)"', html) == [
        *("runs", "standing", "scores", "losses", "differences", "costs", "places"),
    ]
    assert "reviews: accuracy 0.51 → 0.71 (+0.20, 95 % interval 0.13 to 0.27)." in page.text
    assert "0.51 → 0.82 gain +0.31 0.25 to 0.37" in page.text
    assert "0.51 → 0.71 gain +0.20 0.13 to 0.27" in page.text
    assert page.text.count("1.72 → 1.81 drop +0.09 0.06 to 0.12") == 2
    assert "train.learning_rate 3e-05 0.0005" in page.text
    assert "Method all weights LoRA" in page.text
    assert "Tokens a second 101.2 287.9" in page.text
    rate = sum(r["supervised_tokens"] for r in make_metrics()) / sum(r["seconds"] for r in make_metrics())
    assert f"Supervised tokens a second {rate:.4g} {rate:.4g}" in page.text
    assert "Time: train 7 min 0 s 3 min 19 s" in page.text
    differences = html.split('id="differences"')[1].split("</section>")[0]
    assert "seed" not in differences  # the same in both
    assert "other" not in differences  # a name says where a run goes, not what it is
    assert len(svgs(html)) == 4
    assert "A: gain 0.90, interval" in html
    assert "after 41,820 tokens" in html


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    assert render(tmp_path, two()) == render(tmp_path, two())


def test_all_text_is_escaped(tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        return everywhere(value, lambda _: HOSTILE)

    summary = poison(make_summary())
    summary["versions"] = {HOSTILE: HOSTILE}
    summary["timings"][HOSTILE] = 3.0
    settings = {HOSTILE: HOSTILE, "tasks": [{"name": HOSTILE, "cap": None}]}
    html = render(
        tmp_path, {HOSTILE: make_record(summary=summary, settings=settings), "other": make_record()}
    )
    page = check_page(html)
    assert "<script" not in html
    assert "alert(1)" in page.text
    assert "{{ 7*7 }}" in page.text


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    runs = two(settings={"data.source": "https://ada:hunter2@rows.example"})
    assert "hunter2" not in render(tmp_path, runs)


@pytest.mark.parametrize("key", sorted(make_summary()))
def test_any_part_may_be_missing(tmp_path: Path, key: str) -> None:
    summary = copy.deepcopy(make_summary())
    del summary[key]
    check_page(render(tmp_path, {"whole": make_record(), "part": make_record(summary=summary)}))


def test_nothing_at_all(tmp_path: Path) -> None:
    html = render(tmp_path, {"one": Record({}), "two": Record({})})
    text = check_page(html).text
    assert not svgs(html)
    for said in (
        "No run has both a gain and a drop",
        "None was scored",
        "No training step was recorded",
        "their specs and their packages are the same",
    ):
        assert said in text


def test_probes_that_one_run_was_not_asked(tmp_path: Path) -> None:
    summary = make_summary()
    summary["probes"] = summary["probes"][:1]
    text = check_page(render(tmp_path, {"all": make_record(), "one": make_record(summary=summary)})).text
    assert text.count("not asked") == 2


def test_other_items_are_told(tmp_path: Path) -> None:
    before, after = make_predictions()
    runs = {"all": make_record(), "some": make_record(before=before[1:], after=after[1:])}
    assert "B was asked other items than A of reviews" in check_page(render(tmp_path, runs)).text
    other = [
        {**row, "prompt": f"{row['prompt']} Now?"} if row["name"] == "reviews" else row for row in before
    ]
    runs = {"one": make_record(), "other words": make_record(before=other)}
    assert "B was asked other items than A of reviews" in check_page(render(tmp_path, runs)).text
    assert "other items" not in check_page(render(tmp_path, two())).text


def test_different_limits_are_not_drawn_as_one(tmp_path: Path) -> None:
    summary = make_summary()
    summary["gate"]["max_drop"] = 0.2
    assert "more than 0.05, what is tolerated" in render(tmp_path, two())
    assert "what is tolerated" not in render(
        tmp_path, {"a": make_record(), "b": make_record(summary=summary)}
    )


def test_many_runs_have_letters_colours_and_dashes_of_their_own(tmp_path: Path) -> None:
    runs = {f"run {i}": make_record(metrics=make_metrics(9)) for i in range(2 * len(RUNS) + 1)}
    html = render(tmp_path, runs)
    check_page(html)
    assert "M run 12" in html
    assert [letter(i) for i in (0, 25, 26, 51, 52)] == ["A", "Z", "A2", "Z2", "A3"]


def test_losses_lie_over_the_tokens_that_were_trained_on() -> None:
    metrics = make_metrics(10)
    curve = plots.curve_of(
        "A", metrics, [{"step": 0, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 99, "loss": 1}]
    )
    assert curve.steps[0] == (1020, metrics[0]["loss"])
    assert curve.steps[-1] == (10_200, metrics[-1]["loss"])
    assert curve.checks == [(0.0, 2.0), (10_200, 1.0)]  # a step that no metrics know of has no place
    metrics[3] |= {"loss": math.nan, "tokens": None}
    again = plots.curve_of("A", metrics, [])
    assert len(again.steps) == 9
    assert again.steps[-1][0] == 9_180
