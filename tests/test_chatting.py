"""What `ift chat` lets a model read, and where it puts it."""

from pathlib import Path
from typing import Any

import pytest

from ift.chatting import _read, place
from ift.prompts.chat import encode_history, encode_prompt


def test_a_system_message_stands_before_each_conversation(tiny_tokenizer: Any) -> None:
    system, ask = {"role": "system", "content": "good"}, {"role": "user", "content": "the film"}
    assert _read(tiny_tokenizer, [system, ask], encoder=False) == encode_prompt(
        tiny_tokenizer, "the film", "good"
    )
    assert _read(tiny_tokenizer, [ask], encoder=False) == encode_prompt(tiny_tokenizer, "the film")
    longer = [system, ask, {"role": "assistant", "content": "dull"}, ask]
    assert _read(tiny_tokenizer, longer, encoder=False) == encode_history(tiny_tokenizer, longer)


@pytest.mark.parametrize(("gib", "wanted"), [(0, "cpu"), (24, "cuda"), (16, "auto")])
def test_a_model_that_one_gpu_does_not_hold_goes_over_several(
    gib: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ift.models.base.parameter_count", lambda _: 15 * 2**29)
    assert place(Path("model"), gib * 2**30) == wanted
