"""The pictures of the pages.

In:  scores, steps and looks as the summary and `metrics.jsonl` have them; of several runs, each under its letter.
Out: inline SVG by name, for a wide and a narrow window; None where there is nothing to show.

    of_run(summary, metrics, validation, standing)["curves"]["wide"]

Each picture comes with one sentence or more that says the same in words, for those who hear it. drawing.py knows how
to draw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ift.tracking.drawing import (
    BAD,
    BASE,
    CARD,
    GOOD,
    INK,
    MUTED,
    RUNS,
    TUNED,
    WIDTHS,
    Draw,
    Points,
    drawn,
    few_ticks,
    figure_of,
    line,
    row_label,
    scale,
    series,
    smooth,
    thin,
    whisker,
)
from ift.tracking.words import (
    Row,
    as_float,
    clip,
    counted,
    interval,
    lower_is_better,
    mapping,
    number,
    rows_of,
    score_of,
)

TASKS_DRAWN = 24  # that have a loss of their own; the others are counted
_TASK_POINTS = 160  # of such a curve
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2))]
_MARKERS = ("o", "s", "^", "D")


def of_run(
    summary: Row, metrics: Sequence[Row], validation: Sequence[Row], standing: Mapping[str, Row]
) -> dict[str, Any]:
    """The pictures of one run: scores, losses, standing, drops, looks, curves, tasks."""
    rows = [*rows_of(summary, "task"), *rows_of(summary, "probes")]
    scores = [row for row in rows if not lower_is_better(row)]
    losses = [row for row in rows if lower_is_better(row)]
    probes = rows_of(summary, "probes")
    steps, checks, looks = (_at_steps(rows) for rows in (metrics, validation, rows_of(summary, "looks")))
    point = Point("this run", standing["gain"], standing["drop"])
    around = [*_earlier(summary)] if point.known else []
    of_tasks = losses_of_tasks(steps)
    drawings: dict[str, tuple[Any, str, Draw]] = {
        "scores": (scores, _say_scores(scores), lambda wide: _bars(scores, wide, 1.0)),
        "losses": (losses, _say_scores(losses), lambda wide: _bars(losses, wide, 0.0)),
        "standing": (
            point.known,
            _say_standing([point, *around]),
            lambda wide: _standing([point, *around], wide, tolerated(summary), looks, probes),
        ),
        "drops": (probes, _say_drops(probes), lambda wide: _drops(probes, wide)),
        "looks": (looks, _say_looks(looks), lambda wide: _looks(looks, wide)),
        "curves": (steps or checks, _say_curves(steps, checks), lambda wide: _curves(steps, checks, wide)),
        "tasks": (of_tasks, _say_tasks(of_tasks), lambda wide: _tasks(of_tasks, wide)),
    }
    return drawn(drawings)


@dataclass(frozen=True)
class Curve:
    """A run's losses: (tokens trained on so far, loss) of its steps, smoothed, and of its validations."""

    name: str
    steps: Points
    smoothed: Points
    checks: Points


@dataclass(frozen=True)
class Point:
    """Where a run stands: its mean gain and its mean drop, each with value, low and high."""

    name: str
    gain: Row
    drop: Row
    place: int = 0  # of its colour
    faint: bool = False

    @property
    def known(self) -> bool:
        return all(math.isfinite(as_float(score.get("value"))) for score in (self.gain, self.drop))


def of_runs(curves: Sequence[Curve], points: Sequence[Point], max_drop: float) -> dict[str, Any]:
    """The pictures of several runs beside each other: standing, losses."""
    known = [point for point in points if point.known]
    return drawn(
        {
            "standing": (
                known,
                _say_standing(known),
                lambda wide: _standing(known, wide, max_drop, (), (), named=True),
            ),
            "losses": (
                any(curve.steps or curve.checks for curve in curves),
                _say_losses(curves),
                lambda wide: _losses(curves, wide),
            ),
        }
    )


def curve_of(name: str, metrics: Sequence[Row], validation: Sequence[Row]) -> Curve:
    """The losses of a run over the tokens that it has trained on: steps of different sizes can be compared so."""
    steps = _at_steps(metrics)
    seen = list(accumulate(tokens if (tokens := as_float(row.get("tokens"))) > 0 else 0.0 for row in steps))
    places = {0.0: 0.0, **{as_float(row["step"]): at for row, at in zip(steps, seen, strict=True)}}
    triples = [
        (at, as_float(row.get("loss")), as_float(row.get("supervised_tokens")))
        for row, at in zip(steps, seen, strict=True)
    ]
    return Curve(
        name,
        [(at, loss) for at, loss, _ in triples if math.isfinite(loss)],
        smooth(triples),
        [
            (places[step], loss)
            for step, loss in series(_at_steps(validation), "loss")
            if step in places and math.isfinite(loss)
        ],
    )


def losses_of_tasks(steps: Sequence[Row]) -> dict[str, Points]:
    """The loss of each task over the steps that saw it; none of a run with a single task. Most seen first."""
    found: dict[str, Points] = {}
    for row in _at_steps(steps):
        for name, loss in mapping(row.get("losses")).items():
            found.setdefault(str(name), []).append((as_float(row["step"]), as_float(loss)))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def smoothed(steps: Sequence[Row]) -> Points:
    """The loss, each step weighing as much as it has supervised tokens."""
    return smooth(
        [
            (
                as_float(row.get("step")),
                as_float(row.get("loss")),
                as_float(row.get("supervised_tokens")),
            )
            for row in steps
        ]
    )


def _at_steps(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if math.isfinite(as_float(row.get("step")))]


def tolerated(summary: Row) -> float:
    """The largest drop that the run's gate lets pass; NaN where it is not known."""
    return as_float(mapping(summary.get("gate")).get("max_drop"))


def _earlier(summary: Row) -> list[Point]:
    """The attempts that were not chosen, which are known without intervals."""
    points = []
    held_out = {row.get("name") for row in rows_of(summary, "task") if row.get("held_out")}
    for row in rows_of(summary, "attempts"):
        gains = [
            gain
            for name, value in mapping(row.get("gains")).items()
            if name not in held_out and math.isfinite(gain := as_float(value))
        ]
        if not row.get("chosen") and gains:
            mean = {"value": math.fsum(gains) / len(gains)}
            points.append(Point(clip(row.get("name"), 30), mean, {"value": row.get("mean_drop")}, faint=True))
    return [point for point in points if point.known]


# ── scores ──


def _bars(rows: Sequence[Row], wide: bool, at_least: float) -> Any:
    """Base above tuned, a pair a row, from zero, with 95 % intervals and the value in figures."""
    band, left, right = (52, 190, 56) if wide else (66, 8, 52)
    figure, axes = figure_of(wide, len(rows) * band + 34)
    ax = axes(left, 4, WIDTHS["wide" if wide else "narrow"] - left - right, len(rows) * band)
    reach = [at_least]
    for index, row in enumerate(rows):
        centre = index + (0.5 if wide else 0.62)
        height = 15 / band
        for key, colour, shift in (("base", BASE, -0.55), ("tuned", TUNED, 0.55)):
            score = score_of(row, key)
            value, y = as_float(score["value"]), centre + shift * height * 1.1
            end = 0.0
            if math.isfinite(value):
                ax.barh(y, value, height, color=colour)
                end = max(value, whisker(ax, score, y, INK))
                reach.append(end)
            shown = number(score["value"], 2) if score["value"] is not None else "not scored"
            ax.annotate(
                shown, (end, y), (6, 0), textcoords="offset points", va="center", annotation_clip=False
            )
        row_label(ax, row, centre if wide else centre - 1.1 * height, wide, 5, left if wide else 0)
    top = max(reach)
    ax.set_xlim(0, 1.0 if at_least == 1.0 and top <= 1 else top * 1.02 or 1.0)
    ax.set_ylim(len(rows), 0)
    ax.grid(axis="y", visible=False)
    ax.set_yticks([])
    ax.spines["bottom"].set_visible(False)
    ax.axvline(0, color=MUTED, linewidth=1)
    few_ticks(ax.xaxis, 5 if wide else 4)
    return figure


def _drops(rows: Sequence[Row], wide: bool) -> Any:
    """A point and an interval a probe; right of zero is lost. Filled: the interval excludes zero."""
    band, left, right = (40, 190, 170) if wide else (56, 8, 12)
    figure, axes = figure_of(wide, len(rows) * band + 42)
    ax = axes(left, 4, WIDTHS["wide" if wide else "narrow"] - left - right, len(rows) * band)
    reach = [-0.05, 0.05]
    for index, row in enumerate(rows):
        y, drop = index + (0.5 if wide else 0.68), score_of(row, "drop")
        value, low, high = (as_float(drop[part]) for part in ("value", "low", "high"))
        told = number(drop["value"], 2, sign=True) if drop["value"] is not None else "not scored"
        span = interval(drop, 2)
        colour = _tone(drop)
        if math.isfinite(value):
            whisker(ax, drop, y, colour)
            inside = CARD if colour == MUTED else colour
            dot = {"markerfacecolor": inside, "markeredgecolor": colour, "markeredgewidth": 1.8}
            ax.plot([value], [y], color=colour, marker="o", linestyle="none", markersize=9, **dot)
            reach += [part for part in (value, low, high) if math.isfinite(part)]
        label = f"{told}  ({span})" if span else told
        if wide:
            row_label(ax, row, y, wide, 0, left)
            ax.annotate(
                label,
                (1, y),
                (14, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
            )
        else:
            row_label(ax, {"name": row.get("name"), "metric": label}, y, wide, 9, 0)
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
    few_ticks(ax.xaxis, 6 if wide else 5)
    return figure


def _tone(drop: Row) -> str:
    """The colour of a drop: bad or good where the interval leaves out zero."""
    return BAD if as_float(drop["low"]) > 0 else GOOD if as_float(drop["high"]) < 0 else MUTED


# ── gain against forgetting ──


def _standing(
    points: Sequence[Point],
    wide: bool,
    max_drop: float,
    looks: Sequence[Row],
    probes: Sequence[Row],
    *,
    named: bool = False,
) -> Any:
    """Gain upwards, drop to the right; a point and two intervals a run. Below, a stroke for each probe's drop."""
    figure, axes = figure_of(wide, 366 if wide else 322)
    ax = axes(66, 12, 794, 310) if wide else axes(48, 12, 292, 264)
    of_looks = dict(mean_gain(looks))
    way = [(drop, of_looks[step]) for step, drop in series(looks, "mean_drop") if step in of_looks]
    strokes = [drop for row in probes if math.isfinite(as_float((drop := score_of(row, "drop"))["value"]))]
    across, up = (
        [-0.02, 0.06, *(x for x, _ in way), *(as_float(drop["value"]) for drop in strokes)],
        [-0.02, 0.1],
    )
    up += [y for _, y in way]
    for point in points:
        across += [as_float(point.drop.get(part)) for part in ("value", "low", "high")]
        up += [as_float(point.gain.get(part)) for part in ("value", "low", "high")]
    if math.isfinite(max_drop):
        across.append(max_drop * 1.15)
    (left, right), (bottom, top) = _room(across), _room(up)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.axvline(0, color=MUTED, linewidth=1)
    ax.axhline(0, color=MUTED, linewidth=1)
    if math.isfinite(max_drop):
        ax.axvspan(max_drop, right, color=BAD, alpha=0.08, linewidth=0)
        ax.axvline(max_drop, color=BAD, linewidth=1.2, linestyle=(0, (4, 3)))
    base = ax.get_xaxis_transform()
    for drop in strokes:
        at = as_float(drop["value"])
        ax.plot([at, at], [0, 0.045], color=_tone(drop), linewidth=2, transform=base)
    if way:
        line(ax, way, color=MUTED, linewidth=1.2)
        ax.plot(*zip(*way, strict=True), color=MUTED, linestyle="none", marker="o", markersize=4)
    for point in points:
        x, y = as_float(point.drop["value"]), as_float(point.gain["value"])
        colour = MUTED if point.faint else RUNS[point.place % len(RUNS)] if named else TUNED
        if not point.faint:
            whisker(ax, {"low": None, "high": None, **point.drop}, y, colour)
            whisker(ax, {"low": None, "high": None, **point.gain}, x, colour, upright=True)
        marker = _MARKERS[point.place // len(RUNS) % len(_MARKERS)]
        inside = CARD if point.faint else colour
        dot = {"markerfacecolor": inside, "markeredgecolor": colour, "markeredgewidth": 1.8}
        ax.plot([x], [y], color=colour, marker=marker, linestyle="none", markersize=10, **dot)
        if named or point.faint:
            weight = "normal" if point.faint else "bold"
            side = -1 if x > (left + right) / 2 and point.faint else 1
            ax.annotate(
                point.name,
                (x, y),
                (9 * side, 7),
                textcoords="offset points",
                weight=weight,
                ha="left" if side > 0 else "right",
                color=MUTED if point.faint else INK,
            )
    few_ticks(ax.xaxis, 8 if wide else 4)
    few_ticks(ax.yaxis, 6)
    ax.set_xlabel("forgotten: mean drop over the probes →", labelpad=4)
    ax.set_ylabel("gained: mean over the tasks →", labelpad=4)
    return figure


def _room(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds all of `values`."""
    finite = [value for value in values if math.isfinite(value)]
    margin = 0.06 * (max(finite) - min(finite))
    return min(finite) - margin, max(finite) + margin


# ── over the steps ──


def _curves(steps: Sequence[Row], checks: Sequence[Row], wide: bool) -> Any:
    """The loss; below it learning rate, gradient norm and both throughputs."""
    if wide:
        figure, axes = figure_of(wide, 470)
        frames = [(58, 30, 808, 230), *((58 + 216 * i, 318, 160, 110) for i in range(4))]
    else:
        figure, axes = figure_of(wide, 1048)
        frames = [(50, 30, 288, 240), *((50, 318 + 188 * i, 288, 120) for i in range(4))]
    panels = [axes(*frame) for frame in frames]
    panels[0].set_title("Loss, nats per supervised token")
    _loss(panels[0], steps, checks)
    for panel, title, points in (
        (panels[1], "Learning rate", series(steps, "lr")),
        (panels[2], "Gradient norm", series(steps, "grad_norm")),
        (panels[3], "Tokens a second", _throughput(steps, "tokens")),
        (panels[4], "Supervised tokens a second", _throughput(steps, "supervised_tokens")),
    ):
        panel.set_title(title)
        line(panel, points, color=TUNED, linewidth=1.5)
        scale(panel, points, 3)
        if not points:
            panel.text(
                0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", va="center", color=MUTED
            )
            panel.set_xticks([])
            panel.set_yticks([])
    _along(panels, [as_float(row["step"]) for row in [*steps, *checks]], wide, first_is_wide=True)
    for panel in panels if wide else panels[-1:]:
        panel.set_xlabel("step", labelpad=2)
    return figure


def _along(panels: Sequence[Any], positions: Sequence[float], wide: bool, *, first_is_wide: bool) -> None:
    """The same steps along all panels."""
    margin = max(0.5, 0.015 * (max(positions) - min(positions)))
    for i, panel in enumerate(panels):
        panel.set_xlim(min(positions) - margin, max(positions) + margin)
        few_ticks(panel.xaxis, 8 if first_is_wide and i == 0 and wide else 4, whole=True)


def _loss(ax: Any, steps: Sequence[Row], checks: Sequence[Row]) -> None:
    raw, checked = series(steps, "loss"), series(checks, "loss")
    mean = smoothed(steps)
    line(ax, raw, color=TUNED, linewidth=1.0, alpha=0.45 if mean else 1.0)
    line(ax, mean, color=TUNED, linewidth=2.4)
    if checked:
        line(ax, checked, color=BAD, linewidth=1.4, linestyle=(0, (4, 3)))
        ax.plot(*zip(*checked, strict=True), color=BAD, linestyle="none", marker="D", markersize=7)
    finite = [point for point in [*raw, *checked] if math.isfinite(point[1])]
    bad = [step for step, value in [*raw, *checked] if not math.isfinite(value)]
    if bad:
        shown = [step for step, _ in thin([(step, 0.0) for step in bad])]
        cross = {"linestyle": "none", "marker": "x", "markersize": 8, "mew": 2}
        ax.plot(shown, [0.97] * len(shown), color=BAD, transform=ax.get_xaxis_transform(), **cross)
    scale(ax, finite, 6)
    if ax.get_yscale() == "log":
        ax.set_title("Loss, nats per supervised token (log scale)")
    if not finite:
        ax.set_yticks([])


def _throughput(steps: Sequence[Row], key: str) -> Points:
    rows = [(as_float(row["step"]), as_float(row.get(key)), as_float(row.get("seconds"))) for row in steps]
    return [
        (step, tokens / seconds) for step, tokens, seconds in rows if seconds > 0 and math.isfinite(tokens)
    ]


def _tasks(losses: Mapping[str, Points], wide: bool) -> Any:
    """A small panel a task: its loss at each step, and smoothed."""
    shown = list(losses.items())[:TASKS_DRAWN]
    across = min(4, len(shown)) if wide else 2
    gap, left = (824 // across, 46) if wide else (156, 36)
    width = gap - left
    figure, axes = figure_of(wide, 138 * -(-len(shown) // across) + 12)
    panels = []
    for i, (name, points) in enumerate(shown):
        panel = axes(left + (gap + 14) * (i % across), 26 + 138 * (i // across), width, 84)
        panel.set_title(clip(name, 22 if wide else 16))
        mean = smooth([(step, loss, 1.0) for step, loss in points])
        line(panel, thin(points, _TASK_POINTS), color=TUNED, linewidth=1.0, alpha=0.45 if mean else 1.0)
        line(panel, thin(mean, _TASK_POINTS), color=TUNED, linewidth=2.0)
        scale(panel, points, 3)
        panels.append(panel)
    _along(panels, [step for _, points in shown for step, _ in points], wide, first_is_wide=False)
    return figure


def _looks(looks: Sequence[Row], wide: bool) -> Any:
    """Gain and drop over the steps, as the looks at some items found them."""
    figure, axes = figure_of(wide, 250)
    panel = axes(58, 20, 808, 180) if wide else axes(50, 20, 288, 180)
    panel.axhline(0, color=MUTED, linewidth=1)
    drop, gain = series(looks, "mean_drop"), mean_gain(looks)
    for points, colour in ((drop, BAD), (gain, GOOD)):
        if points:
            line(panel, points, color=colour, linewidth=2.0)
            panel.plot(*zip(*points, strict=True), color=colour, linestyle="none", marker="o", markersize=6)
    few_ticks(panel.xaxis, 8 if wide else 4, whole=True)
    panel.set_xlabel("step", labelpad=2)
    return figure


def mean_gain(looks: Sequence[Row]) -> Points:
    """The mean over tasks at each look; none of a look that knows of no task."""
    points = []
    for look in looks:
        gains = [as_float(value) for key, value in look.items() if str(key).startswith("gain/")]
        if gains:
            points.append((as_float(look["step"]), sum(gains) / len(gains)))
    return points


def _losses(curves: Sequence[Curve], wide: bool) -> Any:
    """The runs' losses over each other, by the tokens that they have trained on."""
    figure, axes = figure_of(wide, 336)
    ax = axes(58, 30, 808, 270) if wide else axes(50, 30, 288, 270)
    ax.set_title("Loss, nats per supervised token")
    everything: Points = []
    for i, curve in enumerate(curves):
        colour, dash = RUNS[i % len(RUNS)], _DASHES[i // len(RUNS) % len(_DASHES)]
        if curve.smoothed:
            line(ax, curve.steps, color=colour, linewidth=0.8, alpha=0.3)
        line(ax, curve.smoothed or curve.steps, color=colour, linewidth=2.2, linestyle=dash)
        if curve.checks:
            diamond = {"linestyle": "none", "marker": "D", "markersize": 7, "markeredgecolor": CARD}
            ax.plot(*zip(*curve.checks, strict=True), color=colour, **diamond)
        everything += [*curve.steps, *curve.checks]
    scale(ax, everything, 6)
    if ax.get_yscale() == "log":
        ax.set_title("Loss, nats per supervised token (log scale)")
    furthest = max(x for x, _ in everything)
    ax.set_xlim(-0.015 * furthest, 1.015 * furthest or 1.0)
    few_ticks(ax.xaxis, 8 if wide else 4, whole=True)
    ax.set_xlabel("tokens trained on", labelpad=2)
    return figure


# ── for those who hear them ──


def _say_scores(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        before, after = (number(score_of(row, key)["value"], 2) for key in ("base", "tuned"))
        parts.append(f"{clip(row.get('name'), 60)}: base {before}, tuned {after}")
    return "Bar chart, base and tuned model. " + "; ".join(parts) + "."


def _say_drops(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        drop = score_of(row, "drop")
        parts.append(f"{clip(row.get('name'), 60)} {_told(drop)}")
    return (
        "Drop of each probe with its 95 % interval; above zero is worse than base. " + "; ".join(parts) + "."
    )


def _say_standing(points: Sequence[Point]) -> str:
    parts = [f"{point.name}: gain {_told(point.gain)}, drop {_told(point.drop)}" for point in points]
    return (
        "Mean gain over the tasks against mean drop over the probes, with 95 % intervals. "
        + "; ".join(parts)
        + "."
    )


def _told(score: Row) -> str:
    span = interval(score, 2)
    return number(score.get("value"), 2) + (f", interval {span}" if span else "")


def _say_looks(looks: Sequence[Row]) -> str:
    if not looks:
        return ""
    last, gain = looks[-1], mean_gain(looks[-1:])
    gained = f" and the mean gain {number(gain[0][1], 2)}" if gain else ""
    return (
        "Line chart of gain and drop over the training steps. At the last look, behind step "
        f"{as_float(last['step']):g}, the mean drop is {number(last.get('mean_drop'), 2)}{gained}."
    )


def _say_curves(steps: Sequence[Row], checks: Sequence[Row]) -> str:
    parts = [
        "Line charts over the training steps: loss, learning rate, gradient norm, tokens and supervised tokens a "
        "second."
    ]
    for name, rows in (("Training", steps), ("Validation", checks)):
        if points := series(rows, "loss"):
            (first, before), (last, after) = points[0], points[-1]
            parts.append(f"{name} loss {number(before)} at step {first:g}, {number(after)} at step {last:g}.")
    return " ".join(parts)


def _say_tasks(losses: Mapping[str, Points]) -> str:
    parts = [
        f"{clip(name, 60)} from {number(points[0][1])} to {number(points[-1][1])}"
        for name, points in list(losses.items())[:TASKS_DRAWN]
    ]
    return f"The loss of {counted(len(losses), 'task')} over the steps that saw it: " + "; ".join(parts) + "."


def _say_losses(curves: Sequence[Curve]) -> str:
    parts = [
        f"{curve.name} from {number(points[0][1])} to {number(points[-1][1])} after {points[-1][0]:,.0f} tokens"
        for curve in curves
        if (points := curve.smoothed or curve.steps)
    ]
    return "The training losses over each other, by tokens trained on. " + "; ".join(parts) + "."
