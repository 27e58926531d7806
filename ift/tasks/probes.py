"""Loads the probe suite: what is asked before and after tuning, to see what a model forgot.

In:  the YAML files in `ift/tasks/probes/` (or a folder of your own), one probe a file.
Out: `Probe`s in alphabetical order, every item checked.

    [probe.name for probe in load_probes(["knowledge", "arithmetic"])]  ->  ["arithmetic", "knowledge"]

A file has `name` (that of the file), `kind`, `description`, `license`, `language` and `items`; a generation
probe also has `max_new_tokens`. An item has an `id`, a `prompt`, and what its kind grades it by:

| kind              | an item has                       | graded by                                       |
|-------------------|-----------------------------------|-------------------------------------------------|
| `multiple_choice` | `choices`, `answer` (right index) | length-normalised log-likelihood of each choice |
| `reference`       | `answer` (a text)                 | loss on the reference answer, in nats a token   |
| `generation`      | `check` (rules of `checks.py`)    | whether what the model writes keeps the rules   |
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ift.errors import IftError, nearest
from ift.tasks import checks

FOLDER = Path(__file__).with_name("probes")
KINDS = ("multiple_choice", "reference", "generation")

_HEAD = ("name", "kind", "description", "license", "language")
_ITEM = {
    "multiple_choice": ("id", "prompt", "choices", "answer"),
    "reference": ("id", "prompt", "answer"),
    "generation": ("id", "prompt", "check"),
}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class ProbeItem:
    """One question. Multiple choice sets `choices` and `answer`, the others `reference` or `check`."""

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    answer: int | None = None
    reference: str | None = None
    check: dict[str, Any] | None = None


@dataclass(frozen=True)
class Probe:
    """One file of questions of one kind. `max_new_tokens` is set for generation only."""

    name: str
    kind: str
    description: str
    license: str
    language: str
    max_new_tokens: int | None
    items: tuple[ProbeItem, ...]


def asked(names: Literal["default", "none"] | Sequence[str]) -> list[Probe]:
    """What a spec's `evaluate.probes` names: the default ones, none, or some by name."""
    return [] if names == "none" else load_probes(None if names == "default" else names)


def load_probes(names: Sequence[str] | None = None, folder: Path | None = None) -> list[Probe]:
    """The named probes, or all of them, in alphabetical order."""
    folder = FOLDER if folder is None else Path(folder)
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if not files:
        raise IftError(f"no probes in {folder}", wanted="a folder with one YAML file a probe")
    for name in names or ():
        if name not in files:
            raise IftError(
                f"unknown probe `{name}`",
                wanted=f"one of {', '.join(files)}",
                hint=nearest(name, files),
            )
    return [_read(file) for name, file in files.items() if names is None or name in names]


def _read(file: Path) -> Probe:
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IftError(f"not readable as YAML: {error}", where=str(file)) from None
    where = file.name
    data = _mapping(loaded, where, "a probe")
    generates = data.get("kind") == "generation"
    _keys(data, (*_HEAD, *(("max_new_tokens",) if generates else ()), "items"), where)
    head = {key: _text(data, key, where) for key in _HEAD}
    if head["name"] != file.stem:
        raise IftError(
            f"`name` is `{head['name']}`", wanted=f"the name of the file, `{file.stem}`", where=where
        )
    if head["kind"] not in KINDS:
        hint = nearest(head["kind"], KINDS)
        raise IftError(
            f"`kind` is `{head['kind']}`", wanted=f"one of {', '.join(KINDS)}", hint=hint, where=where
        )
    budget = data.get("max_new_tokens")
    if generates and (type(budget) is not int or budget < 1):
        raise IftError(f"`max_new_tokens` is {budget!r}", wanted="a whole number of 1 or more", where=where)
    rows = data["items"]
    if not isinstance(rows, list) or not rows:
        raise IftError(f"`items` is {rows!r}", wanted="a list of one or more items", where=where)
    items = tuple(_item(row, head["kind"], f"{file.name}, item {place}") for place, row in enumerate(rows, 1))
    for noun, values in (("id", [item.id for item in items]), ("prompt", [item.prompt for item in items])):
        if twice := next((value for place, value in enumerate(values) if value in values[:place]), None):
            raise IftError(
                f"{noun} `{twice}` occurs twice", wanted=f"a different {noun} for each item", where=where
            )
    return Probe(**head, max_new_tokens=budget, items=items)


def _item(row: Any, kind: str, where: str) -> ProbeItem:
    row = _mapping(row, where, "an item")
    if isinstance(row.get("id"), str):
        where = f"{where} ({row['id']})"
    _keys(row, _ITEM[kind], where)
    name, prompt = _text(row, "id", where), _text(row, "prompt", where)
    if kind == "reference":
        return ProbeItem(name, prompt, reference=_text(row, "answer", where))
    if kind == "generation":
        try:
            checks.validate(row["check"])
        except IftError as error:
            raise IftError(error.what, wanted=error.wanted, hint=error.hint, where=where) from None
        return ProbeItem(name, prompt, check=dict(row["check"]))
    choices, answer = row["choices"], row["answer"]
    texts = isinstance(choices, list) and all(
        isinstance(choice, str) and choice.strip() for choice in choices
    )
    if not texts or len(choices) < 2 or len(set(choices)) < len(choices):
        wanted = "a list of two or more different texts (numbers in quotes)"
        raise IftError(f"`choices` is {choices!r}", wanted=wanted, where=where)
    if type(answer) is not int or not 0 <= answer < len(choices):
        wanted = f"the index of the right choice, 0 to {len(choices) - 1}"
        raise IftError(f"`answer` is {answer!r}", wanted=wanted, where=where)
    return ProbeItem(name, prompt, choices=tuple(choices), answer=answer)


def _mapping(value: Any, where: str, noun: str) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    raise IftError(f"{noun} is {value!r}", wanted="a mapping of keys to values", where=where)


def _keys(data: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    known = tuple(known)
    for key in data:
        if key not in known:
            raise IftError(
                f"unknown key `{key}`",
                wanted=f"one of {', '.join(known)}",
                hint=nearest(key, known),
                where=where,
            )
    if missing := [key for key in known if key not in data]:
        raise IftError(f"no `{missing[0]}`", wanted=f"the keys {', '.join(known)}", where=where)


def _text(data: Mapping[Any, Any], key: str, where: str) -> str:
    value = data[key]
    if isinstance(value, str) and value.strip():
        return value
    raise IftError(f"`{key}` is {value!r}", wanted="a text that is not empty", where=where)
