"""Layouts: data that needs no task file, because its columns say what they are.

In:  a row, or its columns alone.
Out: the layout's name, and what a task file for it would say.

    detect({"prompt": "Hi", "completion": "Hello"})    # "prompt_completion"

Each layout is a task file without a name and a source.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift import strict_yaml

# By the columns that must all be there; the first that fits is taken.
_LAYOUTS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset(["messages"]), "messages"),
    (frozenset(["conversations"]), "sharegpt"),
    (frozenset(["instruction", "output"]), "alpaca"),
    (frozenset(["prompt", "completion"]), "prompt_completion"),
    (frozenset(["prompt", "response"]), "prompt_response"),
    (frozenset(["prompt", "output"]), "prompt_output"),
    (frozenset(["text"]), "text"),
)
_SINGLE = ("alpaca", "prompt_completion", "prompt_response", "prompt_output")
TOOLS = ("tools", "functions")  # columns of what no layout reads, and nothing may drop in silence
TOLD = (*TOOLS, "system", "history")  # and those of what only some layouts read
WANTED = (
    "prompt and completion (or response, output), instruction and output (Alpaca), conversations (ShareGPT), messages "
    "(OpenAI), or text alone"
)


def detect(row: Iterable[str]) -> str | None:
    """The layout of a row with these columns; None where it is none of them.

    `text` counts only where it stands alone: beside a label it is a task that someone has to describe. A prompt that
    comes with a system text or a history, or that is a list of messages, is a conversation.
    """
    there = frozenset(row)
    for needed, name in _LAYOUTS:
        if needed <= there and (name != "text" or there <= {"text", "id", "url", "title", "source", "meta"}):
            return "exchange" if name in _SINGLE and isinstance(row, Mapping) and _is_exchange(row) else name
    return None


def _is_exchange(row: Mapping[str, Any]) -> bool:
    return bool(row.get("system") or row.get("history")) or isinstance(row.get("prompt"), list)


@lru_cache
def values(name: str) -> Mapping[str, Any]:
    """What a task file for the layout `name` says."""
    return strict_yaml.read(Path(__file__).with_name(f"{name}.yaml"))[0]
