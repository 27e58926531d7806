"""Encoder–decoders: scores and answers of a batch are those of each prompt alone."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_t5 import make_t5

from ift.evaluate.evaluator import batches, predict_generations, predict_likelihoods
from ift.evaluate.generate import generate
from ift.evaluate.score import Tree, score
from ift.models import base

END = 1
NEVER = 2  # a stop token that the model is kept from writing
TOKENS = st.lists(st.integers(3, 100), min_size=1, max_size=9)
TREES = st.builds(Tree, prompt=TOKENS, continuations=st.lists(TOKENS, min_size=1, max_size=4))
PROMPTS = [
    [5, 6, 7, 8, END],
    [7, END],
    [30, 40, 50, 60, 70, 80, 90, 95, 20, 21, END],
    [5, END],
    [30, 41, END],
]
few = settings(max_examples=15)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"), seed=1)


@pytest.fixture(scope="module")
def model(t5: Path) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is faster on one
    model = base.load_model(t5)

    def forbid(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output[..., NEVER] = -1e9
        return output

    model.lm_head.register_forward_hook(forbid)
    yield model
    torch.set_num_threads(threads)


def naive_scores(model: Any, tree: Tree) -> list[list[float]]:
    scores = []
    for continuation in tree.continuations:
        labels = torch.tensor([continuation])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tree.prompt]), labels=labels).logits[0].log_softmax(-1)
        scores.append([float(logits[i, token]) for i, token in enumerate(continuation)])
    return scores


@few
@given(trees=st.lists(TREES, min_size=1, max_size=4))
def test_each_continuation_is_scored_as_if_alone(model: Any, trees: list[Tree]) -> None:
    found = score(model, trees)
    for tree, scores in zip(trees, found, strict=True):
        for got, wanted in zip(scores, naive_scores(model, tree), strict=True):
            assert got == pytest.approx(wanted, abs=1e-4, rel=0)


def naive_answer(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy, one token at a time, everything computed anew for each."""
    ids = [model.config.decoder_start_token_id]
    for _ in range(count):
        with torch.no_grad():
            output = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([ids]))
        ids.append(int(output.logits[0, -1].argmax()))
    return ids[1:]


def test_a_batch_answers_as_each_prompt_alone(model: Any) -> None:
    wanted = [naive_answer(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in wanted}) == len(PROMPTS)  # so that a mix-up would show
    assert generate(model, PROMPTS, max_new_tokens=12, stop=[NEVER]) == wanted
    assert [generate(model, [p], max_new_tokens=12, stop=[NEVER])[0] for p in PROMPTS] == wanted


def test_answers_end_one_by_one_before_the_first_stop_token(model: Any) -> None:
    whole = [naive_answer(model, prompt, 12) for prompt in PROMPTS]
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    try:
        for stop in ([whole[0][4]], [whole[1][0]], [whole[2][3], whole[3][6]], sorted({a[5] for a in whole})):
            wanted = [
                answer[: next((i for i, token in enumerate(answer) if token in stop), len(answer))]
                for answer in whole
            ]
            rows.clear()
            assert generate(model, PROMPTS, max_new_tokens=12, stop=stop) == wanted
            steps = [sum(len(answer) >= step for answer in wanted) for step in range(12)]
            assert rows == [going for going in steps if going]  # what has ended is computed no further
    finally:
        hook.remove()


def items(kind: str) -> list[dict[str, Any]]:
    empty = {
        "suite": "task",
        "name": "films",
        "kind": kind,
        "metric": "exact_match",
        "system": "",
        "check": None,
    }
    texts = [
        "the film was good",
        "bad",
        "a very long and dull film",
        "not good and not bad",
        "this is a review",
    ]
    return [
        {
            **empty,
            "id": f"{i}",
            "prompt": text,
            "choices": ["positive", "very negative", "dull"] if kind == "multiple_choice" else [],
            "answer": i % 3,
            "reference": "the film is good",
            "max_new_tokens": 8,
        }
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("kind", ["multiple_choice", "reference", "generation"])
def test_predictions_do_not_depend_on_the_batch(t5: Path, model: Any, kind: str) -> None:
    tokenizer, asked = base.load_tokenizer(t5), items(kind)

    def predict(these: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if kind != "generation":
            return predict_likelihoods(model, tokenizer, these)
        return predict_generations(partial(generate, model), tokenizer, these, encoder_decoder=True)

    together = predict(asked)
    alone = [predict([item])[0] for item in asked]
    assert [p["output"] for p in together] == [p["output"] for p in alone]
    assert [p["score"] for p in together] == pytest.approx([p["score"] for p in alone], abs=1e-4)
    if kind == "reference":  # transformers' own loss of both texts, as its tokenizer makes them
        for item, prediction in zip(asked, together, strict=True):
            read, written = (torch.tensor([tokenizer(item[k])["input_ids"]]) for k in ("prompt", "reference"))
            with torch.no_grad():
                wanted = float(model(input_ids=read, labels=written).loss)
            assert prediction["score"] == pytest.approx(wanted, abs=1e-4)


def test_a_batch_holds_as_many_choices_as_the_decoder_has_room_for(t5: Path) -> None:
    tokenizer, asked = base.load_tokenizer(t5), items("multiple_choice")
    groups = batches(tokenizer, asked, 100, encoder_decoder=True)
    assert sorted(i for group in groups for i in group) == list(range(len(asked)))
    costs = [3 * (len(tokenizer(item["prompt"])["input_ids"]) + 2) for item in asked]  # two words at most
    assert all(len(group) * max(costs[i] for i in group) <= 100 for group in groups)
    assert len(groups) > 1
