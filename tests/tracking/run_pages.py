"""A run as the pages see one, hostile text for it, and what holds for every page."""

import base64
import hashlib
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ift.tracking import html as html_of
from ift.tracking.record import Record

SCRIPT = (Path(html_of.__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
HOSTILE = (
    "</pre></svg></script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "\"'{{ 7*7 }}$x^2_$\x00\x1b[31m\ud800"
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
            "mixture": [mixed("reviews", 420, 418, 30_611, 1_254), mixed("titles", 185, 185, 10_206, 649)],
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
            "max_drop": 0.05,
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


def mixed(task: str, asked: int, instructions: int, tokens: int, supervised: int) -> dict[str, Any]:
    return {
        "task": task,
        "role": "train",
        "asked": asked,
        "instructions": instructions,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "seen_each": 1.0,
    }


def prediction(name: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "suite": "probe",
        "name": name,
        "id": f"{name}-{number}",
        "kind": "generation",
        "metric": None,
        "task_kind": "",
        "shots": 0,
        "draw": 0,
        "prompt": f"Question {number} of {name}?",
        "output": "",
        "expected": None,
        "predicted": "",
        "label": "",
        "score": 1.0,
        "chance": 0.0,
        "detail": "[]",
        **more,
    }


def make_predictions() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ten reviews, of which nine became right; a list that lost its items; an explanation that got worse."""
    before, after = [], []
    for i in range(10):
        review = {
            "suite": "task",
            "kind": "multiple_choice",
            "metric": "accuracy",
            "task_kind": "classification",
        }
        review |= {
            "prompt": f"Positive or negative?\n\nreview number {i}",
            "expected": "positive",
            "label": "positive",
        }
        for side, output in ((before, "negative"), (after, "positive" if i else "negative")):
            score = float(output == "positive")
            side.append(prediction("reviews", i, **review, output=output, predicted=output, score=score))
    fruit = {"prompt": "List three fruits."}
    before.append(prediction("instructions", 0, **fruit, output="1. fig\n2. plum\n3. pear"))
    after.append(
        prediction("instructions", 0, **fruit, output="fig", score=0.0, detail='["1 item, 3 wanted"]')
    )
    why = {"kind": "reference", "expected": "Ice floats because it is less dense than water."}
    before.append(prediction("explanations", 0, **why, score=1.721))
    after.append(prediction("explanations", 0, **why, score=1.811))
    return before, after


def make_record(**changes: Any) -> Record:
    before, after = make_predictions()
    lengths = {"reviews": {61: 120, 75: 240, 118: 58}, "titles": {40: 185}}
    settings = {"name": "quickstart", "train.learning_rate": 3e-5, "seed": 17}
    usual = Record(make_summary(), make_metrics(), VALIDATION, before, after, lengths, settings, SPEC)
    return replace(usual, **changes)


def everywhere(value: Any, change: Callable[[str], Any]) -> Any:
    """`value` with every text in it changed, at any depth."""
    if isinstance(value, dict):
        return {key: everywhere(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [everywhere(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


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
        if tag in ("td", "th", "dt", "dd"):
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def check_page(html: str) -> Page:
    """What holds for every report, whatever was put into it."""
    page = Page(html)
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert scripts == [SCRIPT] * page.tags.count("script")
    (policy,) = [value for _, name, value in page.attributes if value.startswith("default-src 'none';")]
    assert "script-src " + (f"'sha256-{DIGEST}'" if scripts else "'none'") + ";" in policy
    assert not {"unsafe-eval", "http:", "https:", "*"} & set(re.split(r"[\s;]+", policy))
    assert not {"iframe", "object", "embed", "img", "base", "form", "image"} & set(page.tags)
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
    assert len(html.encode()) < 5_000_000
    return page


def svgs(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]
