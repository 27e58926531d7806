"""Scores of a model folder on frozen items, off the trainer.

In:  a folder with a model, the items that `prepare` wrote.
Out: one prediction an item, in the items' order, each with a score.

    evaluate(model_dir, items, actors=2, gpus=0)    # [{"name": "arithmetic", "id": "sum-01", "score": 1.0, ...}, ...]

Three kinds of items, because they tell different stories:

    multiple_choice  ranked by log-likelihood                            score: 1.0 if the right one is first;
                                                                         NaN where one is no number
    reference        loss on a given answer                              score: nats a token, lower is better
    generation       a greedy answer, checked by rule or by a metric     score: 0.0 to 1.0

Choices are ranked in one of three ways (`RANKINGS`), as the field does:

    length           log-likelihood a token, so that long answers do not lose for their length (Brown et al. 2020)
    raw              log-likelihood of the whole answer
    unconditional    raw, less that of the answer behind no question: how much the question tells for it
                     (PMI_DC: Holtzman et al. 2021, arXiv 2104.08315)

Batches are composed here, of items of one task and of like length, so that predictions depend neither on how many
actors share them nor on which other tasks are asked.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ift import cluster, storage
from ift.errors import IftError
from ift.evaluate import with_vllm
from ift.evaluate.context import fitting
from ift.evaluate.generate import generate
from ift.evaluate.score import Tree, score
from ift.evaluate.store import Store
from ift.prompts.chat import Tokenizer, encode_completion, encode_prompt, end_of_turn
from ift.tasks import code
from ift.tasks.checks import check
from ift.tasks.metrics import grade
from ift.tasks.scores import chance

Item = Mapping[str, Any]
Prediction = dict[str, Any]
RANKINGS = ("length", "raw", "unconditional")
_SMALL = 12 * storage.GIB  # weights that every GPU for training holds
_QUANTISED = 0.55  # bytes a parameter in 4 bits, with its share of the scales
_TOKENS_CPU, _TOKENS_GPU = 4096, 32768  # in a forward pass, where nobody says: a GPU with fewer is idle
ROOM = 0.8  # of a GPU's memory, for weights: the rest is for its work
_ROWS = 64  # sequences in a batch, at most
_REASONING = re.compile(r"\s*<think>.*?</think>\s*", re.S)
# what a question is beside its prompt, and what counts as an answer to it
_ASKED = (
    *("kind", "metric", "system", "choices", "labels", "answer", "ranking"),
    *("reference", "check", "max_new_tokens"),
)
_NO_QUESTION = "Answer:"  # what choices stand behind where they are ranked without their question


def evaluate(
    model_dir: Path,
    items: Sequence[Item],
    *,
    actors: int,
    gpus: int,
    threads: int,
    batch_tokens: int | Literal["auto"] = "auto",
    dtype: str = "float32",
    ranking: str = "length",
    gpus_a_copy: int = 1,
    quantize: str = "none",
    engine: str = "transformers",
    allow_code: bool = False,
    base: Sequence[Mapping[str, Any]] | None = None,
    store: Store | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    took: Callable[[Sequence[int], float], None] | None = None,
) -> list[Prediction]:
    """Predict and grade every item with a Ray Data pool of `actors`, each with a copy of the model on `gpus_a_copy`.

    With `quantize="4bit"` a model's weights are held in 4 bits; an adapter knows by itself how its base is held.
    `engine` writes the answers of generations: transformers, or vllm on GPUs. `base` are the base model's predictions
    of the same items, for the rules that compare with its answers. What `store` has is not computed again, and what
    is computed goes there batch by batch. A prompt over the model's context loses its beginning, and its prediction
    says so (`cut`). `took` hears of each batch: its items' numbers and the seconds that they took when they were
    computed. Raises `IftError` where an item's metric is `code` and `allow_code` is not set.
    """
    import pyarrow as pa
    import ray.data

    from ift.models.base import context_length, is_encoder_decoder, load_tokenizer

    if not items:
        return []
    if any(item["metric"] == "code" for item in items):
        code.make_sure(allow_code=allow_code)
    tokenizer, encoder_decoder = load_tokenizer(model_dir), is_encoder_decoder(model_dir)
    items = fitting(tokenizer, items, context=context_length(model_dir), encoder_decoder=encoder_decoder)
    items = [{**item, "ranking": ranking} if item["kind"] == "multiple_choice" else item for item in items]
    if base is not None:
        items = [
            {**item, "base": without_reasoning(b["output"])}
            if "length_of_base" in (item["check"] or ())
            else item
            for item, b in zip(items, base, strict=True)
        ]
    if vllm := engine == "vllm":
        with_vllm.check(gpus=gpus, encoder_decoder=encoder_decoder)
    if batch_tokens == "auto":
        batch_tokens = _TOKENS_GPU if gpus else _TOKENS_CPU
    groups = batches(tokenizer, items, batch_tokens, encoder_decoder=encoder_decoder, vllm=vllm)
    predictions: dict[int, Prediction] = {}

    def arrived(group: Sequence[int], made: Sequence[Prediction], seconds: float) -> None:
        predictions.update(zip(group, made, strict=True))
        if took:
            took(group, seconds)
        if progress:
            progress(len(predictions), len(items))

    left = []
    for group in groups:
        if store and (kept := store.get([items[i] for i in group])):
            arrived(group, *kept)
        else:
            left.append(group)
    by_engine: dict[str, list[list[int]]] = {}
    for group in left:
        written = items[group[0]]["kind"] == "generation"
        by_engine.setdefault(engine if written else "transformers", []).append(group)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name, of_engine in by_engine.items():  # one after the other: each fills its GPU
        rows = [
            pa.table({"batch": [json.dumps([n, [items[i] for i in group]])]})
            for n, group in enumerate(of_engine)
        ]
        answers = ray.data.from_arrow(rows).map_batches(
            Predictor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_kwargs={
                "model_dir": str(model_dir),
                "dtype": dtype,
                "threads": threads,
                "gpus": gpus_a_copy if gpus else 0,
                "quantize": quantize,
                "engine": name,
            },
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(of_engine))),
            num_cpus=1,
            num_gpus=gpus_a_copy if gpus else 0,
        )
        for row in answers.iter_rows():
            number, made, seconds = json.loads(row["predictions"])
            group = of_engine[number]
            if store:
                store.put([items[i] for i in group], made, seconds=seconds)
            arrived(group, made, seconds)
    assert len(predictions) == len(items), f"{len(predictions)} predictions for {len(items)} items"
    return [predictions[i] for i in range(len(items))]


def timed(
    model_dir: Path,
    items: Sequence[Item],
    *,
    gpus: int,
    dtype: str,
    cache: Path,
    quantize: str = "none",
    engine: str = "transformers",
    **how: Any,
) -> tuple[list[Prediction], list[float]]:
    """`evaluate` on all that is here, with what `cache` keeps; and each item's seconds, its share of its batch."""
    seconds = [0.0] * len(items)

    def took(group: Sequence[int], spent: float) -> None:
        for i in group:
            seconds[i] = spent / len(group)

    store = store_of(cache, model_dir, gpus=gpus, dtype=dtype, quantize=quantize, engine=engine)
    each = gpus_a_copy(model_dir, dtype, quantize) if gpus else 1
    how |= {"dtype": dtype, "quantize": quantize, "engine": engine, "store": store}
    how |= {**pool(gpus, each), "gpus_a_copy": each}
    return evaluate(model_dir, items, took=took, **how), seconds


def write(path: Path, predictions: Sequence[Prediction], seconds: Sequence[float]) -> dict[str, float]:
    """Write predictions to the Parquet file `path`; the mean seconds an item took, by task."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(predictions)), path)
    spent: dict[str, list[float]] = {}
    for prediction, took in zip(predictions, seconds, strict=True):
        spent.setdefault(prediction["name"], []).append(took)
    return {name: sum(values) / len(values) for name, values in spent.items()}


def number_format(precision: str, gpus: int) -> str:
    """The torch dtype in which a run with this `train.precision` is evaluated, on so many GPUs."""
    asked = ("bf16" if gpus else "fp32") if precision == "auto" else precision
    return {"fp32": "float32", "bf16": "bfloat16"}[asked]


def gpus_a_copy(model_dir: Path, dtype: str, quantize: str = "none") -> int:
    """How many GPUs of one node hold the model in `model_dir` for evaluation, with a fifth of them left for its work.

    A large one has a GPU of the cluster asked for its memory. Raises `IftError` where no node has as many.
    """
    weights = weights_of(model_dir, dtype, quantize)
    if weights <= _SMALL:
        return 1
    import ray

    memory: int = ray.get(ray.remote(num_cpus=0, num_gpus=1)(_gpu_memory).remote())
    each = math.ceil(weights / (ROOM * memory))
    most = max(node.gpus for node in cluster.nodes_now())
    if each > most:
        raise IftError(
            f"a model of {weights / storage.GIB:,.0f} GiB in {'4 bits' if quantize == '4bit' else dtype} "
            f"needs {each} GPUs of {memory / storage.GIB:,.0f} GiB to be evaluated, and the largest node has {most}",
            wanted="a node that holds the model",
            hint="nodes with more or larger GPUs",
        )
    return each


def weights_of(model_dir: Path, dtype: str, quantize: str = "none") -> float:
    """Bytes of the model's weights in `dtype`, or in 4 bits. With an adapter's those of its base are counted."""
    from ift.models import adapters, base

    each = 2 if dtype == "bfloat16" else 4
    count = base.parameter_count(model_dir)
    if not base.is_adapter(model_dir):
        return count * (_QUANTISED if quantize == "4bit" else each)
    of_base = _QUANTISED if (model_dir / adapters.QUANTIZED).is_file() else each
    return count * each + base.parameter_count(adapters.base_of(model_dir)) * of_base


def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def place(gpus: int) -> str:
    """Where `load_model` puts a copy of the model that has so many GPUs."""
    return "cpu" if not gpus else "cuda" if gpus == 1 else "auto"


def pool(gpus: int, each: int = 1) -> dict[str, int]:
    """How many copies of the model share the work: one for `each` GPUs, else two with half of this machine's cores."""
    cores = os.cpu_count() or 1
    actors = max(1, gpus // each) if gpus else min(2, cores)
    return {"actors": actors, "gpus": gpus, "threads": max(1, cores // actors)}


def store_of(
    cache: Path,
    model_dir: Path,
    *,
    gpus: int,
    dtype: str,
    quantize: str = "none",
    engine: str = "transformers",
) -> Store:
    """Where predictions of the model in `model_dir`, run in this way, are kept."""
    from importlib import metadata

    from ift.models.base import digest

    device = "gpu" if gpus else f"cpu, {pool(0)['threads']} threads"
    if engine == "vllm":
        device += f", vllm {metadata.version('vllm')}"
    if quantize != "none":
        device += f", weights of {quantize}"
    return Store(cache, model=digest(model_dir), dtype=dtype, device=device)


def batches(
    tokenizer: Tokenizer,
    items: Sequence[Item],
    batch_tokens: int,
    *,
    encoder_decoder: bool = False,
    vllm: bool = False,
) -> list[list[int]]:
    """Numbers of items that go through the model together: of one task, of like length, costly ones first.

    With `vllm`, which makes batches of its own, generations go to it by the thousand. Items whose prompts begin alike
    (`context`, the solved examples before the question) stay together too: what a batch shares is computed once.
    """
    lengths = [_length(tokenizer, item, encoder_decoder) for item in items]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, item in enumerate(items):
        kind = (item["suite"], item["name"], item.get("context", ""))
        alike.setdefault((*kind, _budget(item)), []).append(i)
    groups: list[list[int]] = []
    for numbers in alike.values():
        group: list[int] = []
        whole = vllm and items[numbers[0]]["kind"] == "generation"
        rows = with_vllm.ROWS if whole else _ROWS
        for i in sorted(numbers, key=lambda i: (-lengths[i], i)):
            too_long = not whole and (len(group) + 1) * lengths[group[0] if group else i] > batch_tokens
            if group and (len(group) == rows or too_long):
                groups.append(group)
                group = []
            group.append(i)
        groups.append(group)
    return sorted(groups, key=lambda g: (_budget(items[g[0]]), lengths[g[0]]), reverse=True)


def _budget(item: Item) -> int:
    """Tokens that may be written; 0 where none are."""
    return int(item["max_new_tokens"]) if item["kind"] == "generation" else 0


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
    """One actor of the pool: a model, a tokenizer, and batches of items; with vllm, of generations only."""

    def __init__(
        self,
        model_dir: str,
        dtype: str,
        threads: int,
        gpus: int,
        quantize: str = "none",
        engine: str = "transformers",
    ) -> None:
        import torch

        from ift.models.base import load_model, load_tokenizer

        if not gpus:
            torch.set_num_threads(threads)
        self.tokenizer = load_tokenizer(Path(model_dir))
        if engine == "vllm":
            self.answer, self.encoder_decoder = (
                with_vllm.engine(Path(model_dir), dtype=dtype, gpus=gpus),
                False,
            )
            return
        self.model = load_model(Path(model_dir), dtype=dtype, device=place(gpus), quantize=quantize)
        self.answer, self.encoder_decoder = (
            partial(generate, self.model),
            self.model.config.is_encoder_decoder,
        )

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        answers = [json.dumps(self._answer(*json.loads(text))) for text in batch.column("batch").to_pylist()]
        return pa.table({"predictions": answers})

    def _answer(self, number: int, items: Sequence[Item]) -> tuple[int, list[Prediction], float]:
        started = time.perf_counter()
        return number, self.predict(items), time.perf_counter() - started

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """The predictions of items that are all generations, or none of which is one.

        What is too much for the GPU's memory goes in two halves.
        """
        import torch

        try:
            return self._predicted(items)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
        torch.cuda.empty_cache()  # behind the `except`, which holds what the failed one had made
        half = len(items) // 2
        return [*self.predict(items[:half]), *self.predict(items[half:])]

    def _predicted(self, items: Sequence[Item]) -> list[Prediction]:
        if items[0]["kind"] == "generation":
            return predict_generations(
                self.answer, self.tokenizer, items, encoder_decoder=self.encoder_decoder
            )
        return predict_likelihoods(self.model, self.tokenizer, items)


def predict_likelihoods(model: Any, tokenizer: Tokenizer, items: Sequence[Item]) -> list[Prediction]:
    """Choices ranked by log-likelihood; references by their loss."""
    predictions = []
    encoder_decoder = model.config.is_encoder_decoder
    trees = [_tree(tokenizer, item, encoder_decoder) for item in items]
    alone = _unconditional(model, tokenizer, items)
    for item, tree, scores in zip(items, trees, score(model, trees), strict=True):
        spent = (len(tree.prompt), sum(map(len, tree.continuations)))
        means = [sum(tokens) / len(tokens) for tokens in scores]
        if item["kind"] == "reference":
            predictions.append(
                _prediction(item, output="", expected=item["reference"], score=-means[0], spent=spent)
            )
            continue
        ranked = {"length": means, "raw": [sum(tokens) for tokens in scores]}
        if item.get("ranking") == "unconditional":
            before = [alone[item["system"], choice] for choice in item["choices"]]
            ranked["unconditional"] = [
                with_ - without for with_, without in zip(ranked["raw"], before, strict=True)
            ]
        decisive = ranked[item.get("ranking", "length")]
        names, right = item.get("labels") or item["choices"], item["answer"]
        # of a model whose numbers are broken no choice is the likeliest, and none counts as chosen
        best = int(np.argmax(decisive)) if np.isfinite(decisive).all() else None
        predictions.append(
            _prediction(
                item,
                output="" if best is None else item["choices"][best],
                expected=item["choices"][right],
                score=math.nan if best is None else float(best == right),
                detail=ranked,
                labels=("" if best is None else names[best], names[right]),
                spent=spent,
            )
        )
    return predictions


def _unconditional(model: Any, tokenizer: Tokenizer, items: Sequence[Item]) -> dict[tuple[str, str], float]:
    """The log-likelihood of every choice behind no question, by system prompt and choice; each computed once."""
    asked = [item for item in items if item.get("ranking") == "unconditional"]
    choices: dict[str, dict[str, None]] = {}
    for item in asked:
        choices.setdefault(item["system"], {}).update(dict.fromkeys(item["choices"]))
    trees = [
        _tree(
            tokenizer,
            {"kind": "multiple_choice", "prompt": _NO_QUESTION, "system": system, "choices": list(texts)},
            model.config.is_encoder_decoder,
        )
        for system, texts in choices.items()
    ]
    found = score(model, trees) if trees else []
    return {
        (system, text): sum(tokens)
        for (system, texts), scores in zip(choices.items(), found, strict=True)
        for text, tokens in zip(texts, scores, strict=True)
    }


def predict_generations(
    answer: with_vllm.Answer, tokenizer: Tokenizer, items: Sequence[Item], *, encoder_decoder: bool = False
) -> list[Prediction]:
    """Greedy answers, graded by the item's rules, or by its task's metric against the reference; reasoning between
    `<think>` and `</think>` at the beginning is kept in `output` and not graded.

    `answer` is `generate` of a model, or vLLM's like.
    """
    prompts = [_prompt(tokenizer, item, encoder_decoder) for item in items]
    answers = answer(
        prompts,
        max_new_tokens=items[0]["max_new_tokens"],
        stop=sorted({end_of_turn(tokenizer), tokenizer.eos_token_id} - {None}),
    )
    predictions = []
    for item, prompt, ids in zip(items, prompts, answers, strict=True):
        spent = (len(prompt), len(ids))
        output = tokenizer.decode(ids, skip_special_tokens=True).strip()
        graded = without_reasoning(output)
        if item["check"]:
            failures = check(graded, item["check"], item.get("base"))
            predictions.append(
                _prediction(
                    item,
                    output=output,
                    expected=None,
                    score=float(not failures),
                    detail=failures,
                    labels=(graded, None),
                    spent=spent,
                )
            )
        else:
            # `evaluate` has asked for consent: an item with this metric that came so far has it
            wanted = item["reference"]
            score = grade(item["metric"], graded, wanted, allow_code=item["metric"] == "code")
            predictions.append(
                _prediction(
                    item, output=output, expected=wanted, score=score, labels=(graded, wanted), spent=spent
                )
            )
    return predictions


def without_reasoning(output: str) -> str:
    """What a model says behind the `<think>…</think>` that its answer begins with; all of it where that is not closed,
    as of an answer that grew too long."""
    found = _REASONING.match(output)
    return output[found.end() :] if found else output


def _prediction(
    item: Item,
    *,
    output: str,
    expected: str | None,
    score: float,
    spent: tuple[int, int],
    detail: Any = None,
    labels: tuple[str, str | None] | None = None,
) -> Prediction:
    # names of classes, where a prompt calls them A and B; an answer without the reasoning before it
    predicted, label = labels or (output, expected)
    return {
        **{key: item[key] for key in ("suite", "name", "id", "kind", "metric", "prompt")},
        "shots": item.get("shots", 0),
        "draw": item.get("draw", 0),
        "cut": item.get("cut", False),
        "asked": storage.value_digest([item.get(key) for key in _ASKED])[:16],
        "task_kind": item.get("task_kind", ""),
        "output": output,
        "expected": expected,
        "predicted": predicted,
        "label": label,
        "score": score,
        "chance": chance(item["kind"], [len(item["choices"])]) or 0.0,
        "prompt_tokens": spent[0],
        "new_tokens": spent[1],
        "detail": json.dumps(detail),
    }
