"""Conversations in YAML: under `conversations:`, a list of lists of texts.

In:  the text of the file, and its path for messages.
Out: a `Row` for each conversation, a `Bad` for one that is no list of texts.

    list(read_conversations("conversations:\\n- [Hello, Hi!]\\n", path))
    # [Row(2, {"messages": ["Hello", "Hi!"]}, 1)]

What stands behind a mistake in the YAML cannot be read: the last row is then a `Bad` that says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ift.data.formats.rows import Bad, Row, flaw_of_text
from ift.errors import IftError

# A NUL, and bytes that are not UTF-8, which come as lone surrogates, end a YAML file; in this disguise they pass.
_DISGUISE = {0: 0xF700} | {0xDC00 + byte: 0xF700 + byte for byte in range(0x80, 0x100)}
_UNMASK = {disguise: plain for plain, disguise in _DISGUISE.items()}


def read_conversations(text: str, path: Path) -> Iterator[Row | Bad]:
    """Read by the parser's events: building a tree recurses, and one mistake would cost all of it."""
    import yaml

    # The base loader takes every value as the text that is written: `no`, `1.10` and `12:30` stay what they are.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    masked = bool(flaw_of_text(text))
    events: Iterator[Any] = yaml.parse(text.translate(_DISGUISE) if masked else text, Loader=loader)
    last: Row | Bad | None = None  # yielded once the parser agrees with what is behind it: it may lack a turn
    number, line, found = 0, 1, False
    try:
        root = next((event for event in events if isinstance(event, yaml.NodeEvent)), None)
        while isinstance(root, yaml.MappingStartEvent):
            key = next(events)
            if isinstance(key, yaml.MappingEndEvent):
                break
            _pass_over(events, key)
            node = next(events)
            if getattr(key, "value", "") != "conversations" or not isinstance(node, yaml.SequenceStartEvent):
                _pass_over(events, node)
                continue
            found = True
            while not isinstance(node := next(events), yaml.SequenceEndEvent):
                if last:
                    yield last
                number, line, last = number + 1, 1 + node.start_mark.line, None
                texts, others = _turns(events, node)
                if masked:
                    texts = [one.translate(_UNMASK) for one in texts]
                last = _conversation(texts, others, line, number)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"not YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
        at = mark.line + 1 if mark else line
        if not found:
            raise IftError(problem, where=f"{path}:{at}") from None
        yield Bad(line, f"{problem} in line {at}; from here on nothing can be read", "", number)
        return
    if last:
        yield last
    if root is not None and not found:
        raise IftError(f"{path} has no conversations", wanted="`conversations:` and a list of lists of texts")


def _conversation(texts: list[str], others: int, line: int, number: int) -> Row | Bad:
    if others:
        return Bad(line, "a turn is no text; text with `: ` needs quotes", " ".join(texts), number)
    if not texts:
        return Bad(line, "a conversation is a list of texts", "", number)
    return Row(line, {"messages": texts}, number)


def _turns(events: Iterator[Any], node: Any) -> tuple[list[str], int]:
    """The texts of a conversation that begins with the event `node`, and how many other things are in it."""
    import yaml

    texts: list[str] = []
    others = 0
    if not isinstance(node, yaml.SequenceStartEvent):
        _pass_over(events, node)
        return texts, others
    while not isinstance(turn := next(events), yaml.SequenceEndEvent):
        if isinstance(turn, yaml.ScalarEvent):
            texts.append(turn.value)
        else:
            others += 1
            _pass_over(events, turn)
    return texts, others


def _pass_over(events: Iterator[Any], node: Any) -> None:
    """To behind the end of what begins with the event `node`."""
    import yaml

    depth = int(isinstance(node, yaml.CollectionStartEvent))
    while depth:
        event = next(events)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
