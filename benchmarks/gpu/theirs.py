"""TRL's SFTTrainer with its best settings, and transformers' Trainer with DeepSpeed, on the documents that ours is
given. ift is not needed here.

In:  a case as JSON, as for ours.py; `peer` is trl or trainer, `packed` says whether rows hold several documents,
     `micro_batch` how many rows.
Out: one JSON line: seconds of each step, tokens, peak memory; `{"skipped": why}` where it cannot be.

    python theirs.py '{"peer": "trl", "model": "/tmp/1B", "shape": "1B", "lengths": "dialogsum", "packed": true, …}'

On a GPU: FlashAttention where its package is installed, Liger's kernels with the fused loss where they are, bf16 with
weights and moments in fp32 (as ours has them), torch's fused AdamW. The loss counts completions alone. The Trainer pads
its rows and is what the guides of transformers show: a data collator, `deepspeed=` with ZeRO-1.
"""

import importlib
import json
import os
import socket
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
import work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Tokenizer:
    """What SFTTrainer asks of one where rows hold ids already: a pad token. Made here, for the model has none."""

    @staticmethod
    def make() -> Any:
        from tokenizers import Tokenizer as Made
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        made = Made(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
        return PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )


def trl_trainer(
    case: dict[str, Any], options: dict[str, Any], rows: list[dict[str, Any]], timed: type
) -> tuple[type, dict[str, Any]]:
    """The class and what it is made of; `rows` have ids and the mask of their completion."""
    from datasets import Dataset

    library: Any = importlib.import_module("trl")
    arguments = library.SFTConfig(
        packing=case["packed"],
        packing_strategy="bfd",
        max_length=case["length"],
        completion_only_loss=True,
        **options,
    )
    return type("Timed", (timed, library.SFTTrainer), {}), {
        "args": arguments,
        "train_dataset": Dataset.from_list(rows),
        "processing_class": Tokenizer.make(),
    }


def plain_trainer(
    case: dict[str, Any], options: dict[str, Any], rows: list[dict[str, Any]], timed: type
) -> tuple[type, dict[str, Any]]:
    """transformers' own, with DeepSpeed; rows are padded to the longest of a micro-batch."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    engine = {
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": DEVICE == "cuda"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in batch)
        ids, mask = (torch.zeros(len(batch), width, dtype=torch.int64) for _ in range(2))
        labels = torch.full_like(ids, -100)
        for at, row in enumerate(batch):
            own = torch.tensor(row["input_ids"])
            ids[at, : len(own)], mask[at, : len(own)] = own, 1
            labels[at, : len(own)] = own.where(torch.tensor(row["completion_mask"]).bool(), -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return type("Timed", (timed, Trainer), {}), {
        "args": TrainingArguments(deepspeed=engine, remove_unused_columns=False, **options),
        "train_dataset": Dataset.from_list(rows),
        "data_collator": collate,
    }


def train(case: dict[str, Any]) -> dict[str, Any]:
    """One run; the first `warm` steps are not counted."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(case.get("threads") or torch.get_num_threads())
    steps, gpu = case["warm"] + case["steps"], DEVICE == "cuda"
    found = work.documents(
        case["lengths"],
        tokens=round(1.1 * (case["batch"] * (steps + 2) + 1) * case["length"]),
        vocabulary=work.SHAPES[case["shape"]]["vocab_size"],
        longest=case["length"],
        seed=case["seed"],
    )
    rows = [
        {"input_ids": d.ids, "completion_mask": [int(i >= d.prompt) for i in range(len(d.ids))]}
        for d in found
    ]
    flash = gpu and find_spec("flash_attn") is not None
    liger = gpu and find_spec("liger_kernel") is not None
    model = AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=torch.float32, attn_implementation="flash_attention_2" if flash else "sdpa"
    )
    began: list[float] = []
    counted: list[list[int]] = []

    class Timed:
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if not began:
                work.synchronize(DEVICE)
                began.append(time.perf_counter())
                counted.append([0, 0])
            mask = inputs.get("attention_mask")
            counted[-1][0] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            counted[-1][1] += int((inputs["labels"] != -100).sum())
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            work.synchronize(DEVICE)
            began.append(time.perf_counter())
            counted.append([0, 0])

    documents_a_pack = max(1, round(len(found) / (sum(len(d.ids) for d in found) / case["length"])))
    # as many tokens a step with and without packing: rows of one document are shorter
    a_step = case["batch"] if case["packed"] else case["batch"] * documents_a_pack
    micro = min(case["micro_batch"] if case["packed"] else case["micro_batch"] * documents_a_pack, a_step)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "max_steps": steps,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": max(1, a_step // micro),
            "gradient_checkpointing": bool(case["again"]),
            "optim": "adamw_torch_fused",
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "bf16": gpu,
            "use_cpu": not gpu,
            "use_liger_kernel": liger,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": case["seed"],
        }
        make = {"trl": trl_trainer, "trainer": plain_trainer}[case["peer"]]
        kind, given = make(case, options, rows, Timed)
        trainer = kind(model=model, callbacks=[Clock()], **given)
        work.forget_peak(DEVICE)
        trainer.train()
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = [b - a for a, b in pairwise(began)][case["warm"] :]
    these = counted[case["warm"] : steps]
    words = ["DeepSpeed"] * (case["peer"] == "trainer")
    words += ["packed" if case["packed"] else "padded", f"micro-batch {micro}"]
    words += ["activation checkpointing"] * bool(case["again"]) + ["Liger"] * liger
    words += ["FlashAttention" if flash else "sdpa"]
    return {
        "how": ", ".join(words),
        "micro_batch": micro,
        "seconds": seconds,
        "tokens": [tokens for tokens, _ in these],
        "supervised": [supervised for _, supervised in these],
        "loss": logged,
        "peak_bytes": work.peak_memory(DEVICE),
    }


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def main(text: str) -> None:
    """Train, or say why not."""
    case = json.loads(text)
    needed = "trl" if case["peer"] == "trl" else "deepspeed"
    if find_spec(needed) is None:
        print(json.dumps({"skipped": f"{needed} is not installed in {sys.prefix}"}))
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    if case["peer"] == "trainer":  # as DeepSpeed's launcher would; TRL is started as one starts it alone
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        os.environ.update({"DS_ACCELERATOR": DEVICE, **ranks, **place})
    try:
        result = train(case)
    except Exception as error:
        if not work.out_of_memory(error):
            raise
        result = {"skipped": "out of memory", "out_of_memory": True}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
