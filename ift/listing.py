"""`ift tasks` and `ift templates`: what there is, how it reads, and templates from elsewhere.

In:  names of tasks or paths of task files, and the user's folders of tasks.
Out: plain rows, of texts, numbers and lists, which are printed as JSON as they are; and the tables for people.

    task_row(find("mrpc"))["cluster"]                     # "paraphrase"
    rendered(find("mrpc"), rows=[{"sentence1": …}])[0]    # {"task": "mrpc", "template": …, "prompt": …, …}
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ift import storage
from ift.data import formats, sources
from ift.data.examples import example_of
from ift.errors import IftError, nearest
from ift.prompts import promptsource
from ift.prompts.promptsource import LeftOut
from ift.prompts.template import Template
from ift.tasks import task as tasks
from ift.tasks.clusters import CLUSTERS
from ift.tasks.task import RAW, Example, Kind, Skip, Source, Task

Row = dict[str, Any]
_HEADS = {"license": "licence"}
_ENDLESS = 10_000  # columns of a file


# --- tasks -------------------------------------------------------------------------------------------------


def find(name: str, folders: Sequence[str | Path] = ()) -> Task:
    """The task of a name, or of a path to a task file."""
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        return tasks.load(file=name)
    return tasks.load(name, folders=folders)


def find_all(names: Sequence[str], folders: Sequence[str | Path] = ()) -> list[Task]:
    """The tasks of these names; without names, every one of the library and of `folders`."""
    return [find(name, folders) for name in names or tasks.library(folders)]


def task_rows(
    folders: Sequence[str | Path] = (), *, cluster: str | None = None, kind: str | None = None
) -> list[Row]:
    """Every task, or those of a cluster or a kind. Raises `IftError` where there is none."""
    rows = [task_row(task) for task in find_all((), folders)]
    if cluster is not None:
        _known("cluster", cluster, {*CLUSTERS, *(row["cluster"] for row in rows)})
    if kind is not None:
        _known("kind", kind, get_args(Kind))
    found = [row for row in rows if row["cluster"] == (cluster or row["cluster"])]
    if found := [row for row in found if row["kind"] == (kind or row["kind"])]:
        return found
    said = " ".join(f"{key} `{value}`" for key, value in (("cluster", cluster), ("kind", kind)) if value)
    raise IftError(f"no task of {said}", hint="`ift tasks list` shows all there are")


def _known(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise IftError(
            f"no {key} `{value}`",
            wanted=f"one of {', '.join(sorted(known))}",
            hint=nearest(value, known),
        )


def task_row(task: Task) -> Row:
    """What a list of tasks says of one."""
    return {
        "name": task.name,
        "kind": task.kind,
        "cluster": task.cluster,
        "license": task.license,
        "language": task.language,
        "templates": len(task.templates),
        "metric": task.metric,
        "source": source_name(task.source),
        "description": task.description,
        "file": str(task.path),
    }


def source_name(source: Source) -> str:
    """Where the rows are, in one line."""
    if source.hub:
        return "hub: " + source.hub.id + (f", {source.hub.config}" if source.hub.config else "")
    if source.package:
        return "package: " + source.package.partition("/")[0]
    if source.mlflow:
        return "mlflow: " + (source.mlflow.dataset or f"{source.mlflow.run}/{source.mlflow.artifact}")
    files = source.files if isinstance(source.files, str) else ", ".join((source.files or {}).values())
    return "files: " + files


def task_detail(task: Task) -> Row:
    """All that a task's file says, and where it is."""
    detail: Row = task.model_dump(mode="json", by_alias=True)
    detail["source"] = task.source.model_dump(mode="json", exclude_none=True)
    detail["fields"] = _fields(task)
    detail["templates"] = [{k: v for k, v in row.items() if k != "task"} for row in template_rows([task])]
    return {**detail, "file": str(task.path)}


def _fields(task: Task) -> Row | None:
    """A task's fields as its file has them."""
    if task.fields is None:
        return None
    said: Row = {}
    for name, spec in task.fields.items():
        how = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
        said[name] = how["column"] if set(how) == {"column"} else how
    return said


# --- templates ---------------------------------------------------------------------------------------------


def template_rows(found: Iterable[Task]) -> list[Row]:
    """Every template of some tasks."""
    return [
        {
            "task": task.name,
            "id": template.id,
            "form": template.form,
            "weight": template.weight,
            "answers": template.answers if isinstance(template.answers, str) else list(template.answers),
            "prompt": template.prompt,
            "completion": template.completion,
        }
        for task in found
        for template in task.wordings
    ]


def wordings(task: Task, id_: str | None) -> Sequence[Template]:
    """The templates of a task, or the one of this id. Raises `IftError` where there is none."""
    if id_ is None:
        return task.wordings
    if chosen := [template for template in task.wordings if template.id == id_]:
        return chosen
    known = [template.id for template in task.wordings]
    raise IftError(
        f"the task `{task.name}` has no template `{id_}`",
        wanted=f"one of {', '.join(known)}"
        if known
        else f"a task with templates; this one is of kind {task.kind}",
        hint=nearest(id_, known),
    )


def rendered(task: Task, rows: Iterable[Mapping[str, Any]], *, id_: str | None = None) -> list[Row]:
    """Rows of a task's source under its templates, or under the one of this id.

    Where a template cannot word a row, `error` says why. Raises `IftError` where a row itself is bad.
    """
    chosen = wordings(task, id_)
    made: list[Row] = []
    for number, row in enumerate(rows, 1):
        try:
            example = task.example(row)
        except Skip:
            raise IftError(f"row {number} is left out by the task's hook", wanted="another row") from None
        except ValueError as error:
            raise IftError(
                f"row {number}: {error}", wanted=f"a row as the source of `{task.name}` has it"
            ) from None
        made += _worded(task, example, chosen)
    return made


def _worded(task: Task, example: Example, chosen: Sequence[Template]) -> Iterator[Row]:
    if task.kind in RAW:
        yield {"task": task.name, "example": example.id, **example.fields}
        return
    for template in chosen:
        row: Row = {"task": task.name, "template": template.id, "form": template.form, "example": example.id}
        try:
            words = template.word(example.fields, key=f"{example.id}/{template.id}", with_choices=True)
        except IftError as error:
            yield {**row, "error": str(error)}
            continue
        if words.system:
            row["system"] = words.system
        yield {**row, "prompt": words.prompt, "completion": words.completion, "choices": list(words.choices)}


def source_rows(task: Task, count: int) -> list[Mapping[str, Any]]:
    """The first usable rows of a task's source, of its training split where it has one; bad ones are passed over.

    Raises `IftError` where the source cannot be read, or has no usable row.
    """
    try:
        with Console(stderr=True).status("fetching the rows"):
            files = sources.files_of(task, storage.cache_dir())
    except IftError as error:
        own = "or give a row of your own: --row JSON, --rows FILE"
        raise IftError(
            error.what,
            wanted=error.wanted,
            hint=f"{error.hint}; {own}" if error.hint else own.removeprefix("or "),
            where=error.where,
        ) from None
    split = "train" if "train" in files.splits else next(iter(files.splits))
    reasons: list[str] = []
    usable = islice(_usable(task, files.splits[split], reasons), count)
    if found := list(usable):
        if reasons:
            many = f"{len(reasons)} rows before {'it' if len(found) == 1 else 'them'} cannot be used"
            Console(stderr=True).print(f"· {many}; the first: {reasons[0]}", markup=False, soft_wrap=True)
        return found
    where = ", ".join(f"`{column}` {value!r}" for column, value in task.source.where.items())
    first = reasons[0] if reasons else f"none has {where}" if where else "it has no rows"
    raise IftError(f"no row of {source_name(task.source)} can be used: {first}")


def _usable(task: Task, paths: Sequence[Path], reasons: list[str]) -> Iterator[Mapping[str, Any]]:
    for path in paths:
        for row in formats.read(path, task.source.columns):
            found = example_of(task, row)
            if isinstance(found, formats.Bad):
                reasons.append(f"{path}:{row.line}: {found.reason}")
            elif found is not None and isinstance(row, formats.Row):
                yield row.values


def given_rows(text: str | None, file: Path | None, count: int) -> list[Mapping[str, Any]]:
    """Rows that the user gives: one as JSON, or the first of a file."""
    if text is not None:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise IftError(
                f"--row is not JSON: {error.msg} at column {error.colno}", wanted='such as {"text": "Fun."}'
            ) from None
        if not isinstance(value, dict):
            raise IftError(f"--row is a {type(value).__name__}", wanted='an object, such as {"text": "Fun."}')
        return [value]
    rows: list[Mapping[str, Any]] = []
    for row in islice(formats.read(file or Path()), count):
        if isinstance(row, formats.Bad):
            raise IftError(f"a bad row: {row.reason}", where=f"{file}:{row.line}")
        rows.append(row.values)
    return rows


# --- templates from elsewhere ------------------------------------------------------------------------------


@dataclass
class Import:
    """What an import wrote, and what it left out."""

    written: dict[Path, int] = field(default_factory=dict)  # task file -> its templates
    left_out: list[LeftOut] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # whole files, with reasons


def import_promptsource(source: Path, output: Path) -> Import:
    """Write a task file for a promptsource file, or for each one in a folder; existing files stay as they are.

    Raises `IftError` where nothing can be taken over, or a task file of that name is already there.
    """
    paths = sorted([*source.rglob("*.yaml"), *source.rglob("*.yml")]) if source.is_dir() else [source]
    if not paths:
        raise IftError(
            f"{source} holds no YAML file", wanted="promptsource's templates.yaml, or a folder of them"
        )
    result, texts = Import(), dict[Path, tuple[str, int]]()
    taken = set(tasks.library())
    for path in paths:
        try:
            made = promptsource.convert(_text(path), str(path), taken)
        except IftError as error:
            if len(paths) == 1:
                raise
            result.refused.append(str(error))
            continue
        taken.add(made.name)
        result.left_out += made.left_out
        texts[output / f"{made.name}.yaml"] = (made.text, made.templates)
    if not texts:
        raise IftError(f"no file in {source} could be taken over", hint=f"the first: {result.refused[0]}")
    if there := [path for path in texts if path.exists()]:
        raise IftError(f"{there[0]} is already there", wanted="an output folder without tasks of these names")
    for path, (text, count) in texts.items():
        storage.write_text(path, text)
        try:
            tasks.load(file=str(path))
        except IftError as error:
            path.unlink()
            result.refused.append(str(error))
        else:
            result.written[path] = count
    return result


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise IftError(f"cannot read {path}: {detail}", wanted="a promptsource file") from None


# --- printing ----------------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """Nothing but JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _console(console: Console | None) -> Console:
    console = console or Console()
    if not console.is_terminal:
        console.width = _ENDLESS  # a file has no width; cutting it would spoil what is searched
    return console


def _table(console: Console, rows: Sequence[Row], names: Sequence[str], flexible: Sequence[str]) -> Table:
    """Rows in lines that fit: where room is short the `flexible` columns are cut, the widest first."""
    cells = {name: [_cell(row[name]) for row in rows] for name in names}
    widths = {name: max(len(_HEADS.get(name, name)), *map(len, cells[name])) for name in names}
    room = console.width - 2 * (len(names) - 1) - sum(widths[name] for name in names if name not in flexible)
    for left, name in zip(range(len(flexible), 0, -1), sorted(flexible, key=widths.__getitem__), strict=True):
        widths[name] = max(8, min(widths[name], room // left))
        room -= widths[name]
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(
            _HEADS.get(name, name),
            justify="right" if name in ("templates", "weight") else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=widths[name],
        )
    for line in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, line))
    return table


def show_tasks(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the list of tasks; metrics, licences and sources where the terminal has room for them."""
    console = _console(console)
    names = ["name", "kind", "cluster", "templates"]
    names += ["license", "source"] if console.width >= 110 else []
    names += ["metric"] if console.width >= 140 else []
    console.print(
        _table(console, rows, names, [name for name in ("cluster", "license", "source") if name in names])
    )
    if console.is_terminal:
        more = "" if "metric" in names else "; a wider terminal shows more columns, --json all"
        _hint(console, f"{_many(len(rows), 'task')}; `ift tasks show NAME` says more of one{more}")


def show_task(task: Task, console: Console | None = None) -> None:
    """Print what a task's file says, and the ids of its templates."""
    console = _console(console)
    row = task_row(task)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    lines: dict[str, object] = {"name": row["name"], "": row["description"]}
    lines |= {key: row[key] for key in ("kind", "cluster")}
    lines |= {"licence": row["license"], "language": row["language"], "source": row["source"]}
    source = task.source.model_dump(
        mode="json", exclude_none=True, exclude={"hub", "package", "files", "sha256"}
    )
    lines |= {f"  {key}": _written(value) for key, value in source.items() if value}
    if task.hook:
        lines["hook"] = task.hook
    fields = _fields(task)
    if fields is None:
        lines["fields"] = "every column under its own name"
    for number, (name, how) in enumerate((fields or {}).items()):
        lines["fields" if not number else " " * (number + 1)] = f"{name}: {_written(how)}"
    if task.choices:
        lines["choices"] = ", ".join(task.choices.names) or f"each row's own, in `{task.choices.from_}`"
        lines["answer"] = f"`{task.choices.field}`"
    if task.metric:
        lines["metric"] = task.metric + (f", {task.baseline:.0%} by guessing" if task.baseline else "")
    if task.system:
        lines["system"] = task.system
    if task.templates:
        forms = Counter(template.form for template in task.wordings)
        said = ", ".join(f"{count} {form}" for form, count in forms.items())
        lines["templates"] = f"{len(task.templates)} ({said})"
        lines["  ids"] = ", ".join(template.id for template in task.wordings)
    lines["file"] = row["file"]
    for name, value in lines.items():
        if value not in (None, ""):
            table.add_row(Text(name), Text(str(value)))
    console.print(table)


def show_templates(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the list of templates, each with the beginning of its prompt."""
    console = _console(console)
    if not rows:
        console.print("no templates: rows of kind chat and text are used as they are")
        return
    several = ["task"] if len({row["task"] for row in rows}) > 1 else []
    names = [*several, "id", "form", "weight", "prompt"]
    console.print(_table(console, rows, names, [*several, "id", "prompt"]))


def show_texts(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print whole templates."""
    console = console or Console()
    for row in rows:
        parts: list[RenderableType] = [Text(row["prompt"])]
        if row["answers"]:
            answers = row["answers"] if isinstance(row["answers"], str) else " | ".join(row["answers"])
            parts += [Rule("answers", style="dim", align="left"), Text(answers)]
        parts += [Rule("completion", style="dim", align="left"), Text(row["completion"], style="bold green")]
        title = f"{row['task']} · {row['id']} · {row['form']} · weight {row['weight']:g}"
        console.print(Panel(Group(*parts), title=Text(title), title_align="left"))


def show_rendered(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print instructions, the completion told apart from the prompt."""
    console = console or Console()
    for row in rows:
        name = f" · {row['template']} · {row['form']}" if "template" in row else ""
        title = Text(f"{row['task']}{name} · example {row['example']}")
        console.print(Panel(Group(*_shown(row)), title=title, title_align="left"))


def _shown(row: Row) -> Iterator[RenderableType]:
    if "error" in row:
        yield Text(row["error"], style="red")
    elif "messages" in row:
        for message in row["messages"]:
            supervised = message["role"] == "assistant"
            yield Rule(Text(message["role"]), style="dim", align="left")
            yield Text(message["content"], style="bold green" if supervised else "")
    elif "template" not in row:
        yield Text(row["text"], style="bold green")
    else:
        if row.get("system"):
            yield Text(row["system"], style="dim")
            yield Rule("prompt", style="dim", align="left")
        yield Text(row["prompt"])
        yield Rule("completion", style="dim", align="left")
        yield Text(row["completion"], style="bold green")
        if others := [choice for choice in row["choices"] if choice != row["completion"]]:
            yield Text(f"or: {' | '.join(others)}", style="dim")


def show_import(result: Import, output: Path, console: Console | None = None) -> None:
    """Print what was written, then everything that was left out and why."""
    console = console or Console()
    templates = sum(result.written.values())
    text = Text(f"{_many(len(result.written), 'task')} with {_many(templates, 'template')} in {output}")
    console.print(text, soft_wrap=True)
    left = [*result.refused, *map(str, result.left_out)]
    if left:
        counts = ((len(result.left_out), "template"), (len(result.refused), "file"))
        console.print("\nleft out: " + ", ".join(_many(count, name) for count, name in counts if count))
        for line in left:
            console.print(Text(f"· {line}"), soft_wrap=True)
    if result.written:
        first = next(iter(result.written))
        console.print()
        _hint(console, f"look at them: ift templates show {first}")
        _hint(console, f"use them in a spec: task_folders: [{output}], tasks: [{first.stem}]")


def _hint(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"), soft_wrap=True)


def _many(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _cell(value: object) -> str:
    """A value in one line of a table."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


def _written(value: object) -> str:
    """A value as a task file has it in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return (
        value
        if isinstance(value, str) and value.strip() == value != ""
        else json.dumps(value, ensure_ascii=False)
    )
