"""Answers of a batch are those that each prompt gets alone, and they end where they should."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ift.evaluate.generate import generate
from ift.models.base import load_model

NEVER = 511  # a stop token that the model is kept from writing
PROMPTS = [[5, 6, 7, 8], [5, 9], [5, 6, 7, 8, 20, 21, 22, 23, 24, 25], [5, 6], [5, 6, 40]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    model = load_model(tiny_model)

    def forbid(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output[..., min(NEVER, output.shape[-1] - 1)] = -1e9
        return output

    hook = model.lm_head.register_forward_hook(forbid)
    yield model
    hook.remove()


@pytest.fixture(scope="module")
def never(model: Any) -> int:
    return int(min(NEVER, model.config.vocab_size - 1))


def naive(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy, one token at a time, everything computed anew for each."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_answers_as_each_prompt_alone(model: Any, never: int) -> None:
    wanted = [naive(model, prompt, 12) for prompt in PROMPTS]
    assert generate(model, PROMPTS, max_new_tokens=12, stop=[never]) == wanted
    assert [generate(model, [p], max_new_tokens=12, stop=[never])[0] for p in PROMPTS] == wanted


def test_prompts_that_begin_alike_or_differently(model: Any, never: int) -> None:
    prompts = [[7, 6, 5], [5, 6, 7, 8, 9], [6]]  # nothing is shared
    wanted = [naive(model, prompt, 6) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=6, stop=[never]) == wanted
    assert (
        generate(model, [[5, 6, 7]] * 3, max_new_tokens=6, stop=[never]) == [naive(model, [5, 6, 7], 6)] * 3
    )


def test_an_answer_ends_before_the_first_stop_token(model: Any) -> None:
    whole = [naive(model, prompt, 12) for prompt in PROMPTS]
    for stop in ([whole[0][4]], [whole[1][0]], [whole[2][3], whole[3][6]], sorted({a[5] for a in whole})):
        wanted = []
        for answer in whole:
            end = next((i for i, token in enumerate(answer) if token in stop), len(answer))
            wanted.append(answer[:end])
        assert generate(model, PROMPTS, max_new_tokens=12, stop=stop) == wanted


def test_work_ends_with_the_answers(model: Any, never: int) -> None:
    """An answer that has ended is computed no further, and no step follows the last one."""
    firsts = [naive(model, prompt, 1)[0] for prompt in PROMPTS]
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    try:
        generate(model, PROMPTS, max_new_tokens=8, stop=sorted(set(firsts)))
        assert rows == [len(PROMPTS)]
        rows.clear()
        generate(model, PROMPTS, max_new_tokens=3, stop=[firsts[0]])
        assert rows[0] == len(PROMPTS)
        assert rows[1] <= len(PROMPTS) - firsts.count(firsts[0])
        rows.clear()
        generate(model, PROMPTS, max_new_tokens=3, stop=[never])
        assert rows == [len(PROMPTS)] * 3
    finally:
        hook.remove()


def test_answers_are_greedy_whatever_the_models_settings_say(model: Any, never: int) -> None:
    wanted = generate(model, PROMPTS, max_new_tokens=8, stop=[never])
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    try:
        assert generate(model, PROMPTS, max_new_tokens=8, stop=[never]) == wanted
    finally:
        model.generation_config.update(do_sample=False, temperature=1.0, repetition_penalty=1.0)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "mpt"])
def test_padding_behind_a_shared_beginning_takes_no_room_of_a_window(family: str) -> None:
    """Nor does it count as distance where attention falls off with it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 201, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more: dict[str, Any] = {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 8}
    if family == "mpt":
        small, more = {"vocab_size": 201, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, {}
    if family == "gemma3_text":
        more |= {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small, **more)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6)
    beginning = [(11 * i) % 190 + 3 for i in range(20)]
    prompts = [[*beginning, 7, 8, 9], [*beginning, 50, 51, 52, 53], [*beginning, *range(60, 68)]]
    wanted = [naive(model, prompt, 8) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=8, stop=[999]) == wanted
