"""One page about one run: what it gained, what it forgot, and how the training went.

In:  the run's summary (what `summary.json` holds), a record a training step, the validation losses, some
     examples answered before and after, and the resolved spec as text.
Out: `report.html`: one file that opens without a network, in light and dark, on a phone and on paper.

    write_report(run / "report.html", summary, metrics, validation, comparisons, spec_yaml)

Nothing is loaded and no script runs: the style sheet and the plots are inline, and a content security
policy in the page forbids the rest, whatever a model may have answered. All text is escaped. The same input
gives the same bytes. Anything may be missing (probes, training steps, MLflow): the page then says so.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# ---------------------------------------------------------------------------------------------- the page

EXAMPLES_SHOWN = 12
LONGEST_TEXT = 4_000  # characters of one prompt or answer; what is left out is counted on the page
LONGEST_SPEC = 60_000
CURVE_POINTS = 600

CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)} | {127: 0x2421}
PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")

VERDICTS = {"pass": ("✓", "pass"), "fail": ("✗", "fail"), "unclear": ("?", "unclear")}
STAGES = ("prepare", "baseline", "train", "evaluate", "register")


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    spec_yaml: str,
) -> None:
    """Write the page to `path`, in one move: a reader never sees half of it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, interval=interval, duration=duration, breakable=_breakable)
    summary = _without_passwords(summary)
    page = environment.get_template("report.html.j2").render(
        name=_text(summary.get("name")) or "unnamed run",
        status=_text(summary.get("status")) or "unknown",
        headline=headline(summary),
        gate=_gate(summary),
        plots=_plots(summary, metrics, validation),
        groups=_score_tables(summary),
        prompting=[_prompting(row) for row in _rows(summary, "prompting")],
        attempts=[_attempt(row) for row in _rows(summary, "attempts")],
        training=_training_facts(summary),
        notes=_step_notes(metrics),
        smoothed=bool(_smooth(metrics)),
        validated=bool(validation),
        examples=[_example(row) for row in comparisons[:EXAMPLES_SHOWN]],
        outcomes=_outcomes(comparisons),
        more_examples=max(0, len(comparisons) - EXAMPLES_SHOWN),
        stream=_facts(summary.get("stream")),
        spec=_shorten(_without_passwords(spec_yaml), LONGEST_SPEC),
        timings=_timings(summary.get("timings")),
        versions=_facts(summary.get("versions"), translate=False),
        places=_places(summary),
    )
    page = page.translate(CONTROL)  # a NUL or an escape code would end, or garble, the page
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)


def headline(summary: Mapping[str, Any]) -> str:
    """The run in two or three short sentences of plain text.

    "trec: accuracy 0.51 → 0.82 (+0.31, 95 % interval 0.25 to 0.37). Worst drop: 0.20 (copying). Gate: fail."
    """
    sentences = []
    tasks = _rows(summary, "task")
    for row in tasks[:3]:
        base, tuned, gain = _score(row, "base"), _score(row, "tuned"), _score(row, "gain")
        span = interval(gain, 2)
        change = number(gain["value"], 2, sign=True) + (f", 95 % interval {span}" if span else "")
        values = f"{number(base['value'], 2)} → {number(tuned['value'], 2)}"
        sentences.append(
            f"{_text(row.get('name'))}: {_text(row.get('metric')) or 'score'} {values} ({change})."
        )
    if len(tasks) > 3:
        sentences.append(f"{len(tasks) - 3} more tasks below.")
    if not tasks:
        sentences.append("No task was scored.")
    gate = _mapping(summary.get("gate"))
    if not _rows(summary, "probes"):
        sentences.append("No probe was scored, so nothing is known of what was forgotten.")
    elif math.isfinite(_float(gate.get("worst_drop"))):
        probe = f" ({_text(gate['worst_probe'])})" if gate.get("worst_probe") else ""
        sentences.append(f"Worst drop: {number(gate['worst_drop'], 2)}{probe}.")
    sentences.append(f"Gate: {_text(gate.get('verdict')) or 'not decided'}.")
    return " ".join(sentences)


def _prompting(row: Mapping[str, Any]) -> dict[str, Any]:
    """One task's ways, prompted and trained, in words."""
    ways = []
    for way in _rows(row, "ways"):
        draws, left, seconds = _mapping(way.get("draws")), way.get("context_left"), way.get("seconds")
        several = _float(draws.get("count")) > 1
        ways.append(
            {
                "way": _text(way.get("way")),
                "score": _score(way, "score"),
                "draws": f"{number(draws['lowest'], 2)} to {number(draws['highest'], 2)}" if several else "",
                "prompt_tokens": f"{_float(way.get('prompt_tokens')):,.0f}",
                "context_left": "–" if left is None else f"{_float(left):,.0f}",
                "seconds": number(seconds, 2),
            }
        )
    verdict = _mapping(row.get("verdict"))
    return {
        "name": _text(row.get("name")),
        "metric": _text(row.get("metric")),
        "items": _text(row.get("items")),
        "words": _text(verdict.get("words")),
        "tone": {"tuning": "pass", "prompting": "pass", "neither": "fail"}.get(
            _text(verdict.get("kind")), "unclear"
        ),
        "ways": ways,
    }


def _attempt(row: Mapping[str, Any]) -> dict[str, Any]:
    """One of several runs, in words."""
    gains = [
        f"{_text(name)} {number(gain, 2, sign=True)}" for name, gain in _mapping(row.get("gains")).items()
    ]
    return {
        "name": _text(row.get("name")),
        "method": {"full": "all weights", "lora": "LoRA"}.get(
            _text(row.get("method")), _text(row.get("method"))
        ),
        "verdict": _text(row.get("verdict")),
        "mean_drop": number(row.get("mean_drop"), 2, sign=True),
        "worst": f"{number(row.get('worst_drop'), 2, sign=True)} ({_text(row.get('worst_probe'))})",
        "gains": ", ".join(gains[:6]) + (", …" if len(gains) > 6 else ""),
        "chosen": bool(row.get("chosen")),
    }


# ---------------------------------------------------------------------------------------- words and numbers


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number in the page's notation: a true minus, never "-0.00", and words for what is no number."""
    if value is None:
        return "–"
    amount = _float(value)
    if math.isnan(amount):
        return "not a number"
    if math.isinf(amount):
        return "infinite" if amount > 0 else "−infinite"
    text = f"{amount:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "−") if amount < 0 else ("+" + text if sign else text)


def interval(score: Mapping[str, Any], digits: int = 3) -> str:
    """ "0.25 to 0.37", or nothing where the interval is not known."""
    low, high = _float(score.get("low")), _float(score.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low, digits)} to {number(high, digits)}"


def duration(seconds: Any) -> str:
    """Seconds as "9.0 s", "7 min 0 s" or "2 h 3 min"."""
    amount = _float(seconds)
    if not math.isfinite(amount):
        return number(seconds)
    if amount < 60:
        return f"{amount:.1f} s"
    minutes, rest = divmod(round(amount), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fact(value: Any) -> str:
    """Any value of the summary as one short text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(inner) for inner in value) or "–"
    return str(value)


def _without_passwords(value: Any) -> Any:
    if isinstance(value, str):
        return PASSWORD.sub(r"\1:***@", value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_passwords(inner) for inner in value]
    return value


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n… ({len(text) - limit:,} more characters)"


def _breakable(name: str) -> Any:
    """A name that may be broken after its underscores."""
    from markupsafe import Markup, escape

    return escape(name).replace("_", Markup("_<wbr>"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(summary: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [row for row in summary.get(key) or [] if isinstance(row, Mapping)]


def _score(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    score = _mapping(row.get(key))
    return {part: score.get(part) for part in ("value", "low", "high")}


def _lower_is_better(row: Mapping[str, Any]) -> bool:
    metric = _text(row.get("metric")).lower()
    return row.get("kind") == "reference" or any(word in metric for word in ("nats", "loss", "perplexity"))


# ------------------------------------------------------------------------------------ what the template shows


def _verdict(value: Any) -> dict[str, str]:
    sign, word = VERDICTS.get(_text(value), ("·", _text(value) or "not decided"))
    return {"sign": sign, "word": word, "tone": word if word in VERDICTS else "none"}


def _gate(summary: Mapping[str, Any]) -> dict[str, Any]:
    gate = _mapping(summary.get("gate"))
    lines = [
        {"check": _text(row.get("check")), "detail": _text(row.get("detail")), **_verdict(row.get("verdict"))}
        for row in _rows(gate, "lines")
    ]
    worst = number(gate.get("worst_drop"))
    if gate.get("worst_probe"):
        worst += f" ({_text(gate['worst_probe'])})"
    drops = [("Mean drop over the probes", number(gate.get("mean_drop"))), ("Worst drop", worst)]
    return {**_verdict(gate.get("verdict")), "lines": lines, "drops": drops if gate else []}


def _meaning(change: Mapping[str, Any], up: str, down: str) -> str:
    """What the interval of a change allows to be said, in words (a colour alone would not do)."""
    low, high = _float(change["low"]), _float(change["high"])
    if low > 0:
        return up
    if high < 0:
        return down
    return "could be chance" if low <= 0 <= high else ""


def _score_tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for key, title, change, up, down in (
        ("task", "Tasks: what the model was tuned for", "gain", "better", "worse"),
        ("probes", "Probes: what it was not tuned for", "drop", "worse", "better"),
    ):
        rows = []
        for row in _rows(summary, key):
            delta = _score(row, change)
            rows.append(
                {
                    "name": _text(row.get("name")),
                    "metric": _text(row.get("metric")),
                    "note": "lower is better" if _lower_is_better(row) else "",
                    "items": _fact(row.get("items")),
                    "scores": [_score(row, "base"), _score(row, "tuned")],
                    "change": delta,
                    "meaning": _meaning(delta, up, down),
                }
            )
        tables.append({"key": key, "title": title, "change": change.capitalize(), "rows": rows})
    return tables


LABELS = {
    "tokens_per_second": "Tokens a second",
    "final_loss": "Final training loss",
    "zero_stage": "ZeRO stage",
    "fill": "Packs filled",
    "quarantined": "Rows set aside",
    "mlflow": "MLflow",
    "tracking_uri": "Tracking address",
    "run_id": "Run id",
    "sha256": "SHA-256",
}


def _facts(mapping: Any, *, translate: bool = True) -> list[tuple[str, str]]:
    facts = []
    for key, value in _mapping(mapping).items():
        label = LABELS.get(key) or str(key).replace("_", " ").capitalize() if translate else str(key)
        percent = key == "fill" and math.isfinite(_float(value))
        facts.append((label, f"{_float(value):.1%}".replace("%", " %") if percent else _fact(value)))
    return facts


def _training_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = _facts(summary.get("train"))
    if summary.get("peak_memory_gib") is not None:
        facts.append(("Peak memory", f"{_fact(summary['peak_memory_gib'])} GiB"))
    return facts


def _step_notes(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the loss curve cannot draw."""
    bad = [row.get("step") for row in metrics if not math.isfinite(_float(row.get("loss")))]
    if not bad:
        return []
    steps = "1 step has" if len(bad) == 1 else f"{len(bad):,} steps have"
    return [f"{steps} a loss that is no finite number; the first is step {_fact(bad[0])}. Crosses mark them."]


def _block(value: Any, limit: int) -> dict[str, Any]:
    """A piece of text; `opening` is set where it is so long that the page folds it away."""
    text = _text(value)
    folded = len(text) > limit or text.count("\n") > 14
    opening = " ".join(text[:160].split()) + " …" if folded else ""
    return {"text": _shorten(text, LONGEST_TEXT), "opening": opening, "length": f"{len(text):,}"}


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    marks: dict[Any, tuple[str, str, str]] = {True: ("✓", "right", "pass"), False: ("✗", "wrong", "fail")}
    return {
        "task": _text(row.get("task")),
        "id": _text(row.get("id")),
        "prompt": _block(row.get("prompt"), 600),
        "expected": _block(row.get("expected"), 900),
        "answers": [
            {
                "when": when,
                "mark": marks.get(row.get(f"{key}_ok"), ("·", "not graded", "none")),
                **_block(row.get(key), 900),
            }
            for when, key in (("Before", "before"), ("After", "after"))
        ],
    }


def _outcomes(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """ "Of 10 examples: 4 became right, 1 became wrong, …"."""
    words: dict[Any, str] = {
        (False, True): "became right",
        (True, False): "became wrong",
        (True, True): "stayed right",
        (False, False): "stayed wrong",
    }
    counts = dict.fromkeys([*words.values(), "not graded"], 0)
    for row in comparisons:
        counts[words.get((row.get("before_ok"), row.get("after_ok")), "not graded")] += 1
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"Of {len(comparisons)} example{'' if len(comparisons) == 1 else 's'}: {told}." if told else ""


def _timings(value: Any) -> list[dict[str, Any]]:
    timings = _mapping(value)
    known = [stage for stage in STAGES if stage in timings]
    others = [stage for stage in timings if stage not in STAGES and stage != "total"]
    total = _float(timings.get("total"))
    if not (math.isfinite(total) and total > 0):
        total = sum(seconds for stage in known + others if math.isfinite(seconds := _float(timings[stage])))
    rows = []
    for stage in [*known, *others, *(["total"] if "total" in timings else [])]:
        share = _float(timings[stage]) / total if total > 0 else 0.0
        share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
        rows.append(
            {
                "stage": stage,
                "seconds": timings[stage],
                "long": _float(timings[stage]) >= 60,
                "share": "" if stage == "total" else f"{share:.1%}",
            }
        )
    return rows


def _places(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = [
        (label, _fact(summary[key]))
        for key, label in (("model_dir", "Tuned model"), ("run_dir", "Run folder"))
        if summary.get(key)
    ]
    mlflow = _mapping(summary.get("mlflow"))
    if not mlflow:
        note = "This run was not recorded in MLflow."
    elif "error" in mlflow:
        note = f"This run could not be recorded in MLflow: {_text(mlflow['error'])}"
    else:
        note = ""
    return [
        {"title": "Files", "facts": files, "note": "" if files else "No model was written."},
        {"title": "Base model", "facts": _facts(summary.get("model")), "note": ""},
        {"title": "MLflow", "facts": [] if note else _facts(mlflow), "note": note},
    ]


# ----------------------------------------------------------------------------------------------- the plots

# Matplotlib draws in these colours; in the page they become the variables of the style sheet, so that one
# plot serves light and dark.
INK, MUTED, LINE, BASE, TUNED, GOOD, BAD, CARD = (f"#0a0b0{digit}" for digit in range(8))
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    BASE: "base",
    TUNED: "tuned",
    GOOD: "good",
    BAD: "bad",
    CARD: "card",
}

WIDTHS = {"wide": 880, "narrow": 350}  # in CSS pixels; the style sheet shows one of the two
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "text.parse_math": False,  # a probe called "$x$" is a name, not a formula
    "font.size": 12,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": False,
}

Draw = Callable[[bool], Any]


def _plots(
    summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Each plot that has something to show, as {"wide": svg, "narrow": svg}; None where there is nothing."""
    rows = [*_rows(summary, "task"), *_rows(summary, "probes")]
    scores = [row for row in rows if not _lower_is_better(row)]
    losses = [row for row in rows if _lower_is_better(row)]
    probes = _rows(summary, "probes")
    steps = [row for row in metrics if math.isfinite(_float(row.get("step")))]
    checks = [row for row in validation if math.isfinite(_float(row.get("step")))]
    looks = [row for row in _rows(summary, "looks") if math.isfinite(_float(row.get("step")))]
    drawings: dict[str, tuple[Any, str, Draw]] = {
        "scores": (scores, _say_scores(scores), lambda wide: _bars(scores, wide, 1.0)),
        "losses": (losses, _say_scores(losses), lambda wide: _bars(losses, wide, 0.0)),
        "drops": (probes, _say_drops(probes), lambda wide: _drops(probes, wide)),
        "looks": (looks, _say_looks(looks), lambda wide: _looks(looks, wide)),
        "curves": (steps or checks, _say_curves(steps, checks), lambda wide: _curves(steps, checks, wide)),
    }
    plots: dict[str, Any] = dict.fromkeys(drawings)
    with _matplotlib():
        for key, (data, description, draw) in drawings.items():
            if data:
                plots[key] = {
                    size: _svg(draw(size == "wide"), f"{key}-{size}", description) for size in WIDTHS
                }
    return plots


def _matplotlib() -> Any:
    """Matplotlib's own defaults with our style, whatever a user's matplotlibrc says; undone afterwards."""
    import contextlib
    import logging
    import warnings

    import matplotlib

    @contextlib.contextmanager
    def styled() -> Iterator[None]:
        logger = logging.getLogger("matplotlib")
        level = logger.level
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a letter that Matplotlib's font lacks; the browser's has it
            logger.setLevel(logging.ERROR)
            try:
                matplotlib.rcdefaults()
                matplotlib.rcParams.update(STYLE)
                yield
            finally:
                logger.setLevel(level)

    return styled()


def _svg(figure: Any, key: str, description: str) -> Any:
    """The figure as inline SVG: no metadata, no addresses, ids of its own, colours from the page."""
    import io
    from xml.etree import ElementTree

    import matplotlib
    from markupsafe import Markup

    matplotlib.rcParams["svg.hashsalt"] = key
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.rpartition("}")[2] in ("metadata", "style")]:
            parent.remove(child)
    wanted = set(re.findall(rb'#([\w.-]+)(?:"|\))', stream.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value.encode() not in wanted:
                    continue
                value = f"{key}-{value}"
            elif name == "href":
                value = f"#{key}-{value[1:]}"
            elif name == "clip-path":
                value = value.replace("url(#", f"url(#{key}-")
            elif name == "style":
                value = re.sub(r"font-family:[^;]*;?", "", value)
                for colour, variable in VARIABLES.items():
                    value = value.replace(colour, f"var(--{variable})")
            elif name == "transform" and value.startswith("rotate(-0 "):
                continue
            element.set(name, value)
        if element.tag != "text":
            element.text = (element.text or "").strip() or None
        element.tail = None
    size = root.get("viewBox")
    root.attrib.clear()
    root.attrib.update({"viewBox": size or "", "class": "plot", "role": "img", "aria-label": description})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _figure(wide: bool, height: float) -> tuple[Any, Callable[[float, float, float, float], Any]]:
    """A figure, and a function that puts axes on it: left, top, width and height in CSS pixels."""
    from matplotlib.figure import Figure

    width = WIDTHS["wide" if wide else "narrow"]
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)

    def axes(left: float, top: float, across: float, down: float) -> Any:
        return figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))

    return figure, axes


def _clip(name: Any, limit: int) -> str:
    text = " ".join(_text(name).translate(CONTROL).encode("utf-8", "replace").decode().split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _whisker(ax: Any, score: Mapping[str, Any], y: float, colour: str) -> float:
    """Draw the interval where there is one; returns how far to the right it reaches."""
    low, high = _float(score["low"]), _float(score["high"])
    if not (math.isfinite(low) and math.isfinite(high)):
        return -math.inf
    ax.plot(
        [low, high], [y, y], color=CARD, linewidth=4, solid_capstyle="butt"
    )  # a halo: it also lies on bars
    ax.plot([low, high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt")
    ax.plot(
        [low, high], [y, y], color=colour, linestyle="none", marker="|", markersize=7, markeredgewidth=1.5
    )
    return high


def _row_label(ax: Any, row: Mapping[str, Any], y: float, wide: bool, above: float, left: float) -> None:
    """A row's name: left of the axes where there is room, else above the row."""
    metric = "" if row.get("metric") is None else _clip(row["metric"], 30)
    if wide:
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate(_clip(row.get("name"), 26), (0, y), (-left, 1), va="bottom", weight="bold", **place)
        ax.annotate(metric, (0, y), (-left, -2), va="top", color=MUTED, size=11, **place)
    else:
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate(_clip(row.get("name"), 22), (0, y), (-left, above), va="bottom", weight="bold", **place)
        ax.annotate(metric, (1, y), (0, above), va="bottom", ha="right", color=MUTED, size=11, **place)


def _bars(rows: Sequence[Mapping[str, Any]], wide: bool, at_least: float) -> Any:
    """Base above tuned, a pair a row, from zero, with 95 % intervals and the value in figures."""
    band, left, right = (52, 190, 56) if wide else (66, 8, 52)
    figure, axes = _figure(wide, len(rows) * band + 34)
    ax = axes(left, 4, WIDTHS["wide" if wide else "narrow"] - left - right, len(rows) * band)
    reach = [at_least]
    for index, row in enumerate(rows):
        centre = index + (0.5 if wide else 0.62)
        height = 15 / band
        for key, colour, shift in (("base", BASE, -0.55), ("tuned", TUNED, 0.55)):
            score = _score(row, key)
            value, y = _float(score["value"]), centre + shift * height * 1.1
            end = 0.0
            if math.isfinite(value):
                ax.barh(y, value, height, color=colour)
                end = max(value, _whisker(ax, score, y, INK))
                reach.append(end)
            shown = number(score["value"], 2) if math.isfinite(value) else "not scored"
            ax.annotate(
                shown, (end, y), (6, 0), textcoords="offset points", va="center", annotation_clip=False
            )
        _row_label(ax, row, centre if wide else centre - 1.1 * height, wide, 5, left if wide else 0)
    top = max(reach)
    ax.set_xlim(0, 1.0 if at_least == 1.0 and top <= 1 else top * 1.02 or 1.0)
    ax.set_ylim(len(rows), 0)
    ax.grid(axis="y", visible=False)
    ax.set_yticks([])
    ax.spines["bottom"].set_visible(False)
    ax.axvline(0, color=MUTED, linewidth=1)
    _few_ticks(ax.xaxis, 5 if wide else 4)
    return figure


def _drops(rows: Sequence[Mapping[str, Any]], wide: bool) -> Any:
    """A point and an interval a probe; right of zero is lost. Filled: the interval excludes zero."""
    band, left, right = (40, 190, 170) if wide else (56, 8, 12)
    figure, axes = _figure(wide, len(rows) * band + 42)
    ax = axes(left, 4, WIDTHS["wide" if wide else "narrow"] - left - right, len(rows) * band)
    reach = [-0.05, 0.05]
    for index, row in enumerate(rows):
        y, drop = index + (0.5 if wide else 0.68), _score(row, "drop")
        value, low, high = (_float(drop[part]) for part in ("value", "low", "high"))
        told = number(drop["value"], 2, sign=True) if math.isfinite(value) else "not scored"
        span = interval(drop, 2)
        colour = BAD if low > 0 else GOOD if high < 0 else MUTED
        if math.isfinite(value):
            _whisker(ax, drop, y, colour)
            inside = CARD if colour == MUTED else colour
            dot = {"markerfacecolor": inside, "markeredgecolor": colour, "markeredgewidth": 1.8}
            ax.plot([value], [y], color=colour, marker="o", linestyle="none", markersize=9, **dot)
            reach += [part for part in (value, low, high) if math.isfinite(part)]
        label = f"{told}  ({span})" if span else told
        if wide:
            _row_label(ax, row, y, wide, 0, left)
            ax.annotate(
                label,
                (1, y),
                (14, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
            )
        else:
            _row_label(ax, {"name": row.get("name"), "metric": label}, y, wide, 9, 0)
    low, high = min(*reach, -0.25 * max(reach)), max(*reach, -0.25 * min(reach))
    ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    ax.set_ylim(len(rows), 0)
    ax.grid(axis="y", visible=False)
    ax.set_yticks([])
    ax.spines["bottom"].set_visible(False)
    ax.axvline(0, color=INK, linewidth=1.2, zorder=0.9)
    for text, side, shift in (("← better than base", "right", -8), ("worse than base →", "left", 8)):
        text = text if wide else text.replace(" than base", "")
        below = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate(text, (0, 0), (shift, -22), va="top", ha=side, color=MUTED, **below)
    _few_ticks(ax.xaxis, 6 if wide else 5)
    return figure


def _curves(steps: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]], wide: bool) -> Any:
    """The loss; below it learning rate, gradient norm and throughput."""
    if wide:
        figure, axes = _figure(wide, 470)
        frames = [(58, 30, 808, 230), (58, 318, 220, 110), (352, 318, 220, 110), (646, 318, 220, 110)]
    else:
        figure, axes = _figure(wide, 860)
        frames = [(50, 30, 288, 240), (50, 318, 288, 120), (50, 506, 288, 120), (50, 694, 288, 120)]
    panels = [axes(*frame) for frame in frames]
    panels[0].set_title("Loss, nats per supervised token")
    _loss(panels[0], steps, checks)
    for panel, title, points in (
        (panels[1], "Learning rate", _series(steps, "lr")),
        (panels[2], "Gradient norm", _series(steps, "grad_norm")),
        (panels[3], "Tokens a second", _throughput(steps)),
    ):
        panel.set_title(title)
        _line(panel, points, color=TUNED, linewidth=1.5)
        _scale(panel, points, 3)
        if not points:
            panel.text(
                0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", va="center", color=MUTED
            )
            panel.set_xticks([])
            panel.set_yticks([])
    positions = [_float(row["step"]) for row in [*steps, *checks]]
    margin = max(0.5, 0.015 * (max(positions) - min(positions)))
    for panel in panels:
        panel.set_xlim(min(positions) - margin, max(positions) + margin)
        _few_ticks(panel.xaxis, 8 if panel is panels[0] and wide else 4, whole=True)
    for panel in panels if wide else panels[-1:]:
        panel.set_xlabel("step", labelpad=2)
    return figure


def _looks(looks: Sequence[Mapping[str, Any]], wide: bool) -> Any:
    """Gain and drop over the steps, as the looks at some items found them."""
    figure, axes = _figure(wide, 250)
    panel = axes(58, 20, 808, 180) if wide else axes(50, 20, 288, 180)
    panel.axhline(0, color=MUTED, linewidth=1)
    drop, gain = _series(looks, "mean_drop"), _mean_gain(looks)
    for points, colour in ((drop, BAD), (gain, GOOD)):
        if points:
            _line(panel, points, color=colour, linewidth=2.0)
            panel.plot(*zip(*points, strict=True), color=colour, linestyle="none", marker="o", markersize=6)
    _few_ticks(panel.xaxis, 8 if wide else 4, whole=True)
    panel.set_xlabel("step", labelpad=2)
    return figure


def _mean_gain(looks: Sequence[Mapping[str, Any]]) -> Points:
    """The mean over tasks at each look; none of a look that knows of no task."""
    points = []
    for look in looks:
        gains = [_float(value) for key, value in look.items() if str(key).startswith("gain/")]
        if gains:
            points.append((_float(look["step"]), sum(gains) / len(gains)))
    return points


def _say_looks(looks: Sequence[Mapping[str, Any]]) -> str:
    if not looks:
        return ""
    last, gain = looks[-1], _mean_gain(looks[-1:])
    gained = f" and the mean gain {number(gain[0][1], 2)}" if gain else ""
    return (
        "Line chart of gain and drop over the training steps. At the last look, behind step "
        f"{_float(last['step']):g}, the mean drop is {number(last.get('mean_drop'), 2)}{gained}."
    )


Points = list[tuple[float, float]]


def _loss(ax: Any, steps: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> None:
    raw, checked = _series(steps, "loss"), _series(checks, "loss")
    smooth = _smooth(steps)
    _line(ax, raw, color=TUNED, linewidth=1.0, alpha=0.45 if smooth else 1.0)
    _line(ax, smooth, color=TUNED, linewidth=2.4)
    if checked:
        _line(ax, checked, color=BAD, linewidth=1.4, linestyle=(0, (4, 3)))
        ax.plot(*zip(*checked, strict=True), color=BAD, linestyle="none", marker="D", markersize=7)
    finite = [point for point in [*raw, *checked] if math.isfinite(point[1])]
    bad = [step for step, value in [*raw, *checked] if not math.isfinite(value)]
    if bad:
        shown = [step for step, _ in _thin([(step, 0.0) for step in bad])]
        across = ax.get_xaxis_transform()
        ax.plot(
            shown,
            [0.97] * len(shown),
            color=BAD,
            linestyle="none",
            marker="x",
            markersize=8,
            mew=2,
            transform=across,
        )
    _scale(ax, finite, 6)
    if ax.get_yscale() == "log":
        ax.set_title("Loss, nats per supervised token (log scale)")
    if not finite:
        ax.set_yticks([])


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(_float(row["step"]), _float(row[key])) for row in rows if row.get(key) is not None]


def _throughput(steps: Sequence[Mapping[str, Any]]) -> Points:
    rows = [(_float(row["step"]), _float(row.get("tokens")), _float(row.get("seconds"))) for row in steps]
    return [
        (step, tokens / seconds) for step, tokens, seconds in rows if seconds > 0 and math.isfinite(tokens)
    ]


def _smooth(steps: Sequence[Mapping[str, Any]]) -> Points:
    """A centred mean over about a tenth of the run; steps weigh as many supervised tokens as they had."""
    rows = [
        (_float(row.get("step")), _float(row.get("loss")), _float(row.get("supervised_tokens")))
        for row in steps
    ]
    rows = [(step, loss, tokens if tokens > 0 else 1.0) for step, loss, tokens in rows if math.isfinite(loss)]
    if len(rows) < 8:
        return []
    half = max(2, len(rows) // 20)
    sums, weights = [0.0], [0.0]
    for _, loss, tokens in rows:
        sums.append(sums[-1] + loss * tokens)
        weights.append(weights[-1] + tokens)
    points = []
    for index, (step, _, _) in enumerate(rows):
        reach = max(1, min(half, index, len(rows) - 1 - index))
        first, last = max(0, index - reach), min(len(rows), index + reach + 1)
        points.append((step, (sums[last] - sums[first]) / (weights[last] - weights[first])))
    return points


def _thin(points: Points) -> Points:
    """At most `CURVE_POINTS` points; of each stretch the lowest and the highest, so that spikes stay."""
    if len(points) <= CURVE_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / CURVE_POINTS)
    kept: Points = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [point for point in part if math.isfinite(point[1])]
        ends = (
            {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
            if finite
            else part[:1]
        )
        kept += sorted(ends)
    return kept


def _line(ax: Any, points: Points, **style: Any) -> None:
    """A line with gaps where there is no finite number, and a dot for a point on its own."""
    points = [(step, value if math.isfinite(value) else math.nan) for step, value in _thin(points)]
    if not points:
        return
    alone = sum(math.isfinite(value) for _, value in points) == 1
    ax.plot(*zip(*points, strict=True), marker="o" if alone else None, markersize=6, **style)


def _scale(ax: Any, points: Points, ticks: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    values = [value for _, value in points if math.isfinite(value)]
    ax.grid(axis="x", visible=False)
    if (
        values
        and min(values) > 0
        and max(values) > 50 * min(values)
        and max(values) > 50 * sorted(values)[len(values) // 2]
    ):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(numticks=ticks + 1))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(ticks, min_n_ticks=2))
        if values and min(values) >= 0:
            ax.set_ylim(bottom=0, top=max(values) * 1.08 or 1.0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _few_ticks(axis: Any, ticks: int, whole: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    nice = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    axis.set_major_locator(MaxNLocator(ticks, integer=whole, steps=nice, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if whole else _tick(value)))


def _tick(value: float) -> str:
    """1e-05 → 1e−5, 0.25 → 0.25, 12000 → 12,000."""
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


# -------------------------------------------------------------------------- the plots for those who hear them


def _say_scores(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for row in rows:
        before, after = (number(_score(row, key)["value"], 2) for key in ("base", "tuned"))
        parts.append(f"{_clip(row.get('name'), 60)}: base {before}, tuned {after}")
    return "Bar chart, base and tuned model. " + "; ".join(parts) + "."


def _say_drops(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for row in rows:
        drop = _score(row, "drop")
        span = interval(drop, 2)
        told = number(drop["value"], 2) + (f", interval {span}" if span else "")
        parts.append(f"{_clip(row.get('name'), 60)} {told}")
    return (
        "Drop of each probe with its 95 % interval; above zero is worse than base. " + "; ".join(parts) + "."
    )


def _say_curves(steps: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> str:
    parts = ["Line charts over the training steps: loss, learning rate, gradient norm and tokens a second."]
    for name, rows in (("Training", steps), ("Validation", checks)):
        if points := _series(rows, "loss"):
            (first, before), (last, after) = points[0], points[-1]
            parts.append(f"{name} loss {number(before)} at step {first:g}, {number(after)} at step {last:g}.")
    return " ".join(parts)
