"""Scores of a model folder on frozen items, off the trainer.

In:  a folder with a model, the items that `prepare` wrote.
Out: one prediction an item, in the items' order, each with a score.

    evaluate(model_dir, items, actors=2, gpus=0)    # [{"name": "arithmetic", "id": "sum-01", "score": 1.0, ...}, ...]

Three kinds of items, because they tell different stories:

    multiple_choice  ranked by log-likelihood a token                    score: 1.0 if the right one is first
    reference        loss on a given answer                              score: nats a token, lower is better
    generation       a greedy answer, checked by rule or by a metric     score: 0.0 to 1.0

Batches are composed here, longest first, so that predictions do not depend on how many actors share them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ift.evaluate.generate import generate
from ift.evaluate.score import Tree, score
from ift.prompts.chat import Tokenizer, encode_completion, encode_prompt, end_of_turn
from ift.tasks.checks import check
from ift.tasks.metrics import grade

Item = Mapping[str, Any]
Prediction = dict[str, Any]
_ROWS = 64  # sequences in a batch, at most


def evaluate(
    model_dir: Path,
    items: Sequence[Item],
    *,
    actors: int,
    gpus: int,
    threads: int,
    batch_tokens: int,
    dtype: str = "float32",
    base: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[Prediction]:
    """Predict and grade every item with a Ray Data pool of `actors`, each with a copy of the model.

    `base` are the base model's predictions of the same items, for the rules that compare with its answers.
    """
    import pyarrow as pa
    import ray.data

    from ift.models.base import is_encoder_decoder, load_tokenizer

    if not items:
        return []
    if base is not None:
        items = [{**item, "base": b["output"]} for item, b in zip(items, base, strict=True)]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    groups = batches(
        load_tokenizer(model_dir), items, batch_tokens, encoder_decoder=is_encoder_decoder(model_dir)
    )
    rows = [pa.table({"batch": [json.dumps([[i, dict(items[i])] for i in group])]}) for group in groups]
    predictions: dict[int, Prediction] = {}
    answers = ray.data.from_arrow(rows).map_batches(
        Predictor,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_kwargs={
            "model_dir": str(model_dir),
            "dtype": dtype,
            "threads": threads,
            "gpu": bool(gpus),
        },
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(groups))),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in answers.iter_rows():
        predictions.update(dict(json.loads(row["predictions"])))
        if progress:
            progress(len(predictions), len(items))
    assert len(predictions) == len(items), f"{len(predictions)} predictions for {len(items)} items"
    return [predictions[i] for i in range(len(items))]


def batches(
    tokenizer: Tokenizer, items: Sequence[Item], batch_tokens: int, *, encoder_decoder: bool = False
) -> list[list[int]]:
    """Numbers of items that go through the model together: of one kind, of like length, costly ones first."""
    lengths = [_length(tokenizer, item, encoder_decoder) for item in items]
    by_kind: dict[tuple[bool, int], list[int]] = {}
    for i, item in enumerate(items):
        generated = item["kind"] == "generation"
        by_kind.setdefault((generated, item["max_new_tokens"] if generated else 0), []).append(i)
    groups: list[list[int]] = []
    for _, numbers in sorted(by_kind.items(), reverse=True):
        group: list[int] = []
        for i in sorted(numbers, key=lambda i: (-lengths[i], i)):
            if group and (len(group) == _ROWS or (len(group) + 1) * lengths[group[0]] > batch_tokens):
                groups.append(group)
                group = []
            group.append(i)
        groups.append(group)
    return groups


def _length(tokenizer: Tokenizer, item: Item, encoder_decoder: bool = False) -> int:
    if item["kind"] == "generation":
        return len(_prompt(tokenizer, item, encoder_decoder)) + int(item["max_new_tokens"])
    tree = _tree(tokenizer, item, encoder_decoder)
    return tree.decoder_tokens if encoder_decoder else len(tree)


def _prompt(tokenizer: Tokenizer, item: Item, encoder_decoder: bool) -> list[int]:
    return encode_prompt(tokenizer, item["prompt"], item["system"], encoder=encoder_decoder)


def _tree(tokenizer: Tokenizer, item: Item, encoder_decoder: bool) -> Tree:
    """Choices without the end-of-turn token: when to stop is another question than which one is right."""
    prompt = _prompt(tokenizer, item, encoder_decoder)
    if item["kind"] == "reference":
        return Tree(prompt, [encode_completion(tokenizer, item["reference"])])
    return Tree(prompt, [encode_completion(tokenizer, choice)[:-1] for choice in item["choices"]])


class Predictor:
    """One actor of the pool: a model, a tokenizer, and batches of items."""

    def __init__(self, model_dir: str, dtype: str, threads: int, gpu: bool) -> None:
        import torch

        from ift.models.base import load_model, load_tokenizer

        if not gpu:
            torch.set_num_threads(threads)
        self.tokenizer = load_tokenizer(Path(model_dir))
        self.model = load_model(Path(model_dir), dtype=dtype, device="cuda" if gpu else "cpu")

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        answers = [json.dumps(self.predict(json.loads(text))) for text in batch.column("batch").to_pylist()]
        return pa.table({"predictions": answers})

    def predict(self, numbered: Sequence[tuple[int, Item]]) -> list[tuple[int, Prediction]]:
        """`(number, item)` pairs of one kind to `(number, prediction)` pairs."""
        items = [item for _, item in numbered]
        predict = predict_generations if items[0]["kind"] == "generation" else predict_likelihoods
        predictions = predict(self.model, self.tokenizer, items)
        return [(i, prediction) for (i, _), prediction in zip(numbered, predictions, strict=True)]


def predict_likelihoods(model: Any, tokenizer: Tokenizer, items: Sequence[Item]) -> list[Prediction]:
    """Choices ranked by mean log-likelihood a token; references by their loss."""
    predictions = []
    trees = [_tree(tokenizer, item, model.config.is_encoder_decoder) for item in items]
    for item, scores in zip(items, score(model, trees), strict=True):
        means = [sum(tokens) / len(tokens) for tokens in scores]
        if item["kind"] == "reference":
            predictions.append(_prediction(item, output="", expected=item["reference"], score=-means[0]))
            continue
        best = max(range(len(means)), key=means.__getitem__)
        right = float(best == item["answer"])
        predictions.append(
            _prediction(
                item,
                output=item["choices"][best],
                expected=item["choices"][item["answer"]],
                score=right,
                detail=means,
            )
        )
    return predictions


def predict_generations(model: Any, tokenizer: Tokenizer, items: Sequence[Item]) -> list[Prediction]:
    """Greedy answers, graded by the item's rules, or by its task's metric against the reference."""
    answers = generate(
        model,
        [_prompt(tokenizer, item, model.config.is_encoder_decoder) for item in items],
        max_new_tokens=items[0]["max_new_tokens"],
        stop=sorted({end_of_turn(tokenizer), tokenizer.eos_token_id} - {None}),
    )
    predictions = []
    for item, ids in zip(items, answers, strict=True):
        output = tokenizer.decode(ids, skip_special_tokens=True).strip()
        if item["check"]:
            failures = check(output, item["check"], item.get("base"))
            predictions.append(
                _prediction(item, output=output, expected=None, score=float(not failures), detail=failures)
            )
        else:
            score = grade(item["metric"], output, item["reference"])
            predictions.append(_prediction(item, output=output, expected=item["reference"], score=score))
    return predictions


def _prediction(
    item: Item, *, output: str, expected: str | None, score: float, detail: Any = None
) -> Prediction:
    return {
        **{key: item[key] for key in ("suite", "name", "id", "kind", "metric", "prompt")},
        "output": output,
        "expected": expected,
        "score": score,
        "detail": json.dumps(detail),
    }
