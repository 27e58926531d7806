"""`ift inspect RUN`: what a run trains on, out of the stream that it has written down.

In:  a run's folder; the number of a step, or an example's id.
Out: plain rows, which are printed as JSON lines as they are; and the tables and texts for people.

    run = open_run(Path("runs/quickstart"))
    step_row(run, 812, packs_of(run, 812))["packs"]    # [{"pack": 12976, "documents": 9, "tokens": 509, …}, …]
    example_rows(run, "3f0c")[1]                       # {"kind": "train", "epoch": 1, "step": 7, "pack": 98, …}

Nothing is drawn or worded again: these are the tokens that the workers read, or will read.
Steps, epochs and places in a pack count from 1, packs from 0.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ift import fetching, storage
from ift import spec as specs
from ift.console import Terminal, marked, numbers_table, printable, supervised_parts, widened
from ift.data import stream
from ift.data.stream import Pack, Stream
from ift.errors import IftError
from ift.models import base
from ift.prompts.chat import Tokenizer
from ift.spec import Spec

Row = dict[str, Any]
_DOCUMENTS_SHOWN = 10
_CANDIDATES_SHOWN = 10
_ID = re.compile("[0-9a-f]{4,16}")
_COUNTED = (
    *(
        "packs",
        "max_length",
        "fill",
        "documents",
        "examples",
        "tokens",
        "supervised_tokens",
        "hash",
        "mixture",
    ),
    *("items", "dropped", "quarantined", "too_long", "cut", "notes"),
)
_PLACED = ("train", "validation")  # kinds of rows that have a place in a pack
_WORDS = {
    "train": "in the stream",
    "validation": "in the packs for validation",
    "tested": "asked before and after training: it is one of the test items",
    "quarantined": "set aside, in prepare/quarantine.jsonl",
    "dropped": "dropped from what is trained on, in prepare/dropped.jsonl",
}
_WHERE_ELSE = (
    "an example that no epoch draws, or that is in a test split past evaluate.limit, is written down nowhere; "
    "an id is of one task's rows as they are: another task, or a changed row, has another"
)


@dataclass(frozen=True)
class Run:
    """A run's folder whose stream is written."""

    folder: Path
    spec: Spec
    prepared: Mapping[str, Any]

    @property
    def batch(self) -> int:
        return self.spec.train.global_batch

    @property
    def steps(self) -> int:
        return -(-int(self.prepared["packs"]) // self.batch)

    def metrics(self) -> list[Row]:
        """What was measured in each step so far."""
        return storage.read_jsonl(self.folder / "metrics.jsonl")

    def steps_trained(self) -> int:
        return max((int(row["step"]) for row in self.metrics()), default=0)

    def ranks(self, step: int) -> dict[int, int]:
        """Which worker read each pack of a step; empty where the step has not been trained.

        After a restart a step may have come again, on more or fewer workers: the last start before it counts.
        """
        starts = [e for e in storage.read_jsonl(self.folder / "events.jsonl") if e["kind"] == "start"]
        worlds = [start["world"] for start in starts if start["step"] < step]
        if not worlds or step > self.steps_trained():
            return {}
        from ift.train.loop import ranks_packs

        return {
            pack: rank
            for rank in range(worlds[-1])
            for micro_batch in ranks_packs(
                step - 1,
                global_batch=self.batch,
                packs=self.prepared["packs"],
                rank=rank,
                world=worlds[-1],
                micro_batch=self.batch,
            )
            for pack in micro_batch
        }


def open_run(folder: Path) -> Run:
    """The run in `folder`. Raises `IftError` where there is none, or where it has no stream yet."""
    spec = folder / "spec.yaml"
    if not spec.is_file():
        raise IftError(
            f"{folder} is no run's folder: it has no spec.yaml",
            wanted="a spec file, or a folder that `ift prepare` or `ift run` has written",
        )
    prepared = storage.read_json(folder / "prepare" / "manifest.json")
    if prepared is None:
        raise IftError(
            f"{folder} is not prepared: it has no prepare/manifest.json",
            hint=f"`ift prepare {spec} --output {folder}` writes the stream",
        )
    return Run(folder, specs.load(spec), prepared)


def look(
    folder: Path, *, step: int | None, example: str | None, count: int | None = None, as_json: bool = False
) -> bool:
    """Print a step, an example or the whole stream of the run in `folder`; False where an example is nowhere."""
    run = open_run(folder)
    if example is not None:
        rows = example_rows(run, example)
        _print_json(rows) if as_json else show_example(run, rows)
        return len(rows) > 1
    if step is not None:
        _print_json(step_lines(run, step, count=count)) if as_json else show_step(run, step, count=count)
    else:
        _print_json([overview(run)]) if as_json else show_overview(overview(run))
    return True


def _print_json(rows: Iterable[Row]) -> None:
    for row in rows:
        print(storage.json_line(row), end="")


def refuse_spec(path: Path, option: str) -> None:
    """Raise the `IftError` of a question that only a prepared run can answer, asked of a spec."""
    folder = path.parent
    if storage.read_json(folder / "prepare" / "manifest.json") is None:
        folder = Path("runs") / specs.load(path).name
    prepared = storage.read_json(folder / "prepare" / "manifest.json") is not None
    first = "" if prepared else f"`ift prepare {path}` writes the stream; then "
    raise IftError(
        f"{option} asks about a stream, and {path} is a spec",
        wanted="the folder of a run that is prepared",
        hint=f"{first}`ift inspect {folder} {option}`",
    )


# ── the whole stream ──


def overview(run: Run) -> Row:
    """The stream in numbers."""
    prepared = run.prepared
    return {
        "kind": "run",
        "name": run.spec.name,
        "folder": str(run.folder),
        "steps": run.steps,
        "steps_trained": run.steps_trained(),
        "global_batch": run.batch,
        "epochs": [
            {"epoch": epoch, "packs_seen": end, "last_step": math.ceil(end / run.batch)}
            for epoch, end in enumerate(prepared["epoch_ends"], start=1)
        ],
        **{name: prepared[name] for name in _COUNTED},
        "validation": {name: prepared["validation"][name] for name in ("packs", "documents")},
    }


def show_overview(row: Row, console: Console | None = None) -> None:
    """Print the stream in numbers, and how to look further."""
    console = widened(console)
    done, steps = row["steps_trained"], row["steps"]
    ends = ", ".join(f"epoch {e['epoch']} ends with step {e['last_step']:,}" for e in row["epochs"])
    reasons: Counter[str] = Counter()
    for of_task in row["dropped"].values():
        reasons.update(of_task)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    aside = f"{row['quarantined']:,}, {row['too_long']:,} of them too long (prepare/quarantine.jsonl)"
    facts = {
        "run": f"{row['name']} in {row['folder']}",
        "documents": f"{row['documents']:,} made of {_many(row['examples'], 'example')}; "
        f"{row['supervised_tokens']:,} of {row['tokens']:,} tokens supervised",
        "steps": f"{steps:,} of {_many(row['global_batch'], 'pack')} of {row['max_length']:,} tokens; {ends}",
        "trained": f"all {steps:,} steps" if done >= steps else f"{done:,} of {steps:,} steps",
        "validation": f"{_many(row['validation']['documents'], 'document')} in "
        f"{_many(row['validation']['packs'], 'pack')}",
        "tested": f"{_many(sum(row['items'].values()), 'item')} of tasks and probes, before and after",
        "dropped": f"{dropped} (prepare/dropped.jsonl)" if dropped else "nothing",
        "set aside": aside if row["quarantined"] else "nothing",
    }
    console.print(_facts(facts))
    terminal = Terminal(console)
    terminal.mixture(row)
    for note in row["notes"]:
        terminal.note(printable(note))
    _hint(
        console,
        f"\n`ift inspect {row['folder']} --step N` shows what a step from 1 to {steps:,} sees, `--example ID` when "
        "an example is seen",
    )


# ── one step ──


def packs_of(run: Run, step: int) -> dict[int, Pack]:
    """The packs of an optimizer step by their number. Raises `IftError` where the run has no such step."""
    if not 1 <= step <= run.steps:
        raise IftError(f"{run.folder} has no step {step:,}", wanted=f"a step from 1 to {run.steps:,}")
    first = (step - 1) * run.batch
    numbers = range(first, min(first + run.batch, run.prepared["packs"]))
    try:
        return dict(zip(numbers, Stream(run.folder / "prepare" / "stream").read(numbers), strict=True))
    except IndexError as error:
        raise _not_whole(run, str(error)) from None


def step_row(run: Run, step: int, packs: Mapping[int, Pack]) -> Row:
    """A step in numbers: its packs, and what was measured if it is trained."""
    ranks = run.ranks(step)
    return {
        "kind": "step",
        "step": step,
        "steps": run.steps,
        "epochs": sorted({pack.epoch + 1 for pack in packs.values()}),
        "metrics": next((row for row in run.metrics() if row["step"] == step), None),
        "packs": [
            {
                "pack": number,
                "epoch": pack.epoch + 1,
                "documents": len(pack.lengths),
                "tokens": len(pack.tokens),
                "fill": len(pack.tokens) / run.prepared["max_length"],
                "supervised_tokens": pack.supervised_tokens,
                **({"rank": ranks[number]} if ranks else {}),
            }
            for number, pack in packs.items()
        ],
    }


def document_rows(packs: Mapping[int, Pack], tokenizer: Tokenizer) -> Iterator[Row]:
    """Every document of some packs, its text in parts that are supervised or not."""
    for number, pack in packs.items():
        start = 0
        for place, length in enumerate(pack.lengths):
            own = slice(start, start + length)
            ids, supervised = pack.tokens[own], pack.supervised[own]
            start += length
            yield {
                "kind": "document",
                "pack": number,
                "place": place + 1,
                "of": len(pack.lengths),
                "task": pack.tasks[place],
                "template": pack.templates[place],
                "example": pack.examples[place],
                "tokens": length,
                "supervised_tokens": sum(supervised),
                "parts": [
                    {"text": text, "supervised": counts}
                    for text, counts in supervised_parts(ids, supervised, tokenizer.decode)
                ],
            }


def tokenizer_of(run: Run) -> Tokenizer:
    """The tokenizer that wrote the stream: the tuned model has it too, and asks neither a network nor a cache."""
    if base.is_model(run.folder / "model"):
        return base.load_tokenizer(run.folder / "model")
    return base.load_tokenizer(fetching.fetch_model(run.spec.model, uri=run.spec.tracking.uri))


def step_lines(run: Run, step: int, *, count: int | None = None) -> Iterator[Row]:
    """The rows of a step: its numbers, then its documents, all of them or the first `count`."""
    packs = packs_of(run, step)
    yield step_row(run, step, packs)
    if count != 0:
        yield from islice(document_rows(packs, tokenizer_of(run)), count)


def show_step(run: Run, step: int, *, count: int | None = None, console: Console | None = None) -> None:
    """Print a step: its numbers, its packs, and the first `count` of its documents."""
    console = widened(console)
    packs = packs_of(run, step)
    row = step_row(run, step, packs)
    epochs = " and ".join(map(str, row["epochs"]))
    where = f"{step:,} of {row['steps']:,}, in epoch {epochs} of {len(run.prepared['epoch_ends'])}"
    console.print(_facts({"step": where, "trained": _measured(row["metrics"])}))
    console.print()
    console.print(_packs_table(row["packs"], several=len(row["epochs"]) > 1, width=console.width))
    console.print()
    total = sum(len(pack.lengths) for pack in packs.values())
    count = _DOCUMENTS_SHOWN if count is None else count
    marks = console.color_system is None
    if count:
        with console.status("reading the model's tokenizer"):
            tokenizer = tokenizer_of(run)
        _hint(console, f"supervised text is {'between ⟦ and ⟧' if marks else 'underlined'}")
        for document in islice(document_rows(packs, tokenizer), count):
            console.print(_panel(document, marks=marks))
    if total > count:
        _hint(console, f"{_many(total - count, 'more document')} in this step; `--count {total}` shows all")


def _measured(metrics: Row | None) -> str:
    if metrics is None:
        return "not yet"
    return (
        f"loss {metrics['loss']:.4f}, learning rate {metrics['lr']:.2e}, "
        f"gradient norm {metrics['grad_norm']:.3f}, {metrics['seconds']:.1f} s"
    )


def _packs_table(packs: Sequence[Row], *, several: bool, width: int) -> Table:
    """One row a pack, and their sum; the epoch where the step has packs of `several`."""
    rows = [
        {
            "pack": f"{pack['pack']:,}",
            "epoch": str(pack["epoch"]),
            "documents": f"{pack['documents']:,}",
            "tokens": f"{pack['tokens']:,}",
            "fill": f"{pack['fill']:.1%}",
            "supervised": f"{pack['supervised_tokens']:,}",
            "rank": str(pack.get("rank", "")),
        }
        for pack in packs
    ]
    if len(packs) > 1:
        sums = {name: sum(pack[name] for pack in packs) for name in ("documents", "tokens")}
        rows.append(
            {
                "pack": f"{len(packs)} packs",
                "documents": f"{sums['documents']:,}",
                "tokens": f"{sums['tokens']:,}",
                "fill": f"{sum(pack['fill'] for pack in packs) / len(packs):.1%}",
                "supervised": f"{sum(pack['supervised_tokens'] for pack in packs):,}",
                "style": "bold",
            }
        )
    names = ["pack", *["epoch"] * several, "documents", "tokens", "fill", "supervised"]
    return numbers_table(names + ["rank"] * ("rank" in packs[0]), rows, width=width)


def _panel(document: Row, *, marks: bool) -> Panel:
    # the id stands first: a title that is too long is cut at its end, and the id is what one looks for
    by = f" · template {document['template']}" if document["template"] else ""
    title = printable(f"{document['example']} · {document['task']}{by}")
    foot = (
        f"pack {document['pack']:,}, place {document['place']} of {document['of']} · "
        f"{document['tokens']:,} tokens, {document['supervised_tokens']:,} supervised"
    )
    parts = ((part["text"], part["supervised"]) for part in document["parts"])
    return Panel(marked(parts, marks=marks), title=Text(title), subtitle=foot, title_align="left")


# ── one example ──


def example_rows(run: Run, prefix: str) -> list[Row]:
    """Everything that a run has of one example: how often, then a row for each time. `prefix` begins its id.

    Raises `IftError` where that is no id, or begins more than one.
    """
    prefix = prefix.lower()
    if not _ID.fullmatch(prefix):
        raise IftError(
            f"the example `{prefix}`",
            wanted="an id of 16 hexadecimal digits, or its first 4 or more",
            hint=f"`ift inspect {run.folder} --step 1` shows some",
        )
    rows = [*_trained(run, prefix), *_held_back(run, prefix), *_left_out(run, prefix)]
    tasks = {row["example"]: row["task"] for row in rows}
    if len(tasks) > 1:
        some = ", ".join(f"{id_} ({tasks[id_]})" for id_ in sorted(tasks)[:_CANDIDATES_SHOWN])
        more = f" and {len(tasks) - _CANDIDATES_SHOWN} more" if len(tasks) > _CANDIDATES_SHOWN else ""
        raise IftError(
            f"{len(tasks)} examples begin with `{prefix}`",
            wanted="more digits",
            hint=f"they are {some}{more}",
        )
    kinds = [row["kind"] for row in rows]
    counts = {kind: kinds.count(kind) for kind in _WORDS}
    return [{"kind": "example", "example": next(iter(tasks), prefix), **counts}, *rows]


def _trained(run: Run, prefix: str) -> Iterator[Row]:
    done = run.steps_trained()
    for row in _places(run, run.folder / "prepare" / "stream", run.prepared["shards"], prefix):
        step = row["pack"] // run.batch + 1
        yield {"kind": "train", **row, "step": step, "trained": step <= done}


def _held_back(run: Run, prefix: str) -> Iterator[Row]:
    shards = run.prepared["validation"]["shards"]
    for row in _places(run, run.folder / "prepare" / "validation", shards, prefix):
        yield {"kind": "validation", **row}
    for row in _named(run.folder / "prepare" / "items.jsonl", "id", prefix):
        if row["suite"] != "probe":  # a probe's items have names of their own
            yield {"kind": "tested", "example": row["id"], "task": row["name"], "suite": row["suite"]}


def _left_out(run: Run, prefix: str) -> Iterator[Row]:
    for kind, name in (("quarantined", "quarantine.jsonl"), ("dropped", "dropped.jsonl")):
        for row in _named(run.folder / "prepare" / name, "example", prefix):
            yield {"kind": kind, **{key: row[key] for key in ("example", "task", "file", "line", "reason")}}


def _places(run: Run, folder: Path, shards: Iterable[Row], prefix: str) -> Iterator[Row]:
    """The documents of examples whose id begins with `prefix`, in order.

    Of most row groups only the ids are read, and of one row group at a time: a stream may hold millions.
    """
    wanted = ["lengths", "tasks", "templates", "epoch", "supervised"]
    for number, shard in enumerate(shards):
        path = folder / shard["file"]
        if not path.is_file():
            raise _not_whole(run, f"{path} is missing")
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["examples"]).column("examples")
                if not pc.any(pc.starts_with(pc.list_flatten(ids), prefix)).as_py():
                    continue
                packs = file.read_row_group(group, columns=wanted)
                first = number * stream.PACKS_PER_SHARD + group * stream.PACKS_PER_GROUP
                for row, examples in enumerate(ids.to_pylist()):
                    pack = {name: packs.column(name)[row] for name in wanted}
                    for place, example in enumerate(examples):
                        if example.startswith(prefix):
                            yield {**_document(pack, place), "example": example, "pack": first + row}


def _document(pack: Mapping[str, Any], place: int) -> Row:
    """What a row of a shard says of one of its documents."""
    lengths = pack["lengths"].as_py()
    supervised = pack["supervised"].values.slice(sum(lengths[:place]), lengths[place])
    return {
        "task": pack["tasks"][place].as_py(),
        "template": pack["templates"][place].as_py(),
        "epoch": pack["epoch"].as_py() + 1,
        "place": place + 1,
        "of": len(lengths),
        "tokens": lengths[place],
        "supervised_tokens": supervised.true_count,
    }


def _named(path: Path, key: str, prefix: str) -> Iterator[Row]:
    """The rows of a JSONL file whose `key` begins with `prefix`."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if prefix in line:  # most lines are not: they need no parsing
                row = json.loads(line)
                if str(row.get(key, "")).startswith(prefix):
                    yield row


def show_example(run: Run, rows: Sequence[Row], console: Console | None = None) -> None:
    """Print what a run has of an example, as `example_rows` found it."""
    console = widened(console)
    head, *found = rows
    if not found:
        _say(
            console,
            f"{head['example']} is nowhere in {run.folder}: not in its stream, not held back, not left out",
        )
        _hint(console, _WHERE_ELSE)
        return
    _say(console, f"example {head['example']} of {found[0]['task']}")
    for kind, words in _WORDS.items():
        some = [row for row in found if row["kind"] == kind]
        if some or kind == "train":
            console.print()
            times = f"{len(some):,} time{'s' * (len(some) != 1)}" if some else "never"
            _say(console, f"{words}: {times}" if kind in _PLACED else words, style="bold")
        if some and kind in _PLACED:
            console.print(_sightings_table(some, width=console.width))
        for row in some:
            if "reason" in row:
                where = f"{row['file']}:{row['line']}: " if row["file"] else ""
                _say(console, f"{where}{row['reason']}")
    console.print()
    if head["train"]:
        done = run.steps_trained()
        if done < run.steps:
            _hint(console, f"the run has trained {done:,} of its {run.steps:,} steps")
        step = next(row["step"] for row in found if row["kind"] == "train")
        _hint(console, f"`ift inspect {run.folder} --step {step}` shows what stands around it")
    if run.spec.mixture.few_shot:
        _hint(console, "solved examples before other prompts are not written down, and not counted here")


def _sightings_table(rows: Sequence[Row], *, width: int) -> Table:
    shown = [
        {
            "template": row["template"] or "none",
            "epoch": str(row["epoch"]),
            "step": f"{row['step']:,}" if "step" in row else "",
            "pack": f"{row['pack']:,}",
            "place": f"{row['place']} of {row['of']}",
            "tokens": f"{row['tokens']:,}",
            "supervised": f"{row['supervised_tokens']:,}",
        }
        for row in rows
    ]
    in_steps = ["epoch", "step"] * ("step" in rows[0])
    return numbers_table(["template", *in_steps, "pack", "place", "tokens", "supervised"], shown, width=width)


def _not_whole(run: Run, what: str) -> IftError:
    return IftError(
        f"the stream is not whole: {what}",
        wanted="every shard that prepare/manifest.json names",
        hint=f"remove {run.folder / 'prepare'} and prepare the run again: it gives the same stream",
    )


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, Text(printable(value)))
    return table


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(Text(printable(text), style=style), soft_wrap=True)


def _hint(console: Console, text: str) -> None:
    _say(console, text, style="dim")


def _many(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
