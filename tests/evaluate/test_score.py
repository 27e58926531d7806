"""Scores of a tree of continuations are those of each continuation alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ift.evaluate.score import Tree, score
from ift.models.base import load_model

TOKENS = st.lists(st.integers(0, 200), min_size=1, max_size=9)
TREES = st.builds(Tree, prompt=TOKENS, continuations=st.lists(TOKENS, min_size=1, max_size=4))
BATCHES = st.lists(TREES, min_size=1, max_size=4)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


def naive(model: Any, tree: Tree) -> list[list[float]]:
    """Prompt and continuation alone, logits of every position, no mask and no batch."""
    scores = []
    for continuation in tree.continuations:
        ids = torch.tensor([tree.prompt + continuation])
        with torch.no_grad():
            predictions = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(tree.prompt) - 1
        scores.append([float(predictions[start + i, token]) for i, token in enumerate(continuation)])
    return scores


def assert_close(got: list[list[list[float]]], wanted: list[list[list[float]]]) -> None:
    assert [[len(tokens) for tokens in tree] for tree in got] == [[len(t) for t in tree] for tree in wanted]
    flat = [[x for tree in scores for tokens in tree for x in tokens] for scores in (got, wanted)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-4, rel=0)


@few
@given(trees=BATCHES)
def test_equals_each_continuation_alone(model: Any, trees: list[Tree]) -> None:
    assert_close(score(model, trees), [naive(model, tree) for tree in trees])


def test_choices_may_be_longer_together_than_the_context() -> None:
    """A model with a table of 16 positions would fail at the seventeenth."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=201, **shape)).eval()
    tree = Tree(list(range(8)), [list(range(start, start + 8)) for start in range(40)])
    assert_close(score(model, [tree]), [naive(model, tree)])


@few
@given(trees=BATCHES, beginning=TOKENS)
def test_what_prompts_begin_with_is_computed_once(
    model: Any, trees: list[Tree], beginning: list[int]
) -> None:
    trees = [Tree(beginning + tree.prompt, tree.continuations) for tree in trees]
    assert_close(score(model, trees), [naive(model, tree) for tree in trees])


@few
@given(trees=BATCHES, other=st.lists(st.integers(0, 200), min_size=20, max_size=40), data=st.data())
def test_does_not_depend_on_the_batch(model: Any, trees: list[Tree], other: list[int], data: Any) -> None:
    order = data.draw(st.permutations(range(len(trees))))
    batch = [Tree(other, [other]), *(trees[i] for i in order)]  # another order, and padding in every row
    found = score(model, batch)[1:]
    assert_close([found[order.index(i)] for i in range(len(trees))], [score(model, [t])[0] for t in trees])


def test_only_positions_that_predict_reach_the_vocabulary(model: Any) -> None:
    trees = [Tree([1, 2, 3, 4, 5], [[6], [7, 8, 9]]), Tree([1, 2, 9], [[4, 4]]), Tree([1, 2], [[3]])]
    score(model, trees[:1])  # the first time a model is asked, it is also asked whether it takes trees
    projected = []
    hook = model.lm_head.register_forward_hook(
        lambda module, args, output: projected.append(args[0].numel() // args[0].shape[-1])
    )
    try:
        score(model, trees)
    finally:
        hook.remove()
    assert projected == [
        (1 + 0 + 2) + (1 + 1) + 1
    ]  # a prompt's last token, and all but the last of each branch


def test_probabilities_of_every_next_token_sum_to_one(model: Any) -> None:
    every = [[token] for token in range(model.config.vocab_size)]
    ((scores),) = score(model, [Tree([5, 6, 7], every)])
    assert sum(torch.tensor(scores).exp().flatten().tolist()) == pytest.approx(1, abs=1e-4)


SMALL = {
    "vocab_size": 201,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL | {"attn_implementation": "eager"},
    "gemma2": SMALL | {"head_dim": 8},
    "gptj": {"vocab_size": 201, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "mpt": {"vocab_size": 201, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "bloom": {"vocab_size": 201, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {
        "vocab_size": 201,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "alibi": True,
    },
    "gpt_neo": {
        "vocab_size": 201,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "mamba": {"vocab_size": 201, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mistral": SMALL | {"sliding_window": 8},
    "phi3": SMALL | {"sliding_window": 8, "pad_token_id": 0},
    "gemma3_text": SMALL
    | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


def tiny(family: str) -> Any:
    """A random model of the family, with weights that are large enough for every token to count."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_each_continuation_alone_whatever_the_models_attention_is(family: str) -> None:
    """Eager attention, positions that a model counts itself, a window of 8 tokens, layers that are no attention."""
    model = tiny(family)
    beginning = [(11 * i) % 190 + 3 for i in range(14)]  # alone more than a window
    long = [
        Tree([*beginning, 7, 8, 9], [[20, 21, 22, 23], [30, 31], [40, 41, 42, 43, 44]]),
        Tree([*beginning, 50, 51], [[60, 61], [70]]),
    ]
    short = [Tree([3, 4, 5], [[20, 21, 22, 23], [30, 31]]), Tree([3, 4], [[60, 61], [70]])]
    for trees in (long, short):
        assert_close(score(model, trees), [naive(model, tree) for tree in trees])
