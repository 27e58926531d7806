"""From a source row's columns to a task's fields: renames and a few small, declared transforms.

In:  a row as its source gives it, and what a task file says of a field.
Out: the field's value: text, a number, a list or a mapping.

    FieldSpec(column="label", names=("bad", "good")).value({"label": 1})    # "good"

A row that lacks something raises `ValueError` with the reason; the caller sets the row aside.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from ift.errors import nearest
from ift.strict_yaml import Strict
from ift.tasks.strict_json import DECODER

Row = Mapping[str, Any]

# What public data sets call the parties of a dialogue.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
# The columns that hold whole dialogues; in others a list in JSON may be what somebody asks for, or the answer.
_DIALOGUES = ("messages", "conversations", "history")
# What some files write at the end of every completion; the tokenizer's own end-of-turn token takes its place.
_END_MARKERS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>")


class FieldSpec(Strict):
    """One field: a column, or a transform of some columns. The first five keys say where from, the rest how."""

    column: str | None = Field(None, description="a column, or a path into it such as answers.text.0")
    join: tuple[str, ...] | None = Field(
        None, min_length=1, description="a list of columns whose texts are joined"
    )
    list_: tuple[str, ...] | None = Field(
        None, alias="list", min_length=1, description="a list of columns that become a list"
    )
    bio: str | None = Field(
        None, description="a column with a list of tokens; `tags` names that of their tags"
    )
    turns: str | dict[str, Literal["system", "user", "assistant"]] | None = Field(
        None,
        description="a column with the turns of a dialogue, or a mapping of columns, in order, to who says the text in "
        "them: system, user or assistant",
    )

    names: tuple[str, ...] | None = Field(None, description="a list of names; an integer 0 means the first")
    map: dict[str, str | int] | None = Field(None, description="a mapping of values, as text, to others")
    default: str | None = Field(None, description="what stands in for a value that is missing or empty")
    split: str | None = Field(None, min_length=1, description="a text at which the value is cut")
    part: int = Field(0, description="which part, from 0; -1 is the last")
    index_in: str | None = Field(
        None, description="a column with a list; the field is the value's place in it"
    )
    text: bool = Field(False, description="true or false: a list or a mapping is a bad row")
    strip_end: bool = Field(False, description="true or false: cut off an end marker such as </s>")
    with_: str = Field(" ", alias="with", description="what stands between the texts joined")
    tags: str | None = Field(None, description="a column with a list of tags, one a token")
    types: dict[str, str] | None = Field(None, description="a mapping of tag types to words for them")

    @model_validator(mode="after")
    def _one_origin(self) -> "FieldSpec":
        origins = [key for key in ("column", "join", "list", "bio", "turns") if self._given(key)]
        if len(origins) != 1:
            raise ValueError("a field comes from one of `column`, `join`, `list`, `bio`, `turns`")
        allowed = {
            "column": {"names", "map", "default", "split", "part", "index_in", "text", "strip_end"},
            "join": {"with", "default"},
            "list": set(),
            "bio": {"tags", "names", "types"},
            "turns": set(),
        }[origins[0]]
        every = ("names", "map", "default", "split", "index_in", "text", "strip_end", "with", "tags", "types")
        if wrong := [key for key in every if key not in allowed and self._given(key)]:
            raise ValueError(f"`{wrong[0]}` does not go with `{origins[0]}`")
        if self.bio and not self.tags:
            raise ValueError("`bio` needs `tags`, the column with a tag for each token")
        return self

    def _given(self, key: str) -> bool:
        name = {"list": "list_", "with": "with_"}.get(key, key)
        return name in self.model_fields_set and getattr(self, name) not in (None, False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        spoken = (self.turns,) if isinstance(self.turns, str) else self.turns or ()
        one = [self.column, self.bio, self.tags, self.index_in, *spoken]
        return (*(c for c in one if c), *(self.join or ()), *(self.list_ or ()))

    def value(self, row: Row) -> Any:
        """The field's value for `row`. Raises `ValueError` with the reason where there is none."""
        if self.join:
            texts = [text for path in self.join for text in _texts(get(row, path, missing=""))]
            return present(self.with_.join(texts), " + ".join(self.join), self.default)
        if self.list_:
            return [present(get(row, path), path) for path in self.list_]
        if self.bio and self.tags:
            return _entities(self.bio, row, self.tags, self.names, self.types or {})
        if isinstance(self.turns, str):
            return turns(get(row, self.turns), self.turns)
        if self.turns:
            return _spoken(row, self.turns)
        assert self.column
        return self._of_column(self.column, row)

    def _of_column(self, path: str, row: Row) -> Any:
        value = get(row, path) if self.default is None else get(row, path, missing=self.default)
        value = present(value, path, self.default)
        if self.text and isinstance(value, (Sequence, Mapping)) and not isinstance(value, str):
            raise ValueError(f"`{path}` is a {type(value).__name__}, not a text")
        if self.strip_end and isinstance(value, str):
            value = present(_without_end_marker(value), path)
        if self.split is not None and not _is_default(value, self.default):
            parts = str(value).split(self.split)
            if not -len(parts) <= self.part < len(parts):
                raise ValueError(
                    f"`{path}` has {len(parts)} parts around `{self.split}`, not part {self.part}"
                )
            value = present(parts[self.part], path)
        if self.map is not None:
            key = as_text(value)
            if key not in self.map:
                raise ValueError(f"`{path}` is {key!r}; wanted one of {', '.join(self.map)}")
            value = self.map[key]
        if self.names is not None:
            value = name_of(value, self.names, path)
        if self.index_in is not None:
            options = [as_text(option) for option in _list(get(row, self.index_in), self.index_in)]
            if as_text(value) not in options:
                raise ValueError(
                    f"`{path}` is {as_text(value)!r}; `{self.index_in}` has {', '.join(options)}"
                )
            value = options.index(as_text(value))
        return value


_NOTHING = object()
_PLACE = re.compile(r"-?\d+")


def get(row: Row, path: str, missing: Any = _NOTHING) -> Any:
    """The value at `path`: a column of that very name, else keys and list places, -1 the last, between dots."""
    if path in row:
        return row[path]
    here: Any = row
    done: list[str] = []
    for part in path.split("."):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, Sequence) and not isinstance(here, str) and _PLACE.fullmatch(part):
            if not -len(here) <= int(part) < len(here):
                if missing is not _NOTHING:
                    return missing
                raise ValueError(f"`{'.'.join(done)}` has {len(here)} items, no number {part}")
            here = here[int(part)]
        elif missing is not _NOTHING:
            return missing
        elif not done:
            near = nearest(part, map(str, row))
            mean = f"; {near}" if near else ""
            raise ValueError(f"no column `{part}`; the row has {', '.join(map(str, row))}{mean}")
        else:
            of = ", ".join(map(str, here)) if isinstance(here, Mapping) else f"a {type(here).__name__}"
            raise ValueError(f"`{'.'.join(done)}` has no `{part}`: it is {of}")
        done.append(part)
    return here


def present(value: Any, path: str, default: str | None = None) -> Any:
    """`value`, texts without white space around them; `default`, or `ValueError`, where it is null or empty."""
    if isinstance(value, str):
        value = value.replace("\r\n", "\n").strip()
    absent = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    if not absent:
        return value
    if default is not None:
        return default
    raise ValueError(f"`{path}` is {'empty' if value == '' else 'null'}")


def as_text(value: Any) -> str:
    """A value as a task file writes it: `true`, `3`, `abc`."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def name_of(value: Any, names: Sequence[str], path: str) -> str:
    """One of `names`: the value itself, or the one at its position, from 0."""
    text = as_text(value).strip()
    if text in names:
        return text
    # names that are numbers are matched as they are written: 1 of `["1", "2"]` is not the second
    if text.isdecimal() and int(text) < len(names) and not any(name.isdecimal() for name in names):
        return names[int(text)]
    raise ValueError(f"`{path}` is {text!r}; wanted one of {', '.join(names)}")


def turns(value: Any, path: str) -> list[dict[str, str]]:
    """A dialogue as `[{"role": "user", "content": …}, …]`.

    Reads OpenAI's `role` and `content`, ShareGPT's `from` and `value`, plain texts that take turns, and pairs of them;
    also as JSON in a text. An answer that is not to be learned (`weight` 0, or `train` false) has the weight "0".
    """
    messages = []
    for number, turn in enumerate(_unpaired(_list(_parsed(value), path))):
        if isinstance(turn, str):
            turn = {"role": ("user", "assistant")[number % 2], "content": turn}
        if not isinstance(turn, Mapping):
            raise ValueError(
                f"turn {number + 1} of `{path}` is a {type(turn).__name__}, not a text or a mapping"
            )
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = role.casefold() if isinstance(role, str) else role
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(
                f"turn {number + 1} of `{path}` is by {role!r}; wanted one of {', '.join(ROLES)}"
            )
        if turn.get("tool_calls") or turn.get("function_call"):
            raise ValueError(f"turn {number + 1} of `{path}` calls a tool, which is not trained")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = _joined_parts(content, f"turn {number + 1} of `{path}`")
        if not isinstance(content, str):
            raise ValueError(f"turn {number + 1} of `{path}` has no text")
        unlearned = {"weight": "0"} if turn.get("weight") in (0, "0") or turn.get("train") is False else {}
        messages.append({"role": ROLES[role], "content": content.strip(), **unlearned})
    if not messages:
        raise ValueError(f"`{path}` has no turn")
    return messages


def _unpaired(found: Sequence[Any]) -> list[Any]:
    """Pairs of a question and its answer as the turns that they are."""
    pairs = [isinstance(each, Sequence) and not isinstance(each, str) and len(each) == 2 for each in found]
    return [text for pair in found for text in pair] if found and all(pairs) else list(found)


def _parsed(value: Any) -> Any:
    """What a text says that is a list in JSON, as tables hold dialogues; else `value`."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return DECODER.decode(value.strip())
    except (RecursionError, ValueError):
        return value


def _are_messages(found: Any) -> bool:
    """Whether a value is a list of turns, each of which says whose it is."""
    return (
        isinstance(found, list)
        and bool(found)
        and all(
            isinstance(turn, Mapping)
            and not turn.keys().isdisjoint({"role", "from"})
            and not turn.keys().isdisjoint({"content", "value", "tool_calls", "function_call"})
            for turn in found
        )
    )


def _joined_parts(parts: Sequence[Any], where: str) -> str:
    """The text of a message in parts, as OpenAI has it: `[{"type": "text", "text": "Hi"}]`."""
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{where} has a part of the type {kind!r}; only text is trained")
    return "\n".join(part["text"] for part in parts)


def _spoken(row: Row, roles: Mapping[str, str]) -> list[dict[str, str]]:
    """The turns of several columns one after the other; those that are missing or empty say nothing."""
    messages: list[dict[str, str]] = []
    for path, role in roles.items():
        value = get(row, path, missing=None)
        if path.rpartition(".")[2] in _DIALOGUES or _are_messages(_parsed(value)):
            value = _parsed(value)
        if isinstance(value, str):
            text = value.replace("\r\n", "\n").strip()
            text = _without_end_marker(text) if role == "assistant" else text
            messages += [{"role": role, "content": text}] if text else []
        elif value is not None and not (isinstance(value, float) and math.isnan(value)) and value != []:
            messages += turns(value, path)
    if not messages:
        raise ValueError(f"nobody says anything in {', '.join(f'`{path}`' for path in roles)}")
    return messages


def _entities(
    path: str, row: Row, tags_path: str, names: Sequence[str] | None, types: Mapping[str, str]
) -> list[dict[str, str]]:
    """Spans of BIO tags, in order: `Ada/B-PER Lovelace/I-PER met/O` is `[{"text": "Ada Lovelace", "type": "PER"}]`.

    BIOES, BILOU and tags without a prefix are read as well; an `I-` that continues nothing begins a span.
    """
    tokens, tags = _list(get(row, path), path), _list(get(row, tags_path), tags_path)
    if len(tokens) != len(tags):
        raise ValueError(f"`{path}` has {len(tokens)} tokens, `{tags_path}` {len(tags)} tags")
    spans: list[tuple[str, list[str]]] = []
    open_type: str | None = None
    for token, raw in zip(tokens, tags, strict=True):
        tag = name_of(raw, names, tags_path) if names else str(raw)
        prefix, dash, kind = tag.partition("-")
        if not dash or len(prefix) != 1:
            prefix, kind = "I", tag
        if tag == "O":
            open_type = None
            continue
        if prefix in "BSU" or kind != open_type:
            spans.append((kind, []))
        spans[-1][1].append(str(token))
        open_type = None if prefix in "ELSU" else kind
    return [{"text": " ".join(words), "type": types.get(kind, kind)} for kind, words in spans]


def _without_end_marker(text: str) -> str:
    for marker in _END_MARKERS:
        text = text.removesuffix(marker).rstrip()
    return text


def _is_default(value: Any, default: str | None) -> bool:
    return default is not None and value == default


def _texts(value: Any) -> list[str]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text for item in value for text in _texts(item)]
    text = "" if value is None else as_text(value).strip()
    return [text] if text else []


def _list(value: Any, path: str) -> list[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    raise ValueError(f"`{path}` is a {type(value).__name__}, not a list")
