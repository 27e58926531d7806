"""Generation and choice ranking beside the loops that people write first, on the same prompts.

In:  the model of the quickstart; how many prompts.
Out: a table in Markdown, and the numbers as JSON: seconds, tokens a second, ratios, and whether the outputs are equal.

    .venv/bin/python benchmarks/evaluating.py --output evaluating.json
    .venv/bin/python benchmarks/evaluating.py --ways --output ways.json     # and what transformers has besides

The loops: `model.generate` on one prompt after the other, greedy; and a forward pass over prompt and choice for each
choice of each question, with all logits. Ours: what `ift evaluate` does in one of its processes. `--ways` adds
`model.generate` on the batches that ours takes, with its growing cache and with a static one, and transformers'
continuous batching. All run in this process with as many threads; they take turns, and a ratio is the median over the
turns.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ratios, spread, table, write
from transformers import GenerationConfig

from ift import storage
from ift.data.items import probe_items
from ift.evaluate.evaluator import batches
from ift.evaluate.generate import generate
from ift.evaluate.score import Tree, score
from ift.models import base
from ift.prompts.chat import encode_completion, encode_prompt, end_of_turn
from ift.spec import load
from ift.tasks.probes import load_probes

_JOB = Path(__file__).resolve().parents[1] / "jobs" / "quickstart.yaml"
_NEW = 96  # tokens of an answer at most


def main() -> None:
    """Take the turns; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ways", action="store_true", help="transformers' batches, static cache, continuous batching"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    spec = load(_JOB)
    folder = base.resolve(spec.model.source, cache=storage.cache_dir(), sha256=spec.model.sha256)
    model, tokenizer = base.load_model(folder), base.load_tokenizer(folder)
    items = probe_items(load_probes())
    random.Random(0).shuffle(items)
    written = [{**i, "max_new_tokens": _NEW} for i in items if i["kind"] == "generation"][: arguments.prompts]
    asked = [i for i in items if i["kind"] == "multiple_choice"][: arguments.questions]
    rows = [
        *measured("generation", *generation(model, tokenizer, written, arguments.ways), arguments.rounds),
        *measured("choice ranking", *ranking(model, tokenizer, asked), arguments.rounds),
    ]
    head = ["what", "beside", "its s", "ours, s", "ours, tokens/s", "its / ours", "outputs"]
    lines = [
        [
            row["what"],
            row["beside"],
            f"{row['its_s']:.1f}",
            f"{row['ours_s']:.1f}",
            f"{row['tokens'] / row['ours_s']:.0f}",
            f"{row['ratio']:.1f} ({row['from']:.1f} to {row['to']:.1f})",
            row["outputs"],
        ]
        for row in rows
    ]
    print(f"\n{table(head, lines)}")
    write(arguments.output, rows, asked=vars(arguments), packages=("ift", "torch", "transformers"))


def measured(
    what: str,
    arms: Mapping[str, Callable[[], Any]],
    equal: Callable[[Any, Any], tuple[int, str]],
    rounds: int,
) -> list[dict[str, Any]]:
    """All in turn, the first turn of each thrown away; a row for each arm that ours is beside."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    found: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, work in arms.items():
            started = time.perf_counter()
            found[name] = work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for name in arms:
        if name == "ours":
            continue
        beside = ratios(seconds[name], seconds["ours"])
        tokens, outputs = equal(found[name], found["ours"])
        rows.append(
            {
                "what": what,
                "beside": name,
                "its_s": spread(seconds[name]).median,
                "ours_s": spread(seconds["ours"]).median,
                "ratio": beside.median,
                "from": beside.low,
                "to": beside.high,
                "tokens": tokens,
                "outputs": outputs,
            }
        )
    return rows


def generation(
    model: Any, tokenizer: Any, items: Sequence[dict[str, Any]], ways: bool
) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The loop, ours, what else transformers has; and how their answers compare."""
    prompts = [encode_prompt(tokenizer, item["prompt"]) for item in items]
    stop = sorted({end_of_turn(tokenizer), tokenizer.eos_token_id} - {None})
    model.generation_config.repetition_penalty = None  # what is compared is greedy
    greedy = {"max_new_tokens": _NEW, "do_sample": False, "eos_token_id": stop, "pad_token_id": stop[0]}
    alike = [{**item, "name": "all", "suite": "probe"} for item in items]  # one task, as a real one has many
    groups = list(batches(tokenizer, alike, 8192))

    def generated(group: Sequence[int], **options: Any) -> list[list[int]]:
        """`model.generate` on these prompts, padded on the left."""
        width = max(len(prompts[i]) for i in group)
        ids = torch.full((len(group), width), stop[0])
        mask = torch.zeros_like(ids)
        for row, i in enumerate(group):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=mask, **greedy, **options)
        return [[t for t in row if t not in stop] for row in output[:, width:].tolist()]

    def loop() -> list[list[int]]:
        return [generated([i])[0] for i in range(len(prompts))]

    def in_groups(work: Callable[[Sequence[int]], list[list[int]]]) -> list[list[int]]:
        answers: dict[int, list[int]] = {}
        for group in groups:
            answers.update(zip(group, work(group), strict=True))
        return [answers[i] for i in range(len(items))]

    def ours() -> list[list[int]]:
        return in_groups(lambda g: generate(model, [prompts[i] for i in g], max_new_tokens=_NEW, stop=stop))

    def continuous() -> list[list[int]]:
        found = model.generate_batch(prompts, generation_config=GenerationConfig(**greedy))
        return [[t for t in answer.generated_tokens if t not in stop] for answer in found.values()]

    arms: dict[str, Callable[[], Any]] = {"one by one": loop, "ours": ours}
    if ways:
        arms["generate in batches"] = lambda: in_groups(generated)
        arms["… static cache"] = lambda: in_groups(lambda g: generated(g, cache_implementation="static"))
        arms["continuous batching"] = continuous

    def equal(one: list[list[int]], other: list[list[int]]) -> tuple[int, str]:
        same = sum(a == b for a, b in zip(one, other, strict=True))
        return sum(map(len, other)), f"{same} of {len(one)} answers equal"

    return arms, equal


def ranking(
    model: Any, tokenizer: Any, items: Sequence[dict[str, Any]]
) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The loop, ours, and how their log-likelihoods compare."""
    prompts = [encode_prompt(tokenizer, item["prompt"]) for item in items]
    choices = [[encode_completion(tokenizer, choice)[:-1] for choice in item["choices"]] for item in items]

    def loop() -> list[list[float]]:
        found = []
        for prompt, these in zip(prompts, choices, strict=True):
            scores = []
            for choice in these:
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor([prompt + choice])).logits[0]
                likely = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
                scores.append(float(likely[torch.arange(len(choice)), choice].mean()))
            found.append(scores)
        return found

    def ours() -> list[list[float]]:
        found: dict[int, list[float]] = {}
        alike = [{**item, "name": "all"} for item in items]
        for group in batches(tokenizer, alike, 4096):
            trees = [Tree(prompts[i], choices[i]) for i in group]
            for i, scores in zip(group, score(model, trees), strict=True):
                found[i] = [sum(tokens) / len(tokens) for tokens in scores]
        return [found[i] for i in range(len(items))]

    def equal(one: list[list[float]], other: list[list[float]]) -> tuple[int, str]:
        apart = max(abs(x - y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))
        same = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(one, other, strict=True))
        read = sum(len(p) + sum(map(len, c)) for p, c in zip(prompts, choices, strict=True))
        return read, f"{same} of {len(one)} first choices equal, {apart:.0e} nats apart at most"

    return {"choice by choice": loop, "ours": ours}, equal


if __name__ == "__main__":
    main()
