"""What the prepare stage is compared with, each on one core: TRL's own preparation, and the bare tokenizer.

In:  rows as JSON lines (instruction, input, output), how many of them, a model's folder, max_length.
Out: one JSON line: rows, tokens, seconds by the clock, seconds of CPU.

    python peers.py trl rows.jsonl 20000 MODEL 1024
    python peers.py datasets rows.jsonl 20000 MODEL 1024
    python peers.py tokenizer rows.jsonl 20000 MODEL 1024

`prepare.py` runs it in the environment of requirements-trl.txt; ift is not needed in it.
"""

import importlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BATCH = 1000  # texts in a call of the bare tokenizer, as in `datasets.map(batched=True)`


class Clock:
    """Seconds by the clock and of CPU since it was made; the CPU of processes that it waited for counts too."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": _cpu_seconds() - self._cpu}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def trl(rows: list[dict[str, str]], model: Path, max_length: int) -> dict[str, Any]:
    """What a user of TRL does: prompt and completion as messages, `SFTTrainer` with packing.

    Counted is `SFTTrainer`'s own preparation of the data set alone: chat template, tokens, labels, packs. Reading
    the file, putting rows into messages and loading a model are left out. The model is a very small one that
    nothing is asked of.
    """
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    library: Any = importlib.import_module("trl")  # only there in the peers' environment
    measured: dict[str, float] = {}

    class Timed(library.SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            clock = Clock()
            prepared = super()._prepare_dataset(*args, **kwargs)
            measured.update(clock.read())
            return prepared

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.from_pretrained(model, **small, num_key_value_heads=1, head_dim=8)
    messages = [
        {
            "prompt": [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=AutoModelForCausalLM.from_config(config),
            args=library.SFTConfig(
                output_dir=folder,
                packing=True,
                packing_strategy="bfd",
                max_length=max_length,
                completion_only_loss=True,
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(messages),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        packs = [len(pack) for pack in trainer.train_dataset["input_ids"]]
    return {"tokens": sum(packs), "packs": len(packs), **measured}


def mapped(rows: list[dict[str, str]], model: Path, max_length: int) -> dict[str, Any]:
    """`datasets.map` as the guides have it, with a process a core: chat template, tokens, labels; cut, not packed."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(model, model_max_length=sys.maxsize)

    def encoded(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        asked = [
            loaded.apply_chat_template(
                [{"role": "user", "content": f"{instruction}\n\n{text}"}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for instruction, text in zip(batch["instruction"], batch["input"], strict=True)
        ]
        prompts = loaded(asked, add_special_tokens=False)["input_ids"]
        answers = loaded([f"{text}<|im_end|>\n" for text in batch["output"]], add_special_tokens=False)[
            "input_ids"
        ]
        ids = [(p + a)[:max_length] for p, a in zip(prompts, answers, strict=True)]
        labels = [([-100] * len(p) + a)[:max_length] for p, a in zip(prompts, answers, strict=True)]
        return {"input_ids": ids, "labels": labels}

    found = Dataset.from_list(rows)
    clock = Clock()
    done = found.map(
        encoded, batched=True, num_proc=len(os.sched_getaffinity(0)), remove_columns=found.column_names
    )
    measured = clock.read()
    return {"tokens": sum(map(len, done["input_ids"])), **measured}


def tokenizer(rows: list[dict[str, str]], model: Path, max_length: int) -> dict[str, Any]:
    """The tokenizer on the bare text of the rows: no chat template, no labels, no packs, nothing written."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(model, model_max_length=sys.maxsize)
    texts = [f"{row['instruction']}\n\n{row['input']}\n{row['output']}" for row in rows]
    clock, tokens = Clock(), 0
    for start in range(0, len(texts), _BATCH):
        tokens += sum(map(len, loaded(texts[start : start + _BATCH])["input_ids"]))
    return {"tokens": tokens, **clock.read()}


_PEERS: dict[str, Callable[[list[dict[str, str]], Path, int], dict[str, Any]]] = {
    "trl": trl,
    "datasets": mapped,
    "tokenizer": tokenizer,
}


def main(peer: str, path: str, count: str, model: str, max_length: str) -> None:
    """Measure one peer on the first `count` rows."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    os.environ["HF_HUB_OFFLINE"] = "1"
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, int(count))]
    print(json.dumps({"rows": len(rows), **_PEERS[peer](rows, Path(model), int(max_length))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
