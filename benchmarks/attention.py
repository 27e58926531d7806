"""What attention by documents saves: `packed` beside transformers' own masks, on full packs.

In:  how many tokens a document has on average; a model's shape, with random weights.
Out: a table of CPU seconds for the forward and backward pass of one pack, and their ratio; the same as JSON.

    .venv/bin/python benchmarks/attention.py --output attention.json
    .venv/bin/python benchmarks/attention.py --layers 4 --rounds 1             # a try

The two take turns, and the first turn of each is thrown away; a ratio is the median over the turns. A fifth of the
tokens is supervised. CPU seconds, and not those of a clock, for others may be at work on the machine.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from common import ratios, spread, table, write

from ift.data.stream import Pack
from ift.models import attention
from ift.train.loss import collate, loss_sum, probe_isolation

_PATHS = ("sdpa", "packed")


def model_of(layers: int) -> Any:
    """SmolLM2-135M's shape with `layers` of its 30 layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def pack_of(tokens: int, average: int, seed: int) -> Pack:
    """A full pack of documents of `average` tokens, more or less by a third; the last fifth of each is supervised."""
    rng = random.Random(seed)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        length = min(left, round(average * rng.uniform(2 / 3, 4 / 3)))
        lengths.append(length if left - length > 1 else left)
    return Pack(
        tokens=[rng.randrange(3, 49000) for _ in range(tokens)],
        supervised=[i >= max(1, length * 4 // 5) for length in lengths for i in range(length)],
        lengths=lengths,
        examples=[str(i) for i in range(len(lengths))],
        tasks=["random"] * len(lengths),
        templates=["none"] * len(lengths),
    )


def measure(model: Any, pack: Pack, rounds: int) -> dict[str, Any]:
    """CPU seconds of each path in each turn, their ratios and the median of these, and each path's relative error."""
    seconds: dict[str, list[float]] = {path: [] for path in _PATHS}
    errors = {}
    for turn in range(rounds + 1):
        for path in _PATHS:
            attention.use(model, path)
            model.zero_grad()
            begun = time.process_time()
            loss, _ = loss_sum(model, collate([pack], "cpu"))
            loss.backward()
            if turn:
                seconds[path].append(time.process_time() - begun)
    for path in _PATHS:
        attention.use(model, path)
        errors[path] = probe_isolation(model, [pack], "cpu")
    return {
        "documents": len(pack.lengths),
        "longest": max(pack.lengths),
        "cpu_seconds": seconds,
        "ratio": vars(ratios(seconds["sdpa"], seconds["packed"])),
        "errors": errors,
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of a pack")
    parser.add_argument(
        "--averages", type=int, nargs="+", default=[40, 120, 500], help="tokens of a document"
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = model_of(asked.layers)
    results, rows = {}, []
    for average in asked.averages:
        found = results[average] = measure(model, pack_of(asked.tokens, average, average), asked.rounds)
        sdpa, packed = (spread(found["cpu_seconds"][path]).median for path in _PATHS)
        ratio = found["ratio"]
        rows.append(
            [
                average,
                found["documents"],
                f"{sdpa:.2f}",
                f"{packed:.2f}",
                f"{ratio['median']:.2f}",
                f"{ratio['low']:.2f} – {ratio['high']:.2f}",
            ]
        )
    head = ["documents of", "in a pack", "sdpa, CPU s", "packed, CPU s", "sdpa / packed", "from – to"]
    print(table(head, rows))
    write(asked.output, results, asked=vars(asked), packages=("ift", "torch", "transformers"))


if __name__ == "__main__":
    main()
