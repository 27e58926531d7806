"""The report: self-contained, escaped, complete, the same bytes twice, and never in the way of a run."""

import contextlib
import copy
import json
import math
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_pages import (
    HOSTILE,
    SPEC,
    VALIDATION,
    Page,
    check_page,
    everywhere,
    make_metrics,
    make_predictions,
    make_record,
    make_summary,
    prediction,
    svgs,
)

from ift.tracking import plots
from ift.tracking.drawing import CURVE_POINTS, thin
from ift.tracking.record import Record, standing
from ift.tracking.report import headline, write_report
from ift.tracking.words import CONTROL, duration, interval, number

NOTHING_DRAWN = dict.fromkeys(("scores", "losses", "standing", "looks", "drops", "curves", "tasks"))


def render(folder: Path, plots: bool = True, record: Record | None = None, **changes: Any) -> str:
    """The page; `plots=False` leaves out the plots, which take most of the time."""
    path = folder / "report.html"
    with contextlib.ExitStack() as stack:
        if not plots:
            stack.enter_context(patch("ift.tracking.plots.of_run", return_value=NOTHING_DRAWN))
        write_report(path, record or make_record(**changes))
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_self_contained_and_well_formed(tmp_path: Path) -> None:
    html = render(tmp_path)
    page = check_page(html)
    assert "http://tracking.example:5000" in page.text  # an address may be read, not loaded
    assert "w3.org" not in html
    assert "matplotlib" not in html
    assert (
        len(svgs(html)) == 2 * len(NOTHING_DRAWN) - 2
    )  # each for a wide and a narrow window; one task has no own


def test_plots_take_their_colours_from_the_page_and_have_a_text(tmp_path: Path) -> None:
    html = render(tmp_path)
    for svg in svgs(html):
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label") or "") > 60
        for element in svg.iter():
            assert not re.search(r"#[0-9a-f]{6}", element.get("style", "")), element.attrib
    variables = set(re.findall(r"var\(--(\w+)\)", html)) - {"colour", "share"}  # which elements bring along
    for scheme in html.split("prefers-color-scheme: dark")[:2]:
        assert variables <= set(re.findall(r"--(\w+):", scheme))


def test_same_input_same_bytes(tmp_path: Path) -> None:
    assert render(tmp_path) == render(tmp_path)


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31, "axes.grid": False}):
        first = render(tmp_path)
        assert matplotlib.rcParams["font.size"] == 31
    assert render(tmp_path) == first


def test_every_number_of_the_summary_is_on_the_page(tmp_path: Path) -> None:
    summary = make_summary()
    text = check_page(render(tmp_path)).text

    def forms(value: float | str) -> set[str]:
        if isinstance(value, str):
            return {value}
        if isinstance(value, int):
            return {f"{value:,}"}
        return {number(value), f"{value:.4g}", f"{value:.1f} s", f"{100 * value:.1f} %"}

    def leaves(value: Any, trail: str = "") -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                leaves(inner, f"{trail}.{key}")
        elif isinstance(value, list):
            for inner in value:
                leaves(inner, trail)
        elif not trail.endswith((".kind", ".role")):
            assert any(form in text for form in forms(value)), (trail, value)

    leaves({key: value for key, value in summary.items() if key != "looks"})  # a curve
    for part in (SPEC.splitlines()[1], "List three fruits.", "review number 8", "lower is better"):
        assert part.lower() in text.lower()


def test_sections_in_order(tmp_path: Path) -> None:
    html = render(tmp_path, plots=False)
    order = [
        "gate",
        "scores",
        "prompting",
        "attempts",
        "training",
        "numbers",
        "confusion",
        "predictions",
        "stream",
        "spec",
        "time",
        "places",
    ]
    assert re.findall(r'<section id="(\w+)"', html) == order


def test_prompting_attempts_and_looks_are_told(tmp_path: Path) -> None:
    html = render(tmp_path)
    text = Page(html).text
    for part in ("tuning pays: 0.82 against 0.71 with 3 shots", "0.69 to 0.73", "1,412", "611", "0.83"):
        assert part in text
    assert "trec-lora (chosen)" in text
    assert "all weights" in text
    assert "At the last look, behind step 20, the mean drop is 0.07 and the mean gain 0.30." in html


def test_headline() -> None:
    assert headline(make_summary()) == (
        "reviews: accuracy 0.51 → 0.82 (+0.31, 95 % interval 0.25 to 0.37). "
        "Worst drop: 0.20 (instructions). Gate: fail."
    )
    assert headline({}).startswith("No task was scored. No probe was scored")
    many = make_summary()
    many["task"] = many["task"] * 5
    assert "2 more tasks below." in headline(many)


@pytest.mark.parametrize("verdict", ["pass", "fail", "unclear", None, "overridden"])
def test_verdict_is_said_in_words(tmp_path: Path, verdict: str | None) -> None:
    summary = make_summary()
    summary["gate"]["verdict"] = verdict
    assert (
        f"Gate: {verdict or 'not decided'}" in check_page(render(tmp_path, plots=False, summary=summary)).text
    )


def test_right_and_wrong_are_said_in_words(tmp_path: Path) -> None:
    text = check_page(render(tmp_path, plots=False)).text
    assert "Of 12 items: 1 right → wrong, 9 wrong → right, 1 worse score, 1 stayed wrong." in text
    assert text.count("✗ wrong") == 12
    assert text.count("✓ right") == 10
    assert "1.721 nats a token" in text
    assert "1 item, 3 wanted" in text  # the rule that the answer broke


def test_all_text_is_escaped(tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        return everywhere(value, lambda _: HOSTILE)

    summary = poison(make_summary())
    summary["versions"] = {HOSTILE: HOSTILE}
    summary["timings"][HOSTILE] = 3.0
    summary["stream"]["tasks"] = {HOSTILE: 1}
    for row in summary["attempts"]:
        row["gains"] = {HOSTILE: 0.1}
    metrics = [{**row, "losses": {HOSTILE: 1.0, "other": 2.0}} for row in make_metrics()]
    sides = [
        [
            {**poison(row), "kind": row["kind"], "suite": row["suite"], "task_kind": row["task_kind"]}
            for row in side
        ]
        for side in make_predictions()
    ]
    html = render(
        tmp_path,
        summary=summary,
        metrics=metrics,
        before=sides[0],
        after=sides[1],
        lengths={HOSTILE: {3: 4}},
        spec=f"name: {HOSTILE}\n",
    )
    page = check_page(html)
    assert html.count("<script") == 1
    for part in ("alert(1)", "{{ 7*7 }}", "$x^2_$"):
        assert part in page.text
    assert "\x00" not in html
    assert "\x1b" not in html


# What has ended pages before: ends of elements and comments, quotes, entities, control signs, halves of pairs.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "<script>",
                    "</script>",
                    "<!--",
                    "-->",
                    "]]>",
                    "<img src=x onerror=alert(1)>",
                    "</td></table>",
                ),
                *("<svg/onload=alert(1)>", "&lt;", "'", '"', "`", "{{ 1 }}", "{% raw %}"),
                *("\x00", "\u202e", "\ud800", " ", "\n"),
            ]
        ),
        st.text(max_size=12),
    ),
    max_size=8,
).map("".join)
ATTRIBUTES = {
    *(
        "aria-hidden",
        "aria-label",
        "aria-labelledby",
        "autocomplete",
        "charset",
        "class",
        "content",
        "dir",
        "hidden",
    ),
    *("data-change", "data-control", "data-label", "data-task", "href", "http-equiv", "id", "lang", "name"),
    *("placeholder", "rel", "role", "scope", "style", "tabindex", "title", "type", "value"),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXTS, prompt=TEXTS, base=TEXTS, tuned=TEXTS, expected=TEXTS)
def test_no_text_becomes_markup(
    tmp_path: Path, name: str, prompt: str, base: str, tuned: str, expected: str
) -> None:
    told = {"prompt": prompt, "expected": expected, "task_kind": "classification", "label": expected}
    html = render(
        tmp_path,
        plots=False,
        before=[prediction(name, 0, **told, output=base, predicted=base, score=0.0)],
        after=[prediction(name, 0, **told, output=tuned, predicted=tuned, detail=json.dumps([tuned]))],
    )
    page = check_page(html)
    assert {attribute for _, attribute, _ in page.attributes} <= ATTRIBUTES
    assert page.tags.count("script") == 1
    for text in (prompt, base, tuned, expected):
        told_text = text.translate(CONTROL).encode("utf-8", "backslashreplace").decode()
        assert " ".join(told_text.split()) in " ".join(page.text.split())


def test_names_in_other_scripts_stay_text(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    summary = make_summary()
    summary["probes"][0]["name"] = "算数 عربى 🙂"
    html = render(tmp_path, summary=summary)
    check_page(html)
    assert any("算数 عربى 🙂" in (text.text or "") for svg in svgs(html) for text in svg.iter("text"))
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_passwords_in_addresses_are_not_shown(tmp_path: Path) -> None:
    summary = make_summary()
    summary["mlflow"]["tracking_uri"] = "https://ada:hunter2@ml.example"
    html = render(
        tmp_path,
        plots=False,
        summary=summary,
        spec="tracking: {uri: 'https://ada:hunter2@ml.example'}\n",
    )
    assert "hunter2" not in html
    assert html.count("https://ml.example") == 2


def test_long_texts_are_folded_and_cut(tmp_path: Path) -> None:
    before = [prediction("words", 0, prompt="<&>" * 100_000, output="line\n" * 4_000)]
    html = render(tmp_path, plots=False, before=before, after=before, spec="# long\n" * 100_000)
    page = check_page(html)
    assert page.tags.count("details") == 1
    assert "(298,500 more characters)" in page.text
    assert page.text.count("(18,500 more characters)") == 2
    assert "more characters)" in html.split('id="spec"')[1]


def test_many_predictions_are_capped_and_counted(tmp_path: Path) -> None:
    before = [prediction("words", i, output="same", score=float(i % 2)) for i in range(2_500)]
    after = [{**row, "score": 1.0} for row in before]
    page = check_page(render(tmp_path, plots=False, before=before, after=after))
    assert (
        "Of 2,500 items: 1,250 wrong → right, 1,250 stayed right. 500 of them are left out here" in page.text
    )
    changes = [value for _, name, value in page.attributes if name == "data-change"]
    assert (changes.count("fixed"), changes.count("right")) == (1_250, 750)


def without(key: str) -> dict[str, Any]:
    summary = make_summary()
    del summary[key]
    return summary


@pytest.mark.parametrize("key", sorted(make_summary()))
def test_any_part_may_be_missing(tmp_path: Path, key: str) -> None:
    check_page(render(tmp_path, plots=False, summary=without(key)))
    summary = make_summary()
    summary[key] = None
    check_page(render(tmp_path, plots=False, summary=summary))


def test_nothing_at_all(tmp_path: Path) -> None:
    html = render(tmp_path, record=Record({}))
    text = check_page(html).text
    assert not svgs(html)
    assert "<script" not in html
    for said in (
        "No task was scored",
        "No training step",
        "No predictions were kept",
        "not recorded in MLflow",
        "No model",
        "No stream was written",
        "runs no script",
    ):
        assert said in text


def test_predictions_of_other_items_are_not_compared(tmp_path: Path) -> None:
    before, after = make_predictions()
    page = check_page(render(tmp_path, plots=False, before=before[2:], after=after[:-1]))
    assert "Of 9 items: 1 right → wrong, 8 wrong → right." in page.text


def test_no_tasks_or_no_probes(tmp_path: Path) -> None:
    text = check_page(render(tmp_path, summary={**make_summary(), "task": [], "probes": []})).text
    assert "Neither a task nor a probe was scored" in text
    check_page(render(tmp_path, summary={**make_summary(), "task": []}))
    assert "nothing is known" in check_page(render(tmp_path, summary={**make_summary(), "probes": []})).text


def test_mlflow_that_did_not_answer(tmp_path: Path) -> None:
    summary = {**make_summary(), "mlflow": {"error": "http://ml:5000 does not answer"}}
    assert (
        "could not be recorded in MLflow: http://ml:5000 does not"
        in check_page(render(tmp_path, plots=False, summary=summary)).text
    )


@pytest.mark.parametrize(
    ("steps", "validation"),
    [(0, []), (0, VALIDATION[:1]), (1, []), (1, VALIDATION), (2, []), (7, VALIDATION)],
)
def test_short_runs(tmp_path: Path, steps: int, validation: list[dict[str, Any]]) -> None:
    summary = {**make_summary(), "task": [], "probes": []}
    html = render(tmp_path, summary=summary, metrics=make_metrics(steps), validation=validation)
    page = check_page(html)
    assert ("No training step was recorded" in page.text) == (not steps and not validation)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_losses_that_are_no_numbers(tmp_path: Path, bad: float | None) -> None:
    metrics = make_metrics()
    for row in metrics[20:]:
        row.update(loss=bad, grad_norm=bad, tokens=bad)
    validation = [VALIDATION[0], {"step": 41, "epoch": 1, "loss": bad}]
    bare = {**make_summary(), "task": [], "probes": []}
    text = check_page(render(tmp_path, summary=bare, metrics=metrics, validation=validation)).text
    assert "21 steps have a loss that is no finite number; the first is step 21" in text
    every = [{**row, "loss": bad, "seconds": 0} for row in metrics]
    check_page(render(tmp_path, summary=bare, metrics=every, validation=validation[1:]))


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "0.5", "no"])
def test_scores_and_intervals_that_are_missing(tmp_path: Path, bad: Any) -> None:
    for parts in (("low", "high"), ("value", "low", "high")):
        summary = copy.deepcopy(make_summary())
        for row in [*summary["task"], *summary["probes"]]:
            for key in ("base", "tuned", "gain", "drop"):
                if key in row:
                    row[key] = {**row[key], **dict.fromkeys(parts, bad)}
        check_page(render(tmp_path, summary=summary, metrics=[], validation=[]))
    for row in [*summary["task"], *summary["probes"]]:
        row.update(base=None, tuned=None, gain=None, drop=None, items=None, metric=None)
    summary["gate"].update(mean_drop=bad, worst_drop=bad, worst_probe=None)
    summary["timings"]["train"] = bad
    check_page(render(tmp_path, summary=summary, metrics=[], validation=[]))


def test_long_run_stays_small_and_keeps_its_spike(tmp_path: Path) -> None:
    metrics = make_metrics(20_000)
    metrics[7_777]["loss"] = 61.5
    html = render(tmp_path, metrics=metrics)
    check_page(html)
    assert len(html) < 500_000
    assert "log scale" in html
    points = [(float(row["step"]), row["loss"]) for row in metrics]
    kept = thin(points)
    assert len(kept) <= CURVE_POINTS
    assert (7778.0, 61.5) in kept
    assert kept == sorted(kept)
    assert thin(points[:10]) == points[:10]


def test_smoothing_weighs_steps_by_their_supervised_tokens() -> None:
    flat = [{"step": step, "loss": 1.0, "supervised_tokens": 10} for step in range(1, 31)]
    assert all(value == pytest.approx(1.0) for _, value in plots.smoothed(flat))
    flat[15] = {"step": 16, "loss": 5.0, "supervised_tokens": 40}
    assert dict(plots.smoothed(flat))[16.0] == pytest.approx((4 * 10 * 1.0 + 40 * 5.0) / 80)
    assert plots.smoothed(flat[:7]) == []


def test_numbers_in_words() -> None:
    assert [number(-0.0004), number(-0.02, 2), number(0.31, 2, sign=True)] == ["0.000", "−0.02", "+0.31"]
    assert [number(None), number(math.nan), number(math.inf)] == ["–", "not a number", "infinite"]
    assert interval({"low": 0.25, "high": 0.373}, 2) == "0.25 to 0.37"
    assert interval({"low": None, "high": 1}) == ""
    assert (duration(9.04), duration(420), duration(7384)) == ("9.0 s", "7 min 0 s", "2 h 3 min")
    assert duration(None) == "–"


def test_each_task_has_its_own_loss(tmp_path: Path) -> None:
    metrics = [
        {
            **row,
            "losses": {f"task{i}": row["loss"] * (i + 1) for i in range(30) if row["step"] % (i + 1) == 0},
        }
        for row in make_metrics()
    ]
    html = render(tmp_path, metrics=metrics)
    page = check_page(html)
    assert "6 tasks that fewer steps saw are not drawn" in page.text
    assert "The loss of 30 tasks over the steps that saw it: task0 from" in html
    assert list(plots.losses_of_tasks(metrics))[:3] == ["task0", "task1", "task2"]  # the most seen first
    assert plots.losses_of_tasks(make_metrics()) == {}


def test_standing_counts_each_task_and_probe_once() -> None:
    before, after = make_predictions()
    found = standing(make_record())
    assert found["gain"]["value"] == pytest.approx(0.9)
    assert found["gain"]["low"] < 0.9 < found["gain"]["high"] <= 1.0
    assert found["drop"]["value"] == pytest.approx((1.0 + 1 - math.exp(1.721 - 1.811)) / 2)
    more = [prediction("reviews2", i, suite="task", score=0.5) for i in range(40)]
    twice = standing(make_record(before=before + more, after=after + more))
    assert twice["gain"]["value"] == pytest.approx(0.45)  # forty items weigh as much as ten
    alone = standing(make_record(before=[], after=[]))
    assert alone["gain"] == {"value": 0.31, "low": 0.247, "high": 0.373}
    assert alone["drop"]["value"] == pytest.approx((-0.021 + 0.086 + 0.201) / 3)
    assert standing(Record({}))["gain"]["value"] is None


def test_what_was_tried_stands_beside_the_run(tmp_path: Path) -> None:
    summary = make_summary()
    summary["attempts"][0] |= {"gains": {"reviews": 0.4}, "mean_drop": 0.2, "chosen": False}
    html = render(tmp_path, summary=summary)
    assert "trec: gain 0.40, drop 0.20" in html
    assert "what was tried and not chosen" in check_page(html).text
    assert "more than 0.05, what is tolerated of any one probe" in html
