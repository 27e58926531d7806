"""Tasks: a data source, how its columns become fields, its templates and its metric; one YAML file each.

In:  a name of the library (`ift/tasks/library/`), of a user's folder, or the path of a YAML file.
Out: a frozen `Task`; and from its rows, `Example`s with a stable id.

    task = load("rotten_tomatoes")
    task.example({"text": "Fun.", "label": "1"}).fields    # {"text": "Fun.", "label": "positive"}

docs/tasks.md is the guide to the file.
"""

import glob
import hashlib
import importlib.util
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from ift import strict_yaml
from ift.errors import IftError, nearest
from ift.prompts import sandbox
from ift.prompts.options import Style
from ift.prompts.template import INVERTED_WEIGHT, PLACE, Form, Template
from ift.strict_yaml import Strict
from ift.tasks import fields as fields_
from ift.tasks.fields import FieldSpec
from ift.tasks.metrics import METRICS

LIBRARY = Path(__file__).parent / "library"
SPLITS = ("train", "validation", "test")

Kind = Literal["classification", "multiple_choice", "generation", "labelling", "chat", "text"]
# Kinds without templates, and the field that holds all of an example.
RAW = {"chat": "messages", "text": "text"}


class Skip(Exception):
    """A row that the task's hook leaves out."""


class Hub(Strict):
    """A data set of the Hugging Face hub."""

    id: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="a data set's id, such as CogComp/trec")
    config: str | None = Field(None, description="the name of one of its configurations")
    revision: str | None = Field(
        None, description="a branch, a tag or a commit; refs/convert/parquet for sets with a loading script"
    )
    streaming: bool = Field(
        False, description="true or false: reads the first `limit` rows of a split, not all of it"
    )


class Mlflow(Strict):
    """Rows that are in MLflow: a registered data set, one that a run logged, or files among a run's artefacts."""

    dataset: str | None = Field(
        None, min_length=1, description="a data set's name or id; with `run`, its name or digest there"
    )
    run: str | None = Field(None, pattern=r"^[\w-]+$", description="a run's id")
    artifact: str | None = Field(
        None, min_length=1, description="with `run`: a path among its artefacts, such as data/rows.jsonl"
    )
    uri: str | None = Field(None, description="where MLflow is; left out, MLFLOW_TRACKING_URI says so")

    @model_validator(mode="after")
    def _one_thing(self) -> "Mlflow":
        if (self.dataset is None) == (self.artifact is None):
            raise ValueError("rows come from a `dataset` or from an `artifact`, one of them")
        if self.artifact is not None and self.run is None:
            raise ValueError("`artifact` goes with `run`, the id of the run that has it")
        return self


class Source(Strict):
    """Where the rows are: a hub data set, package members, something in MLflow, or files."""

    hub: Hub | None = Field(None, description="a mapping: id, config, revision, streaming")
    mlflow: Mlflow | None = Field(None, description="a mapping: dataset, run, artifact, uri")
    package: str | None = Field(None, description="NAME==VERSION/PATH/IN/THE/PACKAGE.csv")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits: the archive's SHA-256"
    )
    files: str | dict[Literal["train", "validation", "test"], str] | None = Field(
        None, description="a path relative to the task file, or a mapping of train, validation, test to paths"
    )
    splits: dict[Literal["train", "validation", "test"], str] | None = Field(
        None, description="a mapping of train, validation, test to the hub's names of its splits"
    )
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="a list of names for the columns of a table without a header"
    )
    where: dict[str, str] = Field(
        default={}, description="a mapping of columns to the value that a row must have there"
    )
    limit: int | None = Field(
        None, ge=1, description="a whole number of 1 or more: rows of each split, at most"
    )

    @field_validator("files", "splits", mode="before")
    @classmethod
    def _known_splits(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in SPLITS:
                near = nearest(name, SPLITS)
                mean = f"; {near}" if near else ""
                raise ValueError(f"there is no split `{name}`{mean}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "Source":
        if [self.hub, self.mlflow, self.package, self.files].count(None) != 3:
            raise ValueError("rows come from `hub`, `package`, `mlflow` or `files`, one of them")
        if self.hub and self.hub.streaming and self.limit is None:
            raise ValueError("`streaming` needs a `limit`: how many rows of each split are read")
        if self.splits is not None and self.hub is None:
            raise ValueError("`splits` goes with `hub`; `files` takes a mapping of splits itself")
        if self.sha256 is not None and self.package is None:
            raise ValueError("`sha256` goes with `package`")
        return self


class Choices(Strict):
    """Among what an answer is chosen: one closed set, or a list that each row brings."""

    field: str = Field(description="the field that holds the answer")
    names: tuple[str, ...] = Field(
        (), description="a list of two or more answers; an integer 0 means the first"
    )
    from_: str | None = Field(
        None, alias="from", description="the field that holds each row's list of answers"
    )
    shuffle: bool = Field(
        True, description="true or false: whether the options may be shown in another order"
    )

    @model_validator(mode="after")
    def _closed_or_brought(self) -> "Choices":
        if bool(self.names) == bool(self.from_):
            raise ValueError("choices are `names`, the same for all rows, or `from` a field, one of both")
        if self.names and len(self.names) < 2:
            raise ValueError(
                f"one choice, {self.names[0]!r}, leaves nothing to choose; two or more are needed"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError("two choices have the same name")
        return self


class TemplateSpec(Strict):
    """One wording."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="letters, digits, dashes and underscores")
    prompt: str = Field(min_length=1, description="a Jinja text")
    completion: str = Field(min_length=1, description="a Jinja text")
    form: Form = Field("direct", description="direct, inverted or rationale")
    weight: float | None = Field(None, gt=0, description="a number above 0: how often it is drawn")
    answers: tuple[str, ...] | str = Field(
        (),
        description="a list of words for the choices, in their order; or a Jinja text with ||| between them",
    )
    style: Style | None = Field(None, description="list, lettered or inline: the only style of its options")

    @field_validator("prompt", "completion", "answers")
    @classmethod
    def _jinja(cls, text: Any) -> Any:
        if isinstance(text, str) and (problem := sandbox.syntax_error(text)):
            raise ValueError(problem)
        return text

    @field_validator("prompt", "completion")
    @classmethod
    def _some_text(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("a template needs some text here")
        return text


_AT_RANDOM = re.compile(r"\b(choice|random)\b")  # the filter and the function of the sandbox that draw


@dataclass(frozen=True)
class Example:
    """One source row under a task's field names; `label` is its answer among the task's `names`, if it has some."""

    id: str
    fields: dict[str, Any]
    label: str | None
    group: str | None = None  # what its row has in the column `group`


class Task(Strict):
    """A task as its file describes it."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="small letters, digits and underscores")
    kind: Kind = Field(description="classification, multiple_choice, generation, labelling, chat or text")
    description: str = Field("", description="one sentence")
    cluster: str = Field("miscellaneous", description="the family of tasks it belongs to, such as sentiment")
    license: str = Field(
        "unstated", description="the licence of the data; `unstated` if its authors state none"
    )
    language: str = Field("en", description="a language code such as en")
    shadows: bool = Field(False, description="true or false: stands in for the library task of the same name")
    source: Source = Field(description="a mapping: hub, package, mlflow or files")
    hook: str | None = Field(
        None, pattern=r"^[^:]+\.py:[A-Za-z_]\w*$", description="FILE.py:FUNCTION, beside the task's file"
    )
    group: str | None = Field(
        None,
        description="a column: rows with the same value there, such as a document's, go to the same split",
    )
    fields: dict[str, FieldSpec] | None = Field(
        None, description="a mapping of field names to columns or to transforms of them"
    )
    choices: Choices | None = Field(None, description="a mapping: field, and names or from")
    metric: str | None = Field(None, description=f"one of {', '.join(METRICS)}")
    tests: str | None = Field(
        None,
        description="a template of the Python tests that an answer has to pass: pass@1 in the place of `metric` where "
        "`evaluate.allow_code` lets programs run",
    )
    random_baseline: float | None = Field(
        None, ge=0, lt=1, description="a number from 0 up to 1: the score of a guess"
    )
    system: str = Field("", description="a text that precedes every instruction as a system message")
    max_new_tokens: int = Field(
        64, ge=1, description="a whole number of 1 or more: the longest answer generated"
    )
    templates: tuple[TemplateSpec, ...] = Field((), description="a list of {id, prompt, completion}")

    _folder: Path = PrivateAttr(default=LIBRARY)
    _path: Path | None = PrivateAttr(default=None)
    _unread: tuple[str, ...] = PrivateAttr(default=())  # columns that must be empty, for no field reads them

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in METRICS:
            near = nearest(metric, METRICS)
            mean = f"; {near}" if near else ""
            raise ValueError(f"no metric `{metric}`{mean}")
        return metric

    @field_validator("tests")
    @classmethod
    def _of_programs(cls, tests: str | None, info: ValidationInfo) -> str | None:
        kind, fields = info.data.get("kind", "generation"), info.data.get("fields") or {}
        if tests is None:
            return None
        if kind != "generation":
            raise ValueError(
                f"a {kind} has none; they go with kind generation, whose answers may be programs"
            )
        if fault := sandbox.syntax_error(tests):
            raise ValueError(fault)
        if fields and (unknown := sorted(sandbox.names_in(tests) - set(fields))):
            near = nearest(unknown[0], fields)
            mean = f"; {near}" if near else ""
            raise ValueError(f"there is no field `{unknown[0]}`; the task has {', '.join(fields)}{mean}")
        return tests

    @field_validator("templates")
    @classmethod
    def _unique_ids(cls, templates: tuple[TemplateSpec, ...]) -> tuple[TemplateSpec, ...]:
        ids = [t.id for t in templates]
        if twice := [id_ for place, id_ in enumerate(ids) if id_ in ids[:place]]:
            raise ValueError(f"the id `{twice[0]}` stands here twice")
        return templates

    @field_validator("choices")
    @classmethod
    def _of_known_fields(cls, choices: Choices | None, info: ValidationInfo) -> Choices | None:
        fields: dict[str, FieldSpec] = info.data.get("fields") or {}
        for name in filter(None, [choices.field, choices.from_] if choices and fields else []):
            if name not in fields:
                near = nearest(name, fields)
                mean = f"; {near}" if near else ""
                raise ValueError(f"there is no field `{name}`; the task has {', '.join(fields)}{mean}")
        return choices

    @field_validator("fields", mode="before")
    @classmethod
    def _texts_are_columns(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if PLACE in value:
                raise ValueError(
                    f"a field may not be called `{PLACE}`: that is where a prompt shows the options"
                )
            specs = {
                name: {"column": spec} if isinstance(spec, str) else spec for name, spec in value.items()
            }
            return strict_yaml.tuples(specs)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        chooses = self.kind in ("classification", "multiple_choice")
        if chooses != (self.choices is not None):
            raise ValueError(f"a {self.kind} has {'`choices`' if chooses else 'no `choices`'}")
        if self.choices and bool(self.choices.names) != (self.kind == "classification"):
            raise ValueError(
                "classification has choices with `names`, multiple_choice has choices `from` a field"
            )
        if self.kind in RAW:
            self._raw()
            return self
        if not self.templates:
            raise ValueError(f"a {self.kind} needs `templates`: a list of {{id, prompt, completion}}")
        if self.metric is None:
            raise ValueError(f"a {self.kind} needs a `metric`: one of {', '.join(METRICS)}")
        if (self.metric == "accuracy") != chooses:
            raise ValueError(
                "accuracy is the metric of classification and multiple_choice, and of these alone"
            )
        if not self.evaluation_wordings:
            raise ValueError("every template trains only; one `form: direct` is needed to evaluate the task")
        return self

    def _raw(self) -> None:
        if self.templates or self.metric:
            raise ValueError(
                f"kind {self.kind} has neither templates nor a metric: its rows are used as they are"
            )
        if self.fields is not None and set(self.fields) != {RAW[self.kind]}:
            raise ValueError(f"kind {self.kind} has one field, `{RAW[self.kind]}`")

    def fault_of(self, template: TemplateSpec) -> str | None:
        """What is wrong with one of the templates beside the rest of the task; None where nothing is."""
        prompt, completion = sandbox.names_in(template.prompt), sandbox.names_in(template.completion)
        choices, answers = self.choices, template.answers
        if not choices:
            if answers and not isinstance(answers, str):
                return "it has a list of `answers`, but the task has no `choices`"
            if PLACE in prompt and not answers:
                return f"it shows `{PLACE}`, but the task has no `choices`"
        elif answers:
            if isinstance(answers, str) or not choices.names:
                return "`answers` is a list that goes with the `names` of a classification"
            if len(answers) != len(choices.names):
                return f"it has {len(answers)} `answers` for {len(choices.names)} choices"
            if len(set(answers)) < len(answers):
                return "two of its `answers` are the same"
        if choices and template.form != "inverted":
            other = "if it predicts something else, mark it `form: inverted`"
            if choices.field in prompt:
                return f"the prompt gives away `{choices.field}`, the answer; {other}"
            if choices.field not in completion:
                return f"the completion does not say `{{{{ {choices.field} }}}}`, the answer; {other}"
        if template.style == "lettered" and not self._template(template).answers_alone:
            return "`style: lettered` is for letters: the completion has to be the answer alone"
        known = {*(self.fields or prompt | completion), PLACE, "answer_choices"}
        if unknown := sorted((prompt | completion) - known):
            near = nearest(unknown[0], self.fields or ())
            mean = f"; {near}" if near else ""
            return f"it names a field `{unknown[0]}`; the task has {', '.join(self.fields or ())}{mean}"
        return None

    @cached_property
    def wordings(self) -> tuple[Template, ...]:
        """The templates, ready to word examples."""
        return tuple(map(self._template, self.templates))

    def _template(self, spec: TemplateSpec) -> Template:
        choices = self.choices
        return Template(
            spec.id,
            spec.prompt,
            spec.completion,
            form=spec.form,
            weight=spec.weight or (INVERTED_WEIGHT if spec.form == "inverted" else 1.0),
            system=self.system,
            answers=spec.answers,
            style=spec.style,
            answer=choices.field if choices else None,
            names=choices.names if choices else (),
            options_from=choices.from_ if choices else None,
            shuffle=choices.shuffle if choices else True,
        )

    @cached_property
    def evaluation_wordings(self) -> tuple[Template, ...]:
        """The templates that may ask for the answer in a test: direct ones, with a rationale where it is open."""
        forms = ("direct",) if self.choices else ("direct", "rationale")
        return tuple(template for template in self.wordings if template.form in forms)

    def only(self, ids: Sequence[str]) -> "Task":
        """This task with the templates `ids` alone. Raises `IftError` for one that it does not have."""
        known = [template.id for template in self.templates]
        for id_ in ids:
            if id_ not in known:
                raise IftError(
                    f"the task `{self.name}` has no template `{id_}`",
                    wanted=f"one of {', '.join(known)}" if known else "no `templates`: it has none",
                    hint=nearest(id_, known),
                )
        kept = self.model_copy(update={"templates": tuple(t for t in self.templates if t.id in ids)})
        for derived in (
            "wordings",
            "evaluation_wordings",
            "asked",
            "_named",
            "_needed",
        ):  # a copy brings what was computed before
            kept.__dict__.pop(derived, None)
        if not kept.evaluation_wordings:
            raise IftError(
                f"`templates` of the task `{self.name}` train only",
                wanted="a template of `form: direct` among them",
            )
        return kept

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """The fields that say what the model is asked: those that prompts name, but for the answer."""
        if self.kind in RAW:
            return (RAW[self.kind],)
        answer = self.choices.field if self.choices else None
        brought = [self.choices.from_] if self.choices and self.choices.from_ else []
        named = {name for t in self.evaluation_wordings for name in sandbox.names_in(t.prompt)}
        return tuple(sorted(({*named, *brought} - {answer, PLACE, "answer_choices"}) or self._named))

    @property
    def varies(self) -> bool:
        """Whether an example may read otherwise in another pass: it has several wordings, options or a choice."""
        if self.kind in RAW:
            return False
        return len(self.wordings) > 1 or any(
            t.answer or t.answers or _AT_RANDOM.search(t.prompt + t.completion) for t in self.wordings
        )

    @property
    def identity(self) -> list[Any]:
        """What an example and its words are a function of, beside the rows: the file's content and its hook."""
        hook = self.path_of(self.hook.partition(":")[0]) if self.hook else None
        code = hook.read_text(encoding="utf-8") if hook and hook.is_file() else None
        return [self.model_dump(mode="json"), code, self._unread]

    @property
    def baseline(self) -> float:
        """The score of a guess, from 0 to 1."""
        if self.random_baseline is not None:
            return self.random_baseline
        return 1 / len(self.choices.names) if self.choices and self.choices.names else 0.0

    @property
    def folder(self) -> Path:
        """The folder of the task's file, where its relative paths start."""
        return self._folder

    def shares_rows(self, other: "Task") -> bool:
        """Whether both read the same rows: a source in common, and no column in which they want different values."""
        one, two = self.source.where, other.source.where
        apart = any(one[column] != two[column] for column in one.keys() & two.keys())
        return not apart and bool(self._origins & other._origins)

    @cached_property
    def _origins(self) -> set[str]:
        source = self.source
        if source.hub:
            return {f"hub:{source.hub.id.lower()}/{source.hub.config or 'default'}"}
        if source.package:
            return {f"package:{source.package}"}
        if source.mlflow:
            return {f"mlflow:{source.mlflow.model_dump_json()}"}
        named = [source.files] if isinstance(source.files, str) else list((source.files or {}).values())
        found: set[str] = set()
        for name in named:
            path = str(self.path_of(name))
            there = [] if name.startswith("s3://") else glob.glob(path, recursive=True)
            found |= {str(Path(p).resolve()) for p in there} or {name if name.startswith("s3://") else path}
        return found

    @property
    def path(self) -> Path:
        """The task's file; for data without a task file, the data."""
        return self._path or self._folder / f"{self.name}.yaml"

    def path_of(self, relative: str) -> Path:
        """A data file's path; relative ones start at the task file's folder."""
        path = Path(relative).expanduser()
        return path if path.is_absolute() else self._folder / path

    def example(self, row: Mapping[str, Any]) -> Example:
        """`row` under the task's field names.

        Raises `ValueError` with the reason where the row is bad, `Skip` where the hook leaves it out.
        """
        for column in self._unread:
            if row.get(column) and not _absent(row[column]):
                raise ValueError(
                    f"`{column}` says something, and no field reads it; a task file can map it, or leave it out"
                )
        given = row
        if self._hook is not None:
            row = self._hook(row)
        values = self._mapped(row)
        if self.kind == "chat":
            values["messages"] = fields_.turns(values["messages"], "messages")
        label = None
        if self.choices:
            label = self._choose(values, self.choices)
        unknown = [name for name in values if self.fields is None and name not in self._named]
        values = _plain(values)
        identity = {name: value for name, value in values.items() if name not in unknown}
        return Example(_digest(self.name, identity), values, label, self._group_of(row, given))

    def _group_of(self, row: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
        """What the column `group` holds in a row; in the file's own (`given`) where the hook's has no such column."""
        if self.group is None:
            return None
        value = fields_.get(row, self.group, missing=fields_.get(given, self.group, missing=None))
        return None if _absent(value) else fields_.as_text(value)

    def _mapped(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.fields is not None:
            return {name: spec.value(row) for name, spec in self.fields.items()}
        needed = self._needed
        if lacking := sorted(name for name in needed if name not in row):
            raise ValueError(f"no column `{lacking[0]}`; the row has {', '.join(map(str, row))}")
        # a column that no template names may be empty; it is not part of the example then
        return {
            str(name): fields_.present(value, str(name))
            for name, value in row.items()
            if name in needed or not _absent(value)
        }

    @cached_property
    def _named(self) -> frozenset[str]:
        """The columns that templates or choices name; without `fields` these make an example what it is."""
        if self.kind in RAW:
            return frozenset([RAW[self.kind]])
        chosen = filter(None, [self.choices.field, self.choices.from_] if self.choices else [])
        return frozenset(chosen).union(*(template.fields for template in self.wordings))

    @cached_property
    def _needed(self) -> frozenset[str]:
        """Of these, the columns that must be there: a template that asks whether one is there can do without it."""
        asking = [t for t in self.wordings if "is defined" in t.prompt + t.completion]
        sure = frozenset().union(*(t.fields for t in self.wordings if t not in asking))
        return self._named - (frozenset().union(*(t.fields for t in asking)) - sure)

    def _choose(self, values: dict[str, Any], choices: Choices) -> str | None:
        raw = values.get(choices.field)
        if choices.names:
            values[choices.field] = fields_.name_of(raw, choices.names, choices.field)
            return str(values[choices.field])
        brought = values.get(str(choices.from_))
        if not isinstance(brought, Sequence) or isinstance(brought, str):
            raise ValueError(f"`{choices.from_}` is a {type(brought).__name__}, not a list of options")
        options = [fields_.as_text(option).strip() for option in brought]
        if len(options) < 2:
            raise ValueError(f"`{choices.from_}` has {len(options)} options; two or more are needed")
        if len(set(options)) < len(options) or "" in options:
            raise ValueError(f"`{choices.from_}` has two options that are the same, or an empty one")
        # tables with gaps in a column hold its whole numbers as 1.0
        whole = raw.is_integer() if isinstance(raw, float) else isinstance(raw, int)
        is_place = whole and not isinstance(raw, bool) and all(isinstance(o, str) for o in brought)
        place = _place_of(raw, options, choices.field, is_place)
        values[str(choices.from_)] = options
        values[choices.field] = options[place]
        return None

    @cached_property
    def _hook(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
        if not self.hook:
            return None
        name, _, function = self.hook.rpartition(":")
        path = self.path_of(name)
        where = str(self.path)
        spec = importlib.util.spec_from_file_location(f"ift_hook_{self.name}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise IftError(
                f"no file {path} for the hook", wanted="a Python file beside the task", where=where
            )
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001  (the user's code)
            line = getattr(error, "lineno", None)
            raise IftError(
                f"the hook {self.hook} does not load: {type(error).__name__}: {getattr(error, 'msg', error)}",
                wanted="a Python file that can be imported",
                where=f"{path}:{line}" if line else str(path),
            ) from None
        call = getattr(module, function, None)
        if not callable(call):
            raise IftError(f"{path} has no function `{function}`", wanted="def row(row): …", where=where)

        def hook(row: Mapping[str, Any]) -> Mapping[str, Any]:
            try:
                result = call(row)
            except Exception as error:  # noqa: BLE001  (the user's code: whatever it raises is the row's reason)
                raise ValueError(f"the hook {self.hook}: {type(error).__name__}: {error}") from None
            if result is None:
                raise Skip
            if not isinstance(result, Mapping):
                raise ValueError(
                    f"the hook {self.hook} returned a {type(result).__name__}, not a mapping or None"
                )
            plain: dict[str, Any] = _plain(result)
            return plain

        return hook


def _plain(value: Any) -> Any:
    """`value` in what JSON has; what a hook returns beyond that (dates, decimals) as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(child) for child in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _absent(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _place_of(raw: Any, options: Sequence[str], field: str, is_place: bool) -> int:
    """The right option's place: `raw` is its text, its place from 0, or its letter.

    A number beside options that are texts is a place (`is_place`), whatever numbers those texts may be.
    """
    value = fields_.as_text(raw).strip()
    if value in options and not is_place:
        return options.index(value)
    if value.isdecimal() and int(value) < len(options):
        return int(value)
    if len(value) == 1 and value in string.ascii_uppercase[: len(options)]:
        return string.ascii_uppercase.index(value)
    raise ValueError(
        f"`{field}` is {value!r}: none of the {len(options)} options, nor a place or letter of one"
    )


def _digest(task: str, fields: Mapping[str, Any]) -> str:
    """A stable id: equal content gives equal ids, on any machine and in any order of rows."""
    text = json.dumps([task, sorted(fields.items())], ensure_ascii=False, default=str, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def load(name: str | None = None, file: str | None = None, folders: Sequence[str | Path] = ()) -> Task:
    """A task by `name`, of the user's `folders` or the library, or a user's own by `file`.

    Raises `IftError` naming the nearest task, the line of a mistake in the file, or a name that shadows the
    library's without saying so.
    """
    if file:
        return _read(Path(file))
    known = available(folders)
    path = known.get(str(name))
    if path is None:
        few = (
            ", ".join(sorted(known)) if len(known) <= 12 else f"the {len(known)} that `ift tasks list` shows"
        )
        raise IftError(
            f"no task `{name}` in the library"
            + (f" or in {', '.join(map(str, folders))}" if folders else ""),
            wanted=f"one of {few}, or the path of a task file, in a spec as {{file: my_task.yaml}}",
            hint=nearest(str(name), known),
        )
    task = _read(path)
    if task.name != path.stem:
        raise IftError(f"`name` is `{task.name}`", wanted=f"`{path.stem}`, as the file", where=str(path))
    if path.parent != LIBRARY and (LIBRARY / path.name).is_file() and not task.shadows:
        raise IftError(
            f"the task `{name}` has the name of a library task",
            wanted="`shadows: true` in the file, if it is meant to stand in for it",
            hint="or give it another name",
            where=str(path),
        )
    return task


def _read(path: Path) -> Task:
    value, lines = strict_yaml.read(path)
    task = strict_yaml.validate(value, Task, file=str(path), lines=lines)
    for number, template in enumerate(task.templates):
        if fault := task.fault_of(template):
            where = f"{path}:{lines.get(('templates', number), 1)}"
            raise IftError(f"template `{template.id}`: {fault}", where=where)
    task._folder, task._path = path.resolve().parent, path
    return task


def of_values(
    name: str, values: Mapping[str, Any], folder: Path, *, where: str, told: Sequence[str] = ()
) -> Task:
    """A task out of plain values instead of a file of its own; relative paths start at `folder`.

    A row that has something in a column of `told` which no field reads is bad.
    """
    task = strict_yaml.validate({"name": name, **values}, Task, file=where)
    task._folder, task._path = folder, Path(where)
    read = {column for field in (task.fields or {}).values() for column in field.columns}
    task._unread = tuple(column for column in told if column not in read)
    return task


def available(folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """The files of every task that has a name, in alphabetical order; the user's stand before the library's.

    Raises `IftError` for a folder that is not there, or a task that two of them hold.
    """
    found: dict[str, Path] = {path.stem: path for path in LIBRARY.glob("*.yaml")}
    own: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise IftError(f"no folder {folder} (task_folders)", wanted="a folder with a YAML file a task")
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in own:
                raise IftError(
                    f"the task `{path.stem}` stands in {own[path.stem].parent} and in {folder}",
                    wanted="one of both",
                )
            own[path.stem] = path
    return dict(sorted({**found, **own}.items()))


def library(folders: Iterable[str | Path] = ()) -> list[str]:
    """The names of the library's tasks and those of `folders`, in alphabetical order."""
    return list(available(list(folders)))
