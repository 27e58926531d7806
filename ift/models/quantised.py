"""Checkpoints that are published in few bits: into ordinary weights, once, or a refusal.

In:  a model's folder whose config.json has a `quantization_config` (gpt-oss in MXFP4, FP8 repositories).
Out: a folder with the same model in bfloat16, which is trained, evaluated and exported as any other.

    folder = ordinary(Path("gpt-oss-20b"), cache=cache)     # cache/models/ordinary-4f1c…

What a quantiser makes of a model cannot be divided under ZeRO-3, and would be written as it makes it. Of other kinds
(AWQ, GPTQ, bitsandbytes) the model that they were made from is the better one to train.
"""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import psutil

from ift import storage
from ift.errors import IftError
from ift.models import base, remote_code

_KINDS = ("mxfp4", "fp8")
_GIB = 2**30


def kind(config: Mapping[str, Any]) -> str | None:
    """How the weights are quantised, by what a config.json says; None for ordinary ones."""
    for settings in (config, config.get("text_config") or {}):
        if found := settings.get("quantization_config"):
            return str(found.get("quant_method", "unknown"))
    return None


def check(config: Mapping[str, Any], name: str) -> None:
    """Raise `IftError` where the model `name` is quantised in a way that cannot be taken back."""
    found = kind(config)
    if found is None or found in _KINDS:
        return
    raise IftError(
        f"the weights of {name} are quantised ({found}), and such weights are not trained",
        wanted="a model in 16 or 32 bits, or in " + " or ".join(_KINDS) + ", of which 16 bits are made",
        hint="name the model that it was made from; train.adapter.quantize=4bit holds that one in 4 bits",
    )


def ordinary(folder: Path, name: str, *, cache: Path, notify: Callable[[str], None] = lambda _: None) -> Path:
    """`folder` where its weights are ordinary ones; else one of the same model in bfloat16, made once.

    `name` is what people know the model by.

    Raises `IftError` where that cannot be, and where disk or memory have no room for it.
    """
    config = storage.read_json(folder / "config.json") or {}
    check(config, name)
    if (found := kind(config)) is None:
        return folder
    states = [(path, path.stat()) for path in base.weight_files(folder)]
    files = [(str(path), state.st_size, state.st_mtime_ns) for path, state in states]
    target = cache / "models" / f"ordinary-{storage.value_digest([config, files])[:32]}"
    if (target / "config.json").is_file():
        return target
    needed = _size(folder)
    storage.require_room(target.parent, needed, f"{name} in 16 bits")
    if (free := psutil.virtual_memory().available) < needed:
        raise IftError(
            f"{name} in 16 bits takes {needed / _GIB:,.1f} GiB of memory once, to be written, and "
            f"{free / _GIB:,.1f} GiB are free here",
            wanted="a machine with more memory, or the model in 16 bits",
            hint="name a folder or a repository that has it in 16 bits as model.source",
        )
    notify(f"writing {name} in 16 bits, once")
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    # in a process of its own, whose memory goes back when it ends
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
        missing = child.submit(_write, folder, partial, found).result()
    if missing:
        shutil.rmtree(partial, ignore_errors=True)
        raise IftError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, {missing[0]} first",
            wanted="all of them",
            hint="fetch or save the model again",
        )
    try:
        os.replace(partial, target)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return target


def _size(folder: Path) -> int:
    """Bytes of the weights in bfloat16. Blocks of MXFP4 hold two numbers a byte; scales go."""
    from safetensors import safe_open

    count = 0
    for path in base.weight_files(folder):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not name.endswith(("_scales", "_scale_inv", "_scale")):
                    of_it = prod(tensors.get_slice(name).get_shape())
                    count += of_it * (2 if name.endswith("_blocks") else 1)
    return 2 * count


def _write(folder: Path, target: Path, found: str) -> list[str]:
    """The model of `folder` in bfloat16 into `target`; the names of what its files lack."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        FineGrainedFP8Config,
        Mxfp4Config,
    )

    base._quiet_transformers()
    options = remote_code.options(folder)
    config = AutoConfig.from_pretrained(folder, **options)
    how: Any = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}[found]
    loads = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, loaded = loads.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=how(dequantize=True),
        output_loading_info=True,
        **options,
    )
    missing: list[str] = sorted(loaded["missing_keys"])
    if missing:
        return missing
    # what was done to the weights would be undone as they are written
    if quantiser := getattr(model, "hf_quantizer", None):
        quantiser.remove_quantization_config(model)
    model._weight_conversions = None
    model.save_pretrained(target, max_shard_size="5GB")
    written = {path.name for path in target.iterdir()}
    for pattern in (*base._SETTINGS, base.CARD):
        for path in folder.glob(pattern):
            if path.name not in written and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)
    return []
