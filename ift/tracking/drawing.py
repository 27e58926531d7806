"""Matplotlib's figures as inline SVG that follows the page: its colours, its letters, light and dark.

In:  functions that draw a figure for a wide or a narrow window.
Out: `{"wide": svg, "narrow": svg}` by name; the style sheet shows one of the two.

    drawn({"drops": (probes, "Drop of each probe: …", lambda wide: bars(probes, wide))})

Why Matplotlib, and not SVG by hand or a library that draws in the browser: scales, ticks, gaps and clipping are solved
there, and nothing has to run in the page. What it lacks is done here: it draws in a few colours that nothing else has,
which become the variables of the style sheet, so that one drawing serves light, dark and paper; text stays text, in the
page's own font; its metadata, addresses and ids go. What is a table with bars (mixtures, histograms, confusion
matrices) is HTML instead: there a reader wants the figures too.
"""

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ift.tracking.words import Row, as_float, clip

Points = list[tuple[float, float]]
Draw = Callable[[bool], Any]

CURVE_POINTS = 600

INK, MUTED, LINE, BASE, TUNED, GOOD, BAD, CARD = (f"#0a0b0{digit}" for digit in range(8))
RUNS = [f"#0a0c0{digit}" for digit in range(6)]  # of several runs, one each
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    BASE: "base",
    TUNED: "tuned",
    GOOD: "good",
    BAD: "bad",
    CARD: "card",
    **{colour: f"run{i}" for i, colour in enumerate(RUNS)},
}

WIDTHS = {"wide": 880, "narrow": 350}  # in CSS pixels
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


def drawn(drawings: Mapping[str, tuple[Any, str, Draw]]) -> dict[str, Any]:
    """Each drawing as `{"wide": svg, "narrow": svg}`; None where its data are empty.

    A drawing is (data, a description for those who hear it, a function of whether the window is wide).
    """
    plots: dict[str, Any] = dict.fromkeys(drawings)
    with _matplotlib():
        for key, (data, description, draw) in drawings.items():
            if data:
                plots[key] = {
                    size: _svg(draw(size == "wide"), f"{key}-{size}", description) for size in WIDTHS
                }
    return plots


@contextlib.contextmanager
def _matplotlib() -> Iterator[None]:
    """Matplotlib's own defaults with our style, whatever a user's matplotlibrc says; undone afterwards."""
    import matplotlib

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


def _svg(figure: Any, key: str, description: str) -> Any:
    """The figure as inline SVG: no metadata, no addresses, ids of its own, colours from the page."""
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


# ── figures and what stands on them ──


def figure_of(wide: bool, height: float) -> tuple[Any, Callable[[float, float, float, float], Any]]:
    """A figure, and a function that puts axes on it: left, top, width and height in CSS pixels."""
    from matplotlib.figure import Figure

    width = WIDTHS["wide" if wide else "narrow"]
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)

    def axes(left: float, top: float, across: float, down: float) -> Any:
        return figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))

    return figure, axes


def whisker(ax: Any, score: Row, at: float, colour: str, *, upright: bool = False) -> float:
    """Draw the interval where there is one, lying at height `at` or upright; returns how far it reaches."""
    low, high = as_float(score["low"]), as_float(score["high"])
    if not (math.isfinite(low) and math.isfinite(high)):
        return -math.inf
    place = ([at, at], [low, high]) if upright else ([low, high], [at, at])
    ends = {"linestyle": "none", "marker": "_" if upright else "|", "markersize": 7, "markeredgewidth": 1.5}
    ax.plot(*place, color=CARD, linewidth=4, solid_capstyle="butt")  # a halo: it also lies on bars
    ax.plot(*place, color=colour, linewidth=1.5, solid_capstyle="butt")
    ax.plot(*place, color=colour, **ends)
    return high


def row_label(ax: Any, row: Row, y: float, wide: bool, above: float, left: float) -> None:
    """A row's name: left of the axes where there is room, else above the row."""
    metric = "" if row.get("metric") is None else clip(row["metric"], 30)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    if wide:
        ax.annotate(clip(row.get("name"), 26), (0, y), (-left, 1), va="bottom", weight="bold", **place)
        ax.annotate(metric, (0, y), (-left, -2), va="top", color=MUTED, size=11, **place)
    else:
        ax.annotate(clip(row.get("name"), 22), (0, y), (-left, above), va="bottom", weight="bold", **place)
        ax.annotate(metric, (1, y), (0, above), va="bottom", ha="right", color=MUTED, size=11, **place)


def line(ax: Any, points: Points, **style: Any) -> None:
    """A line with gaps where there is no finite number, and a dot for a point on its own."""
    points = [(step, value if math.isfinite(value) else math.nan) for step, value in thin(points)]
    if not points:
        return
    alone = sum(math.isfinite(value) for _, value in points) == 1
    ax.plot(*zip(*points, strict=True), marker="o" if alone else None, markersize=6, **style)


def scale(ax: Any, points: Points, ticks: int) -> None:
    """The height of a curve's axes: from zero, or in powers of ten where one spike would flatten the rest."""
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
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def few_ticks(axis: Any, ticks: int, whole: bool = False) -> None:
    """At most so many ticks, at round numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    nice = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    axis.set_major_locator(MaxNLocator(ticks, integer=whole, steps=nice, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if whole else tick(value)))


def tick(value: float) -> str:
    """1e-05 → 1e−5, 0.25 → 0.25, 12000 → 12,000."""
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


# ── curves ──


def series(rows: Sequence[Row], key: str) -> Points:
    """(step, value) of the rows that have a value."""
    return [(as_float(row["step"]), as_float(row[key])) for row in rows if row.get(key) is not None]


def smooth(rows: Sequence[tuple[float, float, float]]) -> Points:
    """A centred mean over about a tenth of (place, value, weight); nothing of fewer than eight finite values."""
    rows = [(x, y, weight if weight > 0 else 1.0) for x, y, weight in rows if math.isfinite(y)]
    if len(rows) < 8:
        return []
    half = max(2, len(rows) // 20)
    sums, weights = [0.0], [0.0]
    for _, value, weight in rows:
        sums.append(sums[-1] + value * weight)
        weights.append(weights[-1] + weight)
    points = []
    for index, (x, _, _) in enumerate(rows):
        reach = max(1, min(half, index, len(rows) - 1 - index))
        first, last = max(0, index - reach), min(len(rows), index + reach + 1)
        points.append((x, (sums[last] - sums[first]) / (weights[last] - weights[first])))
    return points


def thin(points: Points, most: int = CURVE_POINTS) -> Points:
    """At most `most` points; of each stretch the lowest and the highest, so that spikes stay."""
    if len(points) <= most:
        return points
    stretch = math.ceil(2 * len(points) / most)
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
