"""A task over films with its rows, and its examples, as the tests of sources, examples and gathering write it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ift.data.examples import Examples, examples_of
from ift.errors import IftError
from ift.tasks import task as tasks
from ift.tasks.task import SPLITS

TASK = """\
name: {name}
kind: classification
license: Apache-2.0
source: {source}
choices: {{field: label, names: [bad, good]}}
fields: {{text: text, label: label}}
metric: accuracy
templates: [{{id: a, prompt: "{{{{ text }}}}", completion: "{{{{ label }}}}"}}]
{more}
"""


def jsonl(rows: Sequence[Any]) -> str:
    """Rows as lines; a text stands for a line as it is."""
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def write_films(
    folder: Path,
    source: str = "{files: rows.jsonl}",
    *,
    name: str = "films",
    more: str = "",
    **files: Sequence[Any],
) -> Path:
    """The task's file and its rows; `more` goes into the task's file."""
    for stem, rows in files.items():
        (folder / f"{stem}.jsonl").write_text(jsonl(rows), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(TASK.format(name=name, source=source, more=more), encoding="utf-8")
    return path


def rows_of(
    folder: Path, source: str = "{files: rows.jsonl}", *, more: str = "", **files: Sequence[Any]
) -> Examples:
    """The examples of the task that `write_films` writes."""
    file = write_films(folder, source, more=more, **files)
    return examples_of(tasks.load(file=str(file)), folder / "cache")


def refused(folder: Path, source: str) -> str:
    """What is said where the task cannot be read."""
    with pytest.raises(IftError) as caught:
        rows_of(folder, source)
    return str(caught.value).replace(str(folder), "DIR")


def film(number: int, **more: object) -> dict[str, object]:
    """One row."""
    return {"text": f"film {number}", "label": number % 2, **more}


def texts(rows: Examples) -> dict[str | None, list[str]]:
    """The texts of the examples by the split that the source has them in."""
    found = {split: rows.of_split(split).tolist() for split in (None, *SPLITS)}
    return {
        split: [rows[place].fields["text"] for place in places] for split, places in found.items() if places
    }


def quarantine(rows: Examples) -> list[dict[str, Any]]:
    """Every row that is set aside."""
    lines = (rows.lookup.folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
