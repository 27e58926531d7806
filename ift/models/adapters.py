"""Adapters: small matrices that are trained while the model's own weights stay as they are.

In:  an ordinary model as `base.load_model` gives it, and an `Adapter`.
Out: the same model with trainable matrices beside its linear layers; a folder that holds these alone; or an ordinary
     model folder into which they are merged.

    model = attach(base.load_model(folder), Adapter(kind="lora", rank=16), seed=17)
    save(model, Path("adapter"), on=folder)    # adapter_model.safetensors, adapter_config.json
    base.load_model(Path("adapter"))             # on its base, ready to be asked
    merge(Path("adapter"), Path("merged"))       # an ordinary folder with the same logits

An adapter says `y = W x + s · B A x`, with `A` of shape `(rank, in)` and `B` of `(out, rank)`, `B` zero at first:

    lora      s = alpha / rank          (Hu et al. 2021)
    rslora    s = alpha / sqrt(rank)    a higher rank is not held back (Kalajdzievski 2023)
    dora      as lora, and the length of each row of `W + s · B A` is trained apart from its direction (Liu et al. 2024)

With `quantize="4bit"` the frozen `W` is held in 4 bits (QLoRA, Dettmers et al. 2023).
"""

import copy
import importlib.util
import math
import os
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift import storage
from ift.errors import IftError, nearest
from ift.models import base, remote_code

WEIGHTS = "adapter_model.safetensors"
# beside an adapter that was trained on a quantised base; PEFT's own config has no place for it
QUANTIZED = "quantized_base.json"


@dataclass(frozen=True)
class Adapter:
    """What is trained instead of the weights."""

    kind: str = "lora"  # lora | rslora | dora
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    quantize: str = "none"  # none | 4bit


# Before training.


def check(adapter: Adapter, *, zero_stage: int) -> None:
    """Raise `IftError` where the base cannot be held as `adapter` asks: known before anything is loaded."""
    if adapter.quantize == "none":
        return
    if zero_stage == 3:
        raise IftError(
            "`train.adapter.quantize` is 4bit and `train.zero_stage` is 3",
            wanted="one of them: ZeRO-3 cannot divide weights of 4 bits among the workers",
            hint="train.zero_stage=2 (the frozen weights are a quarter of their size on every worker), or "
            "train.adapter.quantize=none",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise IftError(
            "`train.adapter.quantize` is 4bit and bitsandbytes is not installed",
            wanted="the package that holds weights in 4 bits",
            hint="pip install bitsandbytes",
        )


def check_targets(adapter: Adapter, folder: Path) -> None:
    """Raise the `IftError` that `attach` would, from the config of the model in `folder` alone: in a second or two."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(folder, **remote_code.options(folder))
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        _targets(kind.from_config(config, **remote_code.of_config(config)), adapter.targets)


def quantized(dtype: str, device: str) -> dict[str, Any]:
    """What `from_pretrained` needs to hold the weights in 4 bits (NF4, its scales quantised too)."""
    import torch
    from transformers import BitsAndBytesConfig

    check(Adapter(quantize="4bit"), zero_stage=0)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config, "device_map": device if device == "auto" else {"": device}}


def attach(model: Any, adapter: Adapter, *, seed: int) -> Any:
    """`model` with an adapter beside its linear layers; only that is trainable, and it changes nothing yet.

    Goes between loading and `deepspeed.initialize`, where weights may be partitioned already and the adapter's are
    not yet. The adapter has the model's own dtype: left at PEFT's default it would be float32 in a bfloat16 model,
    which DeepSpeed converts at stages 0 to 2 and not under ZeRO-3. The float32 that training needs is DeepSpeed's
    copy of the weights for the optimizer.

    Raises `IftError` where a target is no linear layer of the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    asked = _targets(model, adapter.targets)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=adapter.dropout,
        target_modules=asked,
        use_rslora=adapter.kind == "rslora",
        use_dora=adapter.kind == "dora",
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), (
            f"{name} is trainable: {parameter.requires_grad}"
        )
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)
            if ".lora_A." in name:
                parameter.data.copy_(_drawn(parameter.shape, f"{seed}/{name}"))
    return adapted


def _drawn(shape: Sequence[int], key: str) -> Any:
    """What an `A` begins with: uniform as in a linear layer of torch, but a function of `key` alone.

    The global generator has drawn other things before, and more or fewer of them by ZeRO stage and version.
    """
    import torch

    generator = torch.Generator().manual_seed(random.Random(f"adapter/{key}").getrandbits(63))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _targets(model: Any, asked: str | tuple[str, ...]) -> str | list[str]:
    """`asked`, once each name in it is that of a linear layer which can have an adapter."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)
    }
    body = [name for name, layer in layers.items() if layer is not head]
    if not body:
        raise IftError(
            f"{type(model).__name__} has no linear layers for an adapter",
            wanted="layers of torch.nn.Linear, or GPT-2's Conv1D; weights in other forms, such as fused experts, "
            "have no adapters",
            hint="train.method=full",
        )
    if isinstance(asked, str):
        return asked
    for target in asked:
        found = [layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")]
        if not found:
            short = sorted({name.rpartition(".")[2] for name in body})
            raise IftError(
                f"`train.adapter.targets`: {type(model).__name__} has no linear layer `{target}`",
                wanted=f"all-linear, or some of {', '.join(short)}",
                hint=nearest(target, [*short, *body]),
            )
        if tied and any(layer is head for layer in found):
            raise IftError(
                f"`train.adapter.targets`: `{target}` shares its weights with the input embeddings",
                wanted="a layer with weights of its own: an adapter on this one could not be merged",
                hint="leave it out",
            )
    return list(asked)


# A folder that holds an adapter.


def save(model: Any, folder: Path, *, on: Path) -> None:
    """Write the adapter of `model` alone, trained on the model in `on`, to `folder`. One rank calls this.

    The adapter's weights have to be whole: under ZeRO-3 that is inside `deepspeed.zero.GatheredParameters`, which
    every rank enters.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    # "auto" would ask the hub about the base, and write embeddings where its config cannot be had
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    short = [name for name, tensor in tensors.items() if not tensor.numel()]
    assert not short, f"{len(short)} weights of the adapter are still partitioned, {short[0]} first"
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = str(on.resolve())
    config.target_modules = sorted(config.target_modules)  # a set: its order is another in each process
    config.save_pretrained(folder)
    if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
        storage.write_json(folder / QUANTIZED, {"quantize": "4bit"})
    storage.write_text(folder / "README.md", front_matter("") + f"# An adapter of rank {config.r}\n")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )


def name_base(folder: Path, source: str, revision: str | None) -> None:
    """Write into the adapter in `folder` that its base is the hub's `source`; a local folder's path stays."""
    if base.is_hub_id(source):
        config = _config(folder)
        config |= {"base_model_name_or_path": source, "revision": revision}
        storage.write_json(folder / base.ADAPTER, config)


def front_matter(source: str, *, library: str = "peft") -> str:
    """What the card of an adapter begins with, or of a model made with one; the hub knows a base by its id alone."""
    named = f"base_model: {source}\n" if base.is_hub_id(source) else ""
    return f"---\nlibrary_name: {library}\n{named}pipeline_tag: text-generation\ntags: [ift, lora]\n---\n\n"


def base_of(folder: Path) -> Path:
    """The folder of the model that the adapter in `folder` was trained on.

    It is where the adapter's config says, or what `ift.json` beside it names, which a run writes: a source that is
    fetched where it is not there yet. Raises `IftError` where neither leads to a model.
    """
    config = _config(folder)
    named = config.get("base_model_name_or_path") or ""
    recorded = (storage.read_json(folder / "ift.json") or {}).get("model") or {}
    sources: list[dict[str, Any]] = []
    if named and Path(named).is_dir():
        sources.append({"source": named})
    if recorded:
        sources.append({key: recorded.get(key) for key in ("source", "revision", "sha256")})
    if base.is_hub_id(named):
        sources.append({"source": named, "revision": config.get("revision")})
    tried = [f"{named or 'nothing'} ({base.ADAPTER})"]
    for place in sources:
        try:
            found = base.resolve(**place, cache=storage.cache_dir())
        except IftError as error:
            tried.append(f"{place['source']}: {error.what}")
            continue
        if not base.is_adapter(found):
            return found
        tried.append(f"{place['source']}: an adapter itself")
    raise IftError(
        f"the model that the adapter in {folder} was trained on is not to be had; looked for "
        + "; ".join(tried),
        wanted="the same model, in a folder or from its source",
        hint=f"put its folder as `base_model_name_or_path` into {folder / base.ADAPTER}",
    )


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the adapter in `folder` belongs to an encoder–decoder."""
    kind = _config(folder).get("task_type")
    return kind == "SEQ_2_SEQ_LM" if kind else base.is_encoder_decoder(base_of(folder))


def load(folder: Path, *, dtype: str, device: str) -> Any:
    """The adapter's model in eval mode, as an ordinary model of transformers.

    In float32 the adapter is merged, which is faster and the same to rounding. In bfloat16 it stays beside the
    weights: added to them, part of what it says would be rounded off. So it does beside weights of 4 bits.
    """
    quantize = "4bit" if (folder / QUANTIZED).is_file() else "none"
    model = base.load_model(base_of(folder), dtype=dtype, device=device, quantize=quantize)
    adapted = _on(model, folder, "cuda" if device == "auto" else device)
    merged = dtype == "float32" and quantize == "none"
    return (adapted.merge_and_unload() if merged else adapted.get_base_model()).eval()


def _on(model: Any, folder: Path, device: str = "cpu") -> Any:
    """`model` with the adapter in `folder` beside its layers. Raises `IftError` where it does not fit."""
    from peft import LoraConfig, PeftModel

    base.resolve(str(folder), cache=storage.cache_dir())  # PEFT would read pickled weights as well
    config = LoraConfig.from_pretrained(str(folder))
    config.megatron_config = None  # with one, PEFT would import a module that the file names
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT uses of transformers that has another name by now
            adapted = PeftModel(model, config, autocast_adapter_dtype=False)
            loaded = adapted.load_adapter(
                str(folder), "default", torch_device=device, autocast_adapter_dtype=False
            )
    except (RuntimeError, ValueError) as error:  # other shapes, or other names
        raise IftError(
            f"the adapter in {folder} does not fit its base: {str(error).strip().splitlines()[0][:200]}",
            wanted="the model that it was trained on",
            hint=f"see `base_model_name_or_path` in {folder / base.ADAPTER}",
        ) from error
    if missing := sorted(loaded.missing_keys):
        raise IftError(
            f"{folder / WEIGHTS} lacks {len(missing)} tensors of the adapter, {missing[0]} first",
            wanted="all of them; PEFT would make them up at random",
            hint="fetch or save the adapter again",
        )
    return adapted


def _config(folder: Path) -> dict[str, Any]:
    config = storage.read_json(folder / base.ADAPTER)
    if config is None or config.get("peft_type") != "LORA":
        kind = "missing" if config is None else f"of the kind {config.get('peft_type')}"
        raise IftError(
            f"the adapter in {folder} is {kind}", wanted="a LoRA, rsLoRA or DoRA adapter as PEFT saves it"
        )
    return config


# An ordinary model out of an adapter.


def merge(
    folder: Path, output: Path, *, dtype: str | None = None, notify: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Add the adapter in `folder` to the weights of its base; write an ordinary model folder, checked, to `output`.

    The weights are added in float32 and written in `dtype`, else in that of the base. What was trained on 4 bits is
    added to the whole weights of its base, so its logits differ from those in training by that quantisation.

    Raises `IftError` where `output` exists, or where the merged model answers differently from the adapter.
    """
    import torch
    from transformers import AutoConfig

    if output.exists():
        raise IftError(f"{output} exists", wanted="the name of a folder that is not there yet")
    model_folder = base_of(folder)
    count = base.parameter_count(model_folder)
    storage.require_room(output.absolute().parent, 4 * count, "the merged model")
    written = AutoConfig.from_pretrained(model_folder, **remote_code.options(model_folder)).dtype
    stored = getattr(torch, dtype) if dtype else written or torch.float32
    encoder_decoder = is_encoder_decoder(folder)

    def logits(model: Any) -> list[Any]:
        return [base.reference_logits(model, ids, encoder_decoder=encoder_decoder) for ids in sequences]

    notify("loading the base")
    adapted = _on(base.load_model(model_folder), folder)
    sequences = _sequences(adapted.config.vocab_size)
    expected = logits(adapted)
    notify("merging")
    merged = adapted.merge_and_unload()
    made = {
        "adapter": str(folder),
        "base": _config(folder)["base_model_name_or_path"],
        "dtype": str(stored).removeprefix("torch."),
        "parameters": count,
        "relative_error": _agree(logits(merged), expected, 1e-4, "the merged model"),
    }
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        notify("writing")
        merged.to(stored).save_pretrained(partial)
        base.save_tokenizer(base.load_tokenizer(folder), partial)
        del adapted, merged
        notify("reading it again")
        tolerance = 1e-4 if stored == torch.float32 else 3e-2
        error = _agree(logits(base.load_model(partial)), expected, tolerance, "the merged model, as written,")
        made["relative_error_as_written"] = error
        storage.write_text(partial / "README.md", _card(output.name, made))
        storage.write_json(
            partial / "ift.json", {**(storage.read_json(folder / "ift.json") or {}), "merged": made}
        )
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _card(name: str, made: dict[str, Any]) -> str:
    return (
        f"{front_matter(made['base'], library='transformers')}# {name}\n\n"
        f"An adapter, merged into its base `{made['base']}` and written in {made['dtype']}. Its logits are those "
        f"of the adapter on its base, to a relative error of {made['relative_error_as_written']:.0e}. `ift.json` "
        "says how the adapter was trained.\n"
    )


def _sequences(vocabulary: int) -> list[list[int]]:
    rng = random.Random("merge")
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in (8, 24, 64)]


def _agree(got: list[Any], expected: list[Any], tolerance: float, what: str) -> float:
    """The largest relative error of the logits. Raises `IftError` where it is above `tolerance`."""
    from numpy.linalg import norm

    error = max(float(norm(one - other) / norm(other)) for one, other in zip(got, expected, strict=True))
    if not error <= tolerance:
        raise IftError(
            f"{what} answers differently from the adapter: relative error {error:.2e}",
            wanted=f"at most {tolerance:.0e}",
            hint="nothing was written; the adapter itself is as it was",
        )
    return error
