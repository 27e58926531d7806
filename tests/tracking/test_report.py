"""The report: self-contained, escaped, complete, the same bytes twice, and never in the way of a run."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ift.tracking.report import (
    CURVE_POINTS,
    _smooth,
    _thin,
    duration,
    headline,
    interval,
    number,
    write_report,
)

SPEC = "name: quickstart\nmodel: {source: package:x==1/y.gguf}\nseed: 17\n"


def score(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def make_summary() -> dict[str, Any]:
    return {
        "prompting": [
            {
                "name": "trec",
                "metric": "accuracy",
                "items": 300,
                "ways": [
                    {
                        "way": "base, 3 shots",
                        "score": score(0.71, 0.66, 0.76),
                        "draws": {"lowest": 0.69, "highest": 0.73, "count": 3},
                        "prompt_tokens": 1412,
                        "context_left": 611,
                        "seconds": 0.83,
                    },
                    {
                        "way": "tuned",
                        "score": score(0.82, 0.78, 0.86),
                        "prompt_tokens": 61,
                        "context_left": 1987,
                    },
                ],
                "verdict": {"kind": "tuning", "words": "tuning pays: 0.82 against 0.71 with 3 shots"},
            }
        ],
        "attempts": [
            {"name": "trec", "method": "full", "verdict": "fail", "worst_drop": 0.4, "worst_probe": "lists"},
            {
                "name": "trec-lora",
                "method": "lora",
                "verdict": "pass",
                "gains": {"trec": 0.28},
                "chosen": True,
            },
        ],
        "looks": [
            {"step": 10, "mean_drop": 0.01, "gain/trec": 0.2},
            {"step": 20, "mean_drop": 0.07, "gain/trec": 0.3},
        ],
        "name": "quickstart",
        "status": "finished",
        "model_dir": "/runs/quickstart/model",
        "run_dir": "/runs/quickstart",
        "stream": {
            "packs": 83,
            "tokens": 40817,
            "supervised_tokens": 1903,
            "examples": 607,
            "fill": 0.996,
            "quarantined": 2,
            "hash": "sha256:0a1b2c",
            "tasks": {"reviews": 605},
        },
        "train": {
            "steps": 41,
            "tokens_per_second": 101.2,
            "final_loss": 0.2143,
            "validation_loss": 0.3321,
            "method": "full",
            "zero_stage": 2,
            "workers": 3,
            "parameters": 134515008,
        },
        "task": [
            {
                "name": "reviews",
                "metric": "accuracy",
                "items": 300,
                "base": score(0.513, 0.451, 0.572),
                "tuned": score(0.823, 0.781, 0.867),
                "gain": score(0.31, 0.247, 0.373),
            }
        ],
        "probes": [
            {
                "name": "arithmetic",
                "kind": "multiple_choice",
                "metric": "accuracy",
                "items": 36,
                "base": score(0.481, 0.311, 0.642),
                "tuned": score(0.502, 0.333, 0.671),
                "drop": score(-0.021, -0.112, 0.073),
            },
            {
                "name": "explanations",
                "kind": "reference",
                "metric": "nats per token",
                "items": 24,
                "base": score(1.721, 1.604, 1.852),
                "tuned": score(1.811, 1.672, 1.943),
                "drop": score(0.086, 0.055, 0.118),
            },
            {
                "name": "instructions",
                "kind": "generation",
                "metric": "rules passed",
                "items": 31,
                "base": score(0.533, 0.374, 0.705),
                "tuned": score(0.332, 0.175, 0.506),
                "drop": score(0.201, 0.052, 0.361),
            },
        ],
        "gate": {
            "verdict": "fail",
            "mean_drop": 0.089,
            "worst_drop": 0.201,
            "worst_probe": "instructions",
            "lines": [
                {"check": "reviews gains", "verdict": "pass", "detail": "+0.31 [0.25, 0.37]"},
                {"check": "arithmetic kept", "verdict": "unclear", "detail": "drop -0.02 [-0.11, 0.07]"},
                {"check": "instructions kept", "verdict": "fail", "detail": "drop 0.20 [0.05, 0.36]"},
            ],
        },
        "mlflow": {
            "tracking_uri": "http://tracking.example:5000",
            "experiment": "first-try",
            "run_id": "5a0dd1b0",
            "model_name": "reviews-small",
            "model_version": 7,
        },
        "timings": {
            "prepare": 12.1,
            "baseline": 80.2,
            "train": 420.4,
            "evaluate": 90.3,
            "register": 9.6,
            "total": 612.6,
        },
        "peak_memory_gib": 7.1,
        "model": {"source": "package:x==1/y.gguf", "sha256": "6a8f0d5f"},
        "versions": {"torch": "2.13.0", "ray": "2.50.1"},
    }


def make_metrics(steps: int = 41) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 0.2 + 0.8 * math.exp(-step / 8) + 0.05 * math.sin(3 * step),
            "lr": 3e-5 * (1 - step / (steps + 1)),
            "grad_norm": 2 + 8 / step,
            "supervised_tokens": 40 + step % 7,
            "tokens": 1020,
            "seconds": 10.0 + 0.1 * (step % 3),
        }
        for step in range(1, steps + 1)
    ]


VALIDATION = [{"step": 0, "epoch": 0, "loss": 0.97}, {"step": 41, "epoch": 1, "loss": 0.332}]


def make_comparisons() -> list[dict[str, Any]]:
    rows = [
        {
            "task": "reviews",
            "id": f"test/{index}",
            "prompt": f"Positive or negative?\n\nreview number {index}",
            "expected": "positive",
            "before": "negative",
            "after": "positive",
            "before_ok": False,
            "after_ok": True,
        }
        for index in range(9)
    ]
    fruit = {"task": "instructions", "id": "fruit", "prompt": "List three fruits.", "expected": None}
    return [*rows, {**fruit, "before": "1. fig", "after": "", "before_ok": None, "after_ok": None}]


def render(folder: Path, plots: bool = True, **changes: Any) -> str:
    """The page; `plots=False` leaves out the plots, which take most of the time."""
    parts: dict[str, Any] = {
        "summary": make_summary(),
        "metrics": make_metrics(),
        "validation": VALIDATION,
        "comparisons": make_comparisons(),
        "spec_yaml": SPEC,
        **changes,
    }
    path = folder / "report.html"
    with contextlib.ExitStack() as stack:
        if not plots:
            nothing = dict.fromkeys(("scores", "losses", "looks", "drops", "curves"))
            stack.enter_context(patch("ift.tracking.report._plots", return_value=nothing))
        write_report(path, **parts)
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes and visible text, as a browser would see them; checks that tags close in order."""

    VOID = frozenset({"meta", "link", "br", "wbr", "hr", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def check_page(html: str) -> Page:
    """What holds for every report, whatever was put into it."""
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "img", "base", "form", "image"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
            assert value.startswith("#") or value == "data:,", (tag, name, value)
        if name in {"style", "clip-path", "fill", "mask", "filter"}:
            assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", value))
    assert "@import" not in html.split("</style>")[0]
    assert "url(" not in html.split("</style>")[0]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    targets += re.findall(r'clip-path="url\(([^)]*)\)', html)
    assert {target[1:] for target in targets} <= set(ids)
    labels = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert labels <= set(ids)
    assert "default-src 'none'" in html
    assert len(html.encode()) < 1_000_000
    return page


def svgs(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]


def test_self_contained_and_well_formed(tmp_path: Path) -> None:
    html = render(tmp_path)
    page = check_page(html)
    assert "http://tracking.example:5000" in page.text  # an address may be read, not loaded
    assert "w3.org" not in html
    assert "matplotlib" not in html
    assert len(svgs(html)) == 10  # four plots, each for a wide and a narrow window


def test_plots_take_their_colours_from_the_page_and_have_a_text(tmp_path: Path) -> None:
    html = render(tmp_path)
    for svg in svgs(html):
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label") or "") > 60
        for element in svg.iter():
            assert not re.search(r"#[0-9a-f]{6}", element.get("style", "")), element.attrib
    variables = set(re.findall(r"var\(--(\w+)\)", html))
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
        elif not trail.endswith(".kind"):
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
        "examples",
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
    assert "Of 10 examples: 9 became right, 1 not graded." in text
    assert text.count("✗ wrong") == 9
    assert text.count("✓ right") == 9
    assert text.count("not graded") == 3
    assert "(nothing)" in text


HOSTILE = (
    "</pre></svg><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "\"'{{ 7*7 }}$x^2_$\x00\x1b[31m\ud800"
)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return HOSTILE if isinstance(value, str) else value

    summary = poison(make_summary())
    summary["versions"] = {HOSTILE: HOSTILE}
    summary["timings"][HOSTILE] = 3.0
    summary["stream"]["tasks"] = {HOSTILE: 1}
    html = render(
        tmp_path, summary=summary, comparisons=poison(make_comparisons()), spec_yaml=f"name: {HOSTILE}\n"
    )
    page = check_page(html)
    assert "<script" not in html
    for part in ("alert(1)", "{{ 7*7 }}", "$x^2_$"):
        assert part in page.text
    assert "\x00" not in html
    assert "\x1b" not in html


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
        spec_yaml="tracking: {uri: 'https://ada:hunter2@ml.example'}\n",
    )
    assert "hunter2" not in html
    assert html.count("https://ada:***@ml.example") == 2


def test_long_texts_are_folded_and_cut(tmp_path: Path) -> None:
    rows = make_comparisons() * 30
    rows[0] = {**rows[0], "prompt": "<&>" * 100_000, "after": "line\n" * 40}
    html = render(tmp_path, plots=False, comparisons=rows, spec_yaml="# long\n" * 100_000)
    page = check_page(html)
    assert page.tags.count("details") == 2
    assert "(300,000 characters)" in page.text
    assert "more characters)" in page.text
    assert "288 more examples are not shown" in page.text


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
    html = render(tmp_path, summary={}, metrics=[], validation=[], comparisons=[], spec_yaml="")
    text = check_page(html).text
    assert not svgs(html)
    for said in (
        "No task was scored",
        "No training step",
        "No examples",
        "not recorded in MLflow",
        "No model",
    ):
        assert said in text


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
    thin = _thin(points)
    assert len(thin) <= CURVE_POINTS
    assert (7778.0, 61.5) in thin
    assert thin == sorted(thin)
    assert _thin(points[:10]) == points[:10]


def test_smoothing_weighs_steps_by_their_supervised_tokens() -> None:
    flat = [{"step": step, "loss": 1.0, "supervised_tokens": 10} for step in range(1, 31)]
    assert all(value == pytest.approx(1.0) for _, value in _smooth(flat))
    flat[15] = {"step": 16, "loss": 5.0, "supervised_tokens": 40}
    assert dict(_smooth(flat))[16.0] == pytest.approx((4 * 10 * 1.0 + 40 * 5.0) / 80)
    assert _smooth(flat[:7]) == []


def test_numbers_in_words() -> None:
    assert [number(-0.0004), number(-0.02, 2), number(0.31, 2, sign=True)] == ["0.000", "−0.02", "+0.31"]
    assert [number(None), number(math.nan), number(math.inf)] == ["–", "not a number", "infinite"]
    assert interval({"low": 0.25, "high": 0.373}, 2) == "0.25 to 0.37"
    assert interval({"low": None, "high": 1}) == ""
    assert (duration(9.04), duration(420), duration(7384)) == ("9.0 s", "7 min 0 s", "2 h 3 min")
    assert duration(None) == "–"
