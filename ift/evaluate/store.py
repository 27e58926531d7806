"""Predictions that were made before: an evaluation that was cut short goes on, and a baseline is computed once.

In:  a folder of the cache, a digest of the model, how it was run; batches of items.
Out: the batch's predictions and the seconds they took; None where they are still to be made.

    store = Store(cache, model=base.digest(folder), dtype="float32", device="cpu")
    store.put(items, predictions, seconds=1.2)
    store.get(items)       # ([{"name": "arithmetic", "score": 1.0, ...}, ...], 1.2)

A batch is kept whole: the last digits of a likelihood hang on what it is computed together with, so what is found
is what would have come. The address says all that counts: the model, its number format, the kind of device, the
items with their prompts, metrics and settings, this code and the libraries that compute.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift import storage

_HOUSE = Path(__file__).resolve().parents[1]
# the sections whose code decides what is predicted, and its grade
_DECIDES = ("evaluate", "models", "prompts", "tasks")
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "rouge-score", "sacrebleu")


class Store:
    """Predictions of one model, run in one way."""

    def __init__(self, cache: Path, *, model: str, **how: str) -> None:
        address = storage.value_digest([model, how, _code()])
        self.folder = cache / "predictions" / address[:24]

    def get(self, items: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], float] | None:
        """What was predicted of exactly these items together, and the seconds it took."""
        kept = storage.read_json(self._path(items))
        return (kept["predictions"], kept["seconds"]) if kept else None

    def put(
        self, items: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], *, seconds: float
    ) -> None:
        """Keep them. Where a score is no number the model is broken, and nothing is kept."""
        if all(math.isfinite(prediction["score"]) for prediction in predictions):
            kept = {"seconds": seconds, "predictions": list(predictions)}
            storage.write_json(self._path(items), kept)

    def _path(self, items: Sequence[Mapping[str, Any]]) -> Path:
        return self.folder / f"{storage.value_digest(list(map(dict, items)))[:32]}.json"


@lru_cache(maxsize=1)
def _code() -> str:
    return storage.code_digest(_HOUSE, _DECIDES, _LIBRARIES)
