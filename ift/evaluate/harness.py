"""Tasks of the lm-evaluation-harness as probes, where it is installed (`pip install ift[harness]`).

In:  a folder with a model, names of the harness's tasks.
Out: predictions as those of evaluator.py, an item each, so that drops, intervals and the gate treat them alike.

    harness_predictions(folder, ["arc_easy"], limit=100, dtype="float32", device="cpu")
    # [{"suite": "probe", "name": "arc_easy", "id": "17", "score": 1.0, ...}, ...]

The harness fetches its data sets from the hub, words the items and grades them (Gao et al., the language model
evaluation harness, doi 10.5281/zenodo.10256836); of what it grades an item by, the first of `_SCORES` counts.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ift.errors import IftError, nearest
from ift.evaluate.store import Store
from ift.tasks.scores import chance

Prediction = dict[str, Any]
_SCORES = ("acc_norm", "acc", "exact_match", "f1")  # of an item, from 0 to 1


def check(names: Sequence[str], *, include: Path | None = None) -> None:
    """Raise `IftError` where the harness is not installed, or has no task of such a name."""
    if not names:
        return
    known = _manager(include).all_tasks
    for name in names:
        if name not in known:
            raise IftError(
                f"the lm-evaluation-harness has no task `{name}`",
                wanted=f"one of its {len(known):,} (`lm_eval ls tasks`)",
                hint=nearest(name, known),
            )


def harness_predictions(
    model_dir: Path,
    names: Sequence[str],
    *,
    limit: int | None,
    dtype: str,
    device: str,
    quantize: str = "none",
    shots: int = 0,
    batch_size: int = 16,
    include: Path | None = None,
) -> list[Prediction]:
    """What the model answers, task by task. Raises `IftError` where a task grades no single item from 0 to 1."""
    manager = _manager(include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from ift.models import base

    model = HFLM(
        pretrained=base.load_model(model_dir, dtype=dtype, device=device, quantize=quantize),
        tokenizer=base.load_tokenizer(model_dir),
        batch_size=batch_size,
    )
    found = simple_evaluate(
        model=model,
        tasks=list(names),
        num_fewshot=shots or None,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,  # intervals are ours, and paired
        task_manager=manager,
    )
    return [
        _prediction(name, sample) for name, samples in found["samples"].items() for sample in _first(samples)
    ]


def _first(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One sample a document: a task that reads its answers in several ways (filters, as gsm8k's strict-match and
    flexible-extract) has one for each, of which the first counts."""
    first: dict[Any, Mapping[str, Any]] = {}
    for sample in samples:
        first.setdefault(sample["doc_id"], sample)
    return list(first.values())


def kept_predictions(
    store: Store, model_dir: Path, names: Sequence[str], *, limit: int | None, **how: Any
) -> list[Prediction]:
    """`harness_predictions`, task by task; what `store` has is not asked again."""
    found: list[Prediction] = []
    # where it runs, the store's own address says
    decides = {key: str(value) for key, value in how.items() if key not in ("dtype", "device", "quantize")}
    for name in names:
        asked = [{"harness": name, "version": metadata.version("lm-eval"), "limit": limit, **decides}]
        kept = store.get(asked)
        made = kept[0] if kept else harness_predictions(model_dir, [name], limit=limit, **how)
        if not kept:
            store.put(asked, made, seconds=0.0)
        found += made
    return found


def _manager(include: Path | None) -> Any:
    if find_spec("lm_eval") is None:
        raise IftError(
            "`evaluate.harness` names tasks, and the lm-evaluation-harness is not installed",
            wanted="the package lm-eval",
            hint="pip install -c constraints.txt '.[harness]' in the checkout, or leave evaluate.harness out",
        )
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include) if include else None)


def _prediction(name: str, sample: Mapping[str, Any]) -> Prediction:
    metric = next((m for m in _SCORES if isinstance(sample.get(m), int | float)), None)
    if metric is None:
        raise IftError(
            f"the harness's task `{name}` grades its items by {', '.join(sample.get('metrics', ())) or 'nothing'}",
            wanted=f"one of {', '.join(_SCORES)}",
            hint="leave it out of evaluate.harness",
        )
    arguments, responses = sample["arguments"], sample["filtered_resps"]  # one a choice, or one in all
    choices = len(arguments) if metric.startswith("acc") else 0
    return {
        "suite": "probe",
        "name": name,
        "id": str(sample["doc_id"]),
        "kind": "multiple_choice" if choices else "generation",
        "metric": metric,
        "prompt": str(arguments[0][0]),
        "shots": 0,
        "draw": 0,
        "cut": False,
        "task_kind": "",
        "output": str(responses[0]) if not choices else "",
        "expected": str(sample.get("target", "")),
        "predicted": "",
        "label": str(sample.get("target", "")),
        "score": float(sample[metric]),
        "chance": chance("multiple_choice", [choices]) if choices else 0.0,
        "prompt_tokens": 0,
        "new_tokens": 0,
        "detail": json.dumps(responses if choices else None, default=str),
    }
