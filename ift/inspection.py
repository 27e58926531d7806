"""`ift inspect`: a picture of what the model will see.

In:  a spec.
Out: on the terminal, the mixture asked for and realised, how long its instructions are, then some instructions of
     each task as the tokenizer writes them, with the supervised part marked.

What is shown is what the first epoch trains on: the same draws, the same words, the same tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ift import fetching, storage
from ift.console import marked, numbers_table, supervised_parts, widened
from ift.data import draws as drawing
from ift.data import gather, selection, wording
from ift.data.draws import Draws
from ift.data.gather import Gathered
from ift.data.wording import Limits, Made, Words
from ift.errors import IftError, nearest
from ift.models import base
from ift.prompts.chat import Tokenizer
from ift.spec import Spec
from ift.tasks import probes
from ift.tasks.task import RAW

_SAMPLE = 4000  # instructions that are worded for the table, over all tasks; every task gets 10 at least
_BARS = 12


@dataclass
class Sampled:
    """Some of a task's instructions as the first epoch has them."""

    made: list[tuple[str, Made]] = field(default_factory=list)  # (example id, instruction)
    requests: int = 0  # what was drawn for them: a raw text makes several

    @property
    def kept(self) -> list[Made]:
        return [made for _, made in self.made if made.document]

    @property
    def lengths(self) -> list[int]:
        return [len(made.document.ids) for made in self.kept if made.document]

    def mean(self, values: Sequence[float]) -> float:
        return sum(values) / max(1, len(values))


def show(
    spec: Spec, *, count: int | None = None, task: str | None = None, console: Console | None = None
) -> None:
    """Print the mixture and `count` instructions of each task, or of `task` alone.

    Raises `IftError` as the run itself would.
    """
    console = widened(console)
    cache = storage.cache_dir()
    chosen = selection.select(spec.tasks, spec.mixture, folders=spec.task_folders)
    with console.status("reading the rows"):
        gathered = gather.gather(
            chosen,
            cache=cache,
            **gather.settings_of(spec),
            probes=probes.asked(spec.evaluate.probes),
        )
    with console.status("reading the model's tokenizer"):
        folder = fetching.fetch_model(spec.model, uri=spec.tracking.uri)
        tokenizer = base.load_tokenizer(folder)
    draws = drawing.draws_of(spec.mixture)
    counts = drawing.planned(gathered, draws)
    if task is not None and task not in counts:
        raise IftError(
            f"`{task}` is no task that is trained on",
            wanted=f"one of {', '.join(counts)}",
            hint=nearest(task, counts),
        )
    if count is None:
        count = 3 if task or len(counts) <= 4 else 1 if len(counts) <= 20 else 0
    with console.status("wording some of each task"):
        limits = wording.limits_of(spec, encoder_decoder=base.is_encoder_decoder(folder))
        sampled = sample(gathered, counts, draws, tokenizer, limits, seed=spec.seed, at_least=count)
    console.print(_table(gathered, counts, sampled, draws, console.width))
    console.print()
    if len({t.cluster for t in gathered.tasks.values()}) > 1:
        console.print(_clusters(gathered, counts, sampled, console.width))
        console.print()
    console.print(_histogram(counts, sampled, spec.data.max_length))
    for name in counts:
        if task in (None, name):
            for example, made in sampled[name].made[:count]:
                console.print(_panel(name, example, made, tokenizer, marks=not console.is_terminal))
    if not count and task is None:
        console.print()
        console.print(
            "`--count 1` shows an instruction of each task, `--task NAME` those of one", style="dim"
        )
    notes = _faulty(sampled, spec.data.max_bad_rows)
    _notes(gathered, counts, draws, spec.train.epochs, console, notes)


def sample(
    gathered: Gathered,
    counts: Mapping[str, int],
    draws: Draws,
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    seed: int,
    at_least: int,
) -> dict[str, Sampled]:
    """The first instructions of each task in the first epoch; the draws are shuffled, so they stand for all."""
    each = max(10, at_least, _SAMPLE // max(1, len(counts)))
    sampled = {name: Sampled() for name in counts}
    for some in drawing.train_requests(gathered, counts, draws, seed=seed, epoch=0):
        requests = some.some(np.arange(min(each, len(some))))
        lookup = gathered.examples[some.task].lookup
        made = wording.worded(tokenizer, Words.of(gathered.tasks[some.task]), requests, lookup, limits)
        found = sampled[some.task]
        found.made += [
            (request.example, one) for request, ones in zip(requests, made, strict=True) for one in ones
        ]
        found.requests += len(requests)
    return sampled


def _table(
    gathered: Gathered,
    counts: Mapping[str, int],
    sampled: Mapping[str, Sampled],
    draws: Draws,
    width: int,
) -> Table:
    """One row a task: what an epoch asks of it and what that comes to."""
    total = sum(counts.values())
    tokens = {name: counts[name] * _tokens_of_one(sampled[name]) for name in counts}
    rows: list[dict[str, str]] = []
    for name, count in counts.items():
        some = sampled[name]
        supervised = some.mean([m.document.supervised_tokens for m in some.kept if m.document])
        rows.append(
            {
                **_of_task(gathered, name),
                "drawn": f"{count:,}",
                "share": _percent(count, total),
                "tokens": _short(tokens[name]),
                "of all": _percent(tokens[name], sum(tokens.values())),
                "each": f"{some.mean(some.lengths):.0f}",
                "supervised": f"{supervised:.1f}",
                "few-shot": f"{some.mean([made.shots > 0 for made in some.kept]):.0%}",
            }
        )
    held_out = [{**_of_task(gathered, name), "drawn": "held out"} for name in gathered.selection.held_out]
    sums = {
        "task": f"{len(counts)} tasks",
        "templates": f"{sum(len(gathered.tasks[n].templates) for n in counts):,}",
        "train": f"{sum(gathered.sizes[n] for n in counts):,}",
        "drawn": f"{total:,}",
        "share": "100%",
        "tokens": _short(sum(tokens.values())),
        "of all": "100%",
    }
    names = ["task", "kind", "templates", "train", "drawn", "share", "tokens", "of all", "each", "supervised"]
    names += ["few-shot"] * bool(draws.few_shot) + ["validation", "test"]
    rows += [{**row, "style": "dim"} for row in held_out]
    if len(counts) > 1:
        rows.append({**sums, "style": "bold"})
    spare = ("kind", "templates", "validation", "test", "of all", "train")
    return numbers_table(names, rows, width=width, dispensable=spare)


def _of_task(gathered: Gathered, name: str) -> dict[str, str]:
    task, splits = gathered.tasks[name], gathered.splits[name]
    return {
        "task": name,
        "kind": task.kind,
        "templates": str(len(task.templates)),
        "train": f"{len(splits['train']):,}",
        "validation": f"{len(splits['validation']):,}",
        "test": f"{len(splits['test']):,}",
    }


def _clusters(
    gathered: Gathered, counts: Mapping[str, int], sampled: Mapping[str, Sampled], width: int
) -> Table:
    rows = []
    total = sum(counts.values())
    tokens = {name: counts[name] * _tokens_of_one(sampled[name]) for name in counts}
    clusters: dict[str, list[str]] = {}
    for name in counts:
        clusters.setdefault(gathered.tasks[name].cluster, []).append(name)
    for cluster, names in sorted(clusters.items(), key=lambda item: -sum(counts[n] for n in item[1])):
        drawn, of_tokens = sum(counts[n] for n in names), sum(tokens[n] for n in names)
        rows.append(
            {
                "cluster": cluster,
                "tasks": str(len(names)),
                "drawn": f"{drawn:,}",
                "share": _percent(drawn, total),
                "tokens": _short(of_tokens),
                "of all": _percent(of_tokens, sum(tokens.values())),
            }
        )
    return numbers_table(list(rows[0]), rows, width=width)


def _tokens_of_one(some: Sampled) -> float:
    """Tokens that one draw comes to: raw texts make several pieces, what is set aside makes none."""
    return sum(some.lengths) / max(1, some.requests)


def _histogram(counts: Mapping[str, int], sampled: Mapping[str, Sampled], max_length: int) -> Table:
    """How many tokens an instruction has, each task weighing as much as it is drawn."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("tokens", justify="right")
    table.add_column("instructions")
    weights = [0.0] * _BARS
    too_long = 0.0
    for name, some in sampled.items():
        weight = counts[name] / max(1, some.requests)
        for length in some.lengths:
            weights[min(_BARS - 1, (length - 1) * _BARS // max_length)] += weight
        too_long += weight * sum(made.too_long for _, made in some.made)
    total = max(1.0, sum(weights) + too_long)
    edges = [round(max_length * (i + 1) / _BARS) for i in range(_BARS)]
    last = max((i for i, weight in enumerate(weights) if weight), default=0)
    rows = [
        (f"up to {edge:,}", weight) for edge, weight in list(zip(edges, weights, strict=True))[: last + 1]
    ]
    if too_long:
        rows.append((f"over {max_length:,}, set aside", too_long))
    widest = max(weight for _, weight in rows) or 1.0
    for label, weight in rows:
        bar = "█" * round(40 * weight / widest) or ("▏" if weight else "")
        table.add_row(label, f"{bar} {weight / total:.1%}" if weight else "")
    return table


def _panel(name: str, example: str, made: Made, tokenizer: Tokenizer, *, marks: bool) -> Panel:
    """One instruction, what is supervised underlined; between `marks` where nothing can be underlined."""
    if made.document is None:
        return Panel(
            Text(f"set aside: {made.reason}"), title=f"{name} · example {example}", title_align="left"
        )
    parts = supervised_parts(made.document.ids, made.document.supervised, tokenizer.decode)
    by = f" · template {made.template}" if made.template else ""
    how = "between ⟦ and ⟧" if marks else "underlined"
    shots = f", {made.shots} solved example{'s' * (made.shots > 1)} before it" if made.shots else ""
    foot = f"{len(made.document.ids)} tokens, {made.document.supervised_tokens} supervised ({how}){shots}"
    return Panel(
        marked(parts, marks=marks),
        title=f"{name}{by} · example {example}",
        subtitle=foot,
        title_align="left",
    )


def _faulty(sampled: Mapping[str, Sampled], max_bad_rows: float) -> list[str]:
    """What would stop the run, or leave a task without a single instruction."""
    notes = []
    for name, some in sampled.items():
        faults = [made.reason for _, made in some.made if made.reason and not made.too_long]
        too_long = sum(made.too_long for _, made in some.made)
        if len(faults) > max_bad_rows * some.requests:
            notes.append(
                f"`{name}`: {len(faults)} of the {some.requests} instructions looked at are set aside, so the run "
                f"would stop (data.max_bad_rows {max_bad_rows:g}): {faults[0]}"
            )
        elif some.requests and too_long == some.requests:
            notes.append(f"`{name}`: all of the {too_long} instructions looked at are over data.max_length")
    return notes


def _notes(
    gathered: Gathered,
    counts: Mapping[str, int],
    draws: Draws,
    epochs: int,
    console: Console,
    faulty: Sequence[str],
) -> None:
    notes = [*faulty, *gathered.notes, *drawing.repeats(gathered, counts, draws, epochs)]
    less = [n for n, count in counts.items() if count * epochs < gathered.sizes[n]]
    if less:
        some = ", ".join(less[:6]) + (f" and {len(less) - 6} more" if len(less) > 6 else "")
        epochs_ = f"{epochs} epoch{'s' * (epochs > 1)}"
        notes.append(f"the run ({epochs_}) does not draw every example of {some}")
    if many := gathered.bad:
        first = next(e.bad.first for e in gathered.examples.values() if e.bad.first)
        notes.append(
            f"{many:,} bad {'row is' if many == 1 else 'rows are'} set aside; the first: "
            f"{first['file']}:{first['line']}: {first['reason']}"
        )
    raw = [n for n in counts if gathered.tasks[n].kind in RAW]
    if raw:
        notes.append(f"used as they are, without templates: {', '.join(raw)}")
    for note in notes:
        # notes quote rows and paths, which a line end would break
        console.print(f"· {note}", markup=False, highlight=False, soft_wrap=True)


def _percent(part: float, whole: float) -> str:
    share = part / whole if whole else 0.0
    return f"{share:.0%}" if share >= 0.0995 or not share else f"{share:.1%}"


def _short(tokens: float) -> str:
    """12,345,678 -> 12.3M: an estimate is not shown to the digit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.1f}{unit}"
    return f"{tokens:.0f}"
