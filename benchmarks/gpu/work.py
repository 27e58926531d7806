"""The work that every arm is given: shapes of models, lengths of documents, what counts as an operation, and the peak.

In:  names and seeds.
Out: the same documents to the token for every arm; operations; the operations a second of a large matrix product.

    documents("dialogsum", tokens=40_000, vocabulary=128_256, longest=4096, seed=0)    # [Document([…], prompt=181), …]

Nothing but the standard library and torch: TRL's environment has no ift.
"""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a LlamaConfig takes. 1B, 3B and 8B are Llama 3's; weights are random.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "135M": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "1B": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "3B": {
        "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8B": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip

# Tokens of prompt and completion: log-normal, by median, spread, least and most. Stated, not measured: dialogues of a
# dozen turns with a summary of a sentence or two; FLAN's many short tasks; questions with answers of some paragraphs.
LENGTHS: dict[str, tuple[tuple[float, float, int, int], tuple[float, float, int, int]]] = {
    "dialogsum": ((200, 0.5, 40, 1500), (32, 0.45, 8, 120)),
    "flan": ((110, 0.9, 16, 1500), (8, 1.1, 1, 256)),
    "long": ((60, 0.9, 12, 1000), (420, 0.7, 16, 2048)),
}


@dataclass(frozen=True)
class Document:
    """An instruction: its tokens, and how many of the first are the prompt."""

    ids: list[int]
    prompt: int


def documents(kind: str, *, tokens: int, vocabulary: int, longest: int, seed: int) -> list[Document]:
    """As many as have `tokens` tokens together, none longer than `longest`."""
    rng = random.Random(f"{kind}/{seed}")
    found: list[Document] = []
    total = 0

    def length(median: float, spread: float, least: int, most: int) -> int:
        return min(most, max(least, round(rng.lognormvariate(math.log(median), spread))))

    while total < tokens:
        prompt, completion = (length(*sizes) for sizes in LENGTHS[kind])
        completion = max(1, min(completion, longest // 2))
        prompt = max(1, min(prompt, longest - completion))
        ids = [rng.randrange(3, vocabulary) for _ in range(prompt + completion)]
        found.append(Document(ids, prompt))
        total += len(ids)
    return found


def parameters(shape: Mapping[str, Any]) -> int:
    """Of a Llama of this shape, without embeddings and projection."""
    hidden, wide, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    keys = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    return layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * wide + 2 * hidden) + hidden


def operations(shape: Mapping[str, Any], *, tokens: int, projected: int) -> float:
    """Of forward and backward pass: 6 a token and weight that it passes; `projected` tokens reach the vocabulary.

    Chowdhery et al. 2022 (arXiv 2204.02311, appendix B) without attention, as ift/models/speed.py counts.
    """
    return 6.0 * (parameters(shape) * tokens + shape["hidden_size"] * shape["vocab_size"] * projected)


def synchronize(device: Any) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def matrix_peak(device: str, *, size: int | None = None, repeats: int = 20) -> float:
    """Operations a second of a square matrix product: bf16 on a GPU, fp32 on a CPU; the fastest of `repeats`."""
    import torch

    gpu = device == "cuda"
    size = size or (8192 if gpu else 1024)
    dtype = torch.bfloat16 if gpu else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(repeats + 2):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(one, other)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def forget_peak(device: str) -> None:
    """Count the peak of memory from here on."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # the kernel's high-water mark


def peak_memory(device: str) -> int:
    """Bytes at the most: of the GPU as torch has allocated them, of a process on CPU its resident memory."""
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory did not suffice."""
    return type(error).__name__ == "OutOfMemoryError"
