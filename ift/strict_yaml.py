"""YAML that names the line of a mistake.

In:  a YAML file and a pydantic model that says what it may contain.
Out: an instance of that model, or an `IftError` with file, line, what came and what was wanted.

    load(Path("jobs/x.yaml"), Spec)
    # jobs/x.yaml:14: unknown key `train.epoch`
    #   wanted: one of epochs, global_batch, ...
    #   next:   did you mean `epochs`?
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ift.errors import IftError, nearest


class Strict(BaseModel):
    """A section of a YAML file: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)
Lines = dict[tuple[str | int, ...], int]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C where there is C
    """The safe loader, with three of YAML 1.1's traps taken out.

    Repeated keys are errors, keys are what is written (`on` is not true), and `1e-5` is a number.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    "a key is a mapping or a list; text with braces needs quotes",
                    key_node.start_mark,
                )
            if key_node.tag != "tag:yaml.org,2002:merge":
                key_node.tag = "tag:yaml.org,2002:str"
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key_node.value}` stands here twice", key_node.start_mark
                )
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)

# What mostly lies behind a complaint of the parser.
_MOVES = {
    "cannot start any token": "a tab is no indentation in YAML: use spaces; a text with @ or ` first needs quotes",
    "mapping values are not allowed": "a text with a colon and a space in it needs quotes",
}

OVERRIDDEN = -1  # the "line" of a value that came from the command line


def front_matter(path: Path) -> dict[str, Any]:
    """What stands between the dashes at the beginning of a Markdown file; nothing where it is no mapping in YAML: such
    files are for people, and often broken."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        found = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def parse_value(text: str) -> Any:
    """The value in `key=value` of the command line, by YAML's rules: `3` is a number, `[a, b]` a list."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def tuples(value: Any) -> Any:
    """`value` with its lists as tuples, which is what a validator that runs before pydantic's own has to return."""
    if isinstance(value, Mapping):
        return {key: tuples(child) for key, child in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in `path`, and the line on which each key path stands.

    Raises `IftError` where the file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        hint = f"there is {', '.join(near[:5])}" if near else f"the folder {path.parent} has no YAML file"
        raise IftError(f"no file {path}", wanted="a YAML file", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise IftError(f"cannot read {path}: {error}", wanted="a YAML file in UTF-8") from None
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        move = next((move for part, move in _MOVES.items() if part in str(error.problem)), None)
        raise IftError(
            f"not valid YAML: {error.problem}", where=where, wanted="a YAML mapping", hint=move
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # control characters, 2024-99-99, [[[[…
        detail = str(error).splitlines()[0] if str(error) else "nested too deep"
        raise IftError(f"not valid YAML: {detail}", where=str(path), wanted="a YAML mapping") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(value, dict):
        raise IftError(
            f"holds a {type(value).__name__}", where=f"{path}:1", wanted="a mapping of keys to values"
        )
    lines: Lines = {}
    _note_lines(node, (), lines)
    return value, lines


def _note_lines(node: Any, path: tuple[str | int, ...], lines: Lines) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _note_lines(child, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            lines[(*path, i)] = child.start_mark.line + 1
            _note_lines(child, (*path, i), lines)


def load(path: Path, model: type[Model]) -> Model:
    """Read and validate `path` in one step."""
    value, lines = read(path)
    return validate(value, model, file=str(path), lines=lines)


def validate(value: Mapping[str, Any], model: type[Model], *, file: str, lines: Lines | None = None) -> Model:
    """`value` as a `model`; every mistake in it, in one `IftError`, the first one leading."""
    try:
        # by way of JSON, pydantic's strict mode takes a list for a tuple, but neither `true` nor "2" for a number
        return model.model_validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        problems = [_explain(e, model, file, lines or {}) for e in _without_noise(error.errors())]
    first, *others = problems
    if others:
        first = IftError(
            "\n".join([str(first), *map(str, others)]), hint=f"{len(problems)} mistakes to mend, listed above"
        )
    raise first from None


def _without_noise(errors: Sequence[Any]) -> list[Any]:
    """One complaint a place is enough, though a union reports each of its members' ones.

    A list is not also too short because its items are faulty.
    """
    kept: dict[tuple[str | int, ...], Any] = {}
    for error in errors:
        kept.setdefault(_place(error), error)
    within = {place[:depth] for place in kept for depth in range(len(place))}
    return [error for place, error in kept.items() if error["type"] != "too_short" or place not in within]


def _place(error: Any) -> tuple[str | int, ...]:
    """The location of a pydantic error without the names of union members, which no YAML file has."""
    loc: tuple[str | int, ...] = error["loc"]
    # the last part of an unknown key's location is that key, whatever its name
    unknown = len(loc) - 1 if error["type"] == "extra_forbidden" else -1
    return tuple(
        part
        for i, part in enumerate(loc)
        if isinstance(part, int)
        or i == unknown
        or not (
            part.startswith(("function-", "literal[", "constrained-", "list[", "tuple[", "is-"))
            or part in _TYPE_NAMES
        )
    )


_TYPE_NAMES = {"str", "int", "float", "bool", "dict", "TaskRef", "Split"}


def _explain(error: Any, model: type[BaseModel], file: str, lines: Lines) -> IftError:
    place = _place(error)
    dotted = ".".join(str(part) for part in place) or "the file"
    line = _line(place, lines)
    where = "command line" if line == OVERRIDDEN else f"{file}:{line}" if line else file
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, place[:-1])
        return IftError(
            f"unknown key `{dotted}`",
            wanted=f"one of {', '.join(known)}",
            hint=nearest(str(place[-1]), known),
            where=where,
        )
    description = _description_at(model, place)
    if error["type"] == "missing":
        return IftError(f"`{dotted}` is missing", wanted=description or "a value", where=where)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return IftError(f"`{dotted}`: {message}" if place else message, wanted=description, where=where)
    hint = None
    if isinstance(error["input"], bool) and error["type"] == "string_type":
        hint = "YAML takes yes, no, on, off, true and false for true and false: put them in quotes"
    return IftError(
        f"`{dotted}` is {error['input']!r}", wanted=description or message, hint=hint, where=where
    )


def _line(place: tuple[str | int, ...], lines: Lines) -> int | None:
    while place:
        if place in lines:
            return lines[place]
        place = place[:-1]
    return None


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in get_args(annotation) for m in _models_of(arg)]


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model` under the names that a file gives them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _holds_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(_holds_mapping, get_args(annotation)))


def _walk(model: type[BaseModel], place: Sequence[str | int]) -> tuple[list[type[BaseModel]], str | None]:
    """The models that may stand at `place`, and the description of the field that leads there."""
    models, description = [model], None
    below_mapping = False
    for part in place:
        if isinstance(part, int):
            continue
        if below_mapping:  # a key that the user named: what stands there is described by the mapping's field
            below_mapping = False
            continue
        fields = [_fields(m)[part] for m in models if part in _fields(m)]
        if not fields:
            return [], None
        description = fields[0].description
        models = _models_of(fields[0].annotation)
        below_mapping = bool(models) and _holds_mapping(fields[0].annotation)
    return models, description


def _keys_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    return [name for m in _walk(model, place)[0] for name in _fields(m)]


def _description_at(model: type[BaseModel], place: Sequence[str | int]) -> str | None:
    return _walk(model, place)[1]
