"""A real model, damaged on purpose, is caught; the same model against itself is not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ift.data.items import probe_items
from ift.evaluate import forgetting
from ift.evaluate.evaluator import Predictor, batches
from ift.tasks.probes import load_probes
from ift.tracking import gate

GOOD_TASK = {"name": "task", "gain": {"value": 0.2, "low": 0.1, "high": 0.3}}


def predictions(predictor: Predictor, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for group in batches(predictor.tokenizer, items, 2048):
        found.update(zip(group, predictor.predict([items[i] for i in group]), strict=True))
    return [found[i] for i in range(len(items))]


@pytest.mark.slow
@pytest.mark.real
def test_planted_forgetting_is_flagged_and_an_unchanged_model_is_not(real_model: Path) -> None:
    """Noise of a third of their spread on the weights of five layers of thirty."""
    items = probe_items(load_probes(["word_relations", "definitions"]))
    predictor = Predictor(str(real_model), "float32", 2, gpus=0)
    before, again = predictions(predictor, items), predictions(predictor, items)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in predictor.model.model.layers[10:15]:
            for p in layer.parameters():
                if p.dim() == 2:
                    p += torch.randn(p.shape, generator=generator) * p.std() / 3
    after = predictions(predictor, items)

    _, same = forgetting.compare(before, again)
    assert [row["drop"] for row in same] == [{"value": 0, "low": 0, "high": 0}] * 2
    assert not gate.breached(gate.decide([GOOD_TASK], same, max_drop=0.05))
    _, damaged = forgetting.compare(before, after)
    decision = gate.decide([GOOD_TASK], damaged, max_drop=0.05)
    assert gate.breached(decision), decision["lines"]
    assert forgetting.mean_drop(before, after)["low"] > 0.05  # type: ignore[operator]
