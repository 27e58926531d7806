"""Prompts that are longer than the model's context lose their beginning, and that is told.

In:  items, the tokenizer, how many tokens the model can see.
Out: the same items; those that were too long with a shorter prompt, and the mark `cut`.

    fitting(tokenizer, items, context=2048, encoder_decoder=False)

The end of a prompt holds the question, so the beginning goes. What the chat template puts around a prompt stays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ift.errors import IftError
from ift.prompts.chat import Tokenizer, encode_completion, encode_prompt, neutralise

_BYTES = 4  # of a character at most, and a token is a byte at least
_FRAME = 256  # more tokens than a chat template puts around a prompt


def fitting(
    tokenizer: Tokenizer, items: Sequence[Mapping[str, Any]], *, context: int | None, encoder_decoder: bool
) -> list[Mapping[str, Any]]:
    """Items whose prompt and answer fit `context`; None is without end.

    Raises `IftError` where an item's answer alone does not fit.
    """
    if context is None:
        return list(items)
    return [_fitting(tokenizer, item, context, encoder_decoder) for item in items]


def _fitting(tokenizer: Tokenizer, item: Mapping[str, Any], context: int, encoder: bool) -> Mapping[str, Any]:
    if _BYTES * (len(item["prompt"]) + len(item["system"]) + _least(item)) + _FRAME < context:
        return item  # no need to count
    room = context - _answer(tokenizer, item)
    length = len(encode_prompt(tokenizer, item["prompt"], item["system"], encoder=encoder))
    if length <= room:
        return item
    text = neutralise(tokenizer, item["prompt"])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    at = 0
    while length > room:
        at += length - room  # a token less in the prompt is about one less in all: a few rounds do
        if at >= len(starts):
            raise IftError(
                f"item {item['id']} of {item['name']}: its answer takes {context - room:,} tokens of the model's "
                f"context of {context:,}, and leaves no room for the question",
                wanted="a model with a longer context, or shorter answers (the task's max_new_tokens)",
            )
        length = len(encode_prompt(tokenizer, text[starts[at] :], item["system"], encoder=encoder))
    return {**item, "prompt": text[starts[at] :], "cut": True}


def _least(item: Mapping[str, Any]) -> int:
    """Characters of the answer, or the tokens that it may have."""
    return max([item["max_new_tokens"] or 0, len(item["reference"] or ""), *map(len, item["choices"])])


def _answer(tokenizer: Tokenizer, item: Mapping[str, Any]) -> int:
    """Positions that the answer takes at most: each choice begins where the prompt ends (score.py)."""
    if item["kind"] == "generation":
        return int(item["max_new_tokens"])
    texts = [item["reference"]] if item["kind"] == "reference" else item["choices"]
    return max(len(encode_completion(tokenizer, text)) for text in texts)
