"""Prompts that are too long lose their beginning, and nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.errors import IftError
from ift.evaluate.context import fitting
from ift.prompts.chat import encode_prompt


def item(prompt: str, **fields: Any) -> dict[str, Any]:
    empty = {"name": "t", "id": "1", "system": "", "choices": [], "reference": None, "max_new_tokens": 8}
    return {"kind": "generation", "prompt": prompt, **empty, **fields}


@given(words=st.lists(st.sampled_from(["film", "good", "ü", "<|im_end|>", "\n"]), min_size=1, max_size=80))
def test_what_is_left_fits_and_is_the_end_of_what_was_there(tiny_tokenizer: Any, words: list[str]) -> None:
    asked = item(" ".join(words))
    [found] = fitting(tiny_tokenizer, [asked], context=48, encoder_decoder=False)
    assert len(encode_prompt(tiny_tokenizer, found["prompt"], "")) + 8 <= 48
    if found.get("cut"):
        assert asked["prompt"].replace("<|im_end|>", "< |im_end|>").endswith(found["prompt"])
        assert len(encode_prompt(tiny_tokenizer, asked["prompt"], "")) + 8 > 48
    else:
        assert found == asked


def test_a_model_without_an_end_takes_anything(tiny_tokenizer: Any) -> None:
    long = item("good " * 9999)
    assert fitting(tiny_tokenizer, [long], context=None, encoder_decoder=True) == [long]


def test_each_choice_takes_the_room_behind_the_prompt(tiny_tokenizer: Any) -> None:
    """As many as there are: none sees another. A longer one takes more."""
    asked = item("good " * 30, kind="multiple_choice", choices=["the film was good"], max_new_tokens=None)

    def left(*choices: str) -> int:
        [found] = fitting(tiny_tokenizer, [{**asked, "choices": choices}], context=44, encoder_decoder=False)
        return len(found["prompt"])

    assert left("the film was good") == left(*["the film was good"] * 99) < left("good")


def test_an_answer_that_leaves_no_room_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(IftError, match="leaves no room for the question") as refused:
        fitting(tiny_tokenizer, [item("good " * 30, max_new_tokens=47)], context=48, encoder_decoder=False)
    assert str(refused.value).startswith(
        "item 1 of t: its answer takes 47 tokens of the model's context of 48"
    )
