"""The shape of a model from its config alone: what the planner counts with. No weight is read.

In:  a model's source as a spec names it; of a model on the hub, config.json is all that is fetched.
Out: a `Shape`; and for each way of training it a `Way`: what is trained, and what a forward pass keeps for the
     backward one.

    config, words = config_of("HuggingFaceTB/SmolLM2-135M", cache=cache_dir())
    shape = shape_of(config, "SmolLM2-135M")                # shape.parameters == 134_515_008
    way = way_of(config, shape, adapter=None, precision="fp32", attention="packed", length=512, written=100)
    way.kept.layer                                          # 24_272_896 bytes a layer for a row of 512 tokens

Both are counted rather than computed by a formula: the model is built on torch's meta device, where tensors have a
shape and no content, and a forward pass of it runs there two and three layers deep while autograd's list of what it
saves is read. So it holds for any architecture that transformers knows.
"""

import copy
import json
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.errors import IftError, nearest
from ift.models import base, known, remote_code
from ift.models.adapters import Adapter

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Shape:
    """Counts of parameters, and widths."""

    name: str
    kind: str  # transformers' model_type
    parameters: int
    embedding: int  # the input embeddings
    layer: int  # the largest layer
    largest: int  # the largest tensor
    linear: int  # weights of linear layers but the projection to the vocabulary: what can be held in 4 bits
    experts: int  # in experts of which a token sees some
    active: (
        int  # through which a token passes: without the embeddings, the projection, the experts not chosen
    )
    layers: int  # of an encoder–decoder, both sides together
    hidden: int
    intermediate: int  # of an expert, times those chosen, where there are experts
    heads: int
    kv_heads: int
    head: int  # numbers of a head
    vocabulary: int
    tied: bool  # the projection to the vocabulary is the input embeddings
    encoder_decoder: bool


@dataclass(frozen=True)
class Kept:
    """Bytes of a row of tokens that wait for the backward pass."""

    layer: int  # of a layer
    rest: int  # outside of layers, the logits not among it
    entry: int  # what goes into a layer: all that activation checkpointing keeps of it
    counted: bool = True  # on the meta device; else by formula


@dataclass(frozen=True)
class Way:
    """One way to train a model: all of its weights, or an adapter."""

    trained: int  # parameters
    largest: int  # the largest trained tensor
    kept: Kept


# ── where a config comes from ──


def config_of(
    source: str,
    *,
    cache: Path,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    progress: base.Progress | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> tuple[Any, str]:
    """The config of the model at `source`, and where it is from in words.

    A folder needs no weights in it. Where the hub does not answer, or not without a token, the table of common models
    does. Raises `IftError` where neither knows the model.
    """
    from transformers import AutoConfig

    base._quiet_transformers()
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise IftError(f"{path} has no config.json", wanted="a folder written by save_pretrained")
        return AutoConfig.from_pretrained(path, **remote_code.options(path)), f"config.json in {path}"
    if base.is_hub_id(source):
        if trust_remote_code and revision:
            folder = base.shape_with_code(source, revision)
            read = AutoConfig.from_pretrained(folder, **remote_code.options(folder))
            return read, f"config.json and the code of {source} at revision {revision} on the hub"
        return _from_hub(source, revision)
    folder = base.resolve(source, cache=cache, sha256=sha256, progress=progress, notify=notify)
    return AutoConfig.from_pretrained(folder, **remote_code.options(folder)), f"config.json of {source}"


def _from_hub(name: str, revision: str | None) -> tuple[Any, str]:
    at = f" at revision {revision}" if revision else ""
    try:
        values = _fetched(name, revision)
        return built(name, values), f"config.json of {name}{at} on the hub"
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise IftError(
                f"the hub has no config.json of a model {name}{at}",
                wanted="the id of a model that is there",
                hint=nearest(name, known.names()),
            ) from None
        why = f"the hub gives config.json of {name} to nobody without a token that may read it ({error.code})"
        if error.code not in (401, 403):
            why = f"the hub answers {error.code} {error.reason}"
    except (OSError, json.JSONDecodeError) as error:  # no network, no answer in time, an answer cut short
        why = f"the hub cannot be reached ({getattr(error, 'reason', None) or error})"
    if local := _in_hubs_cache(name, revision):
        return built(name, local), f"config.json of {name}{at} in the hub's cache on this machine; {why}"
    common = known.config(name)
    if common is None:
        raise IftError(
            f"no config of {name}: {why}, and the table of common models does not hold it",
            wanted="a hub that answers, a local folder with config.json, or a common model",
            hint=nearest(name, known.names()) or "check the network, HF_ENDPOINT and HF_TOKEN",
        )
    return built(name, common), f"ift's table of common models: {why}"


def _fetched(name: str, revision: str | None) -> dict[str, Any]:
    """config.json of a model on the hub; in one attempt, for the hub's own client tries for half a minute."""
    from huggingface_hub.utils._headers import build_hf_headers

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise OSError("HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{name}/resolve/{revision or 'main'}/config.json"
    request = urllib.request.Request(url, headers=build_hf_headers())
    with urllib.request.urlopen(request, timeout=10) as answer:
        values: dict[str, Any] = json.loads(answer.read(10_000_000))
    return values


def _in_hubs_cache(name: str, revision: str | None) -> dict[str, Any] | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None


def built(name: str, values: dict[str, Any]) -> Any:
    """The config object of what a config.json says. Raises `IftError` for a model that transformers does not know."""
    from transformers import AutoConfig

    own = ("auto_map", "name_or_path", "_name_or_path")  # of a file's author: no code is to be looked for
    values = {key: value for key, value in values.items() if key not in own}
    kind = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError:
        raise IftError(
            f"{name} is a model of type {kind}, which transformers does not know",
            wanted="an architecture of transformers' own, or a spec with `revision` and `trust_remote_code: true`",
        ) from None


# ── the shape ──


def shape_of(config: Any, name: str) -> Shape:
    """The shape of the model that `config` describes. Raises `IftError` where it writes no text."""
    import torch

    text = config.get_text_config()
    model = _on_meta(config, text)
    experts = [p.numel() for n, p in model.named_parameters() if ".experts." in n]
    chosen, of = _chosen(text)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    own_head = head.weight.numel() if head is not None else 0
    parameters = sum(p.numel() for p in model.parameters())
    # transformers ties T5's projection in every config, and has it apart where the checkpoint does (FLAN-T5)
    if tied and getattr(config, "scale_decoder_outputs", True) is False:
        tied, parameters = False, parameters + own_head
    idle = sum(experts) * (of - chosen) // of
    layers = _layers(model)
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // heads
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return Shape(
        name=name,
        kind=config.model_type,
        parameters=parameters,
        embedding=embeddings.weight.numel(),
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        largest=max(p.numel() for p in model.parameters()),
        linear=sum(linear),
        experts=sum(experts),
        active=parameters - embeddings.weight.numel() - (0 if tied else own_head) - idle,
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=_intermediate(text),
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head=width,
        vocabulary=head.weight.shape[0] if head is not None else text.vocab_size,
        tied=tied,
        encoder_decoder=bool(config.is_encoder_decoder),
    )


def _on_meta(config: Any, text: Any, **options: Any) -> Any:
    """The model without weights: shapes, and nothing in them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return kind.from_config(copy.deepcopy(config), **remote_code.of_config(config), **options)
    except ValueError:
        if text is not config:
            return _on_meta(text, text, **options)
        raise IftError(
            f"a model of type {config.model_type} writes no text",
            wanted="a causal language model or an encoder–decoder",
        ) from None


def _layers(model: Any) -> list[Any]:
    """The model's layers: what stands in lists of modules that are not inside of others."""
    import torch

    found: list[Any] = []

    def search(module: Any) -> None:
        for child in module.children():
            if isinstance(child, torch.nn.ModuleList):
                found.extend(child)
            else:
                search(child)

    search(model)
    assert found, type(model).__name__
    return found


def _kv_heads(text: Any, heads: int) -> int:
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):  # Falcon
        return 1
    return getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads


def _chosen(text: Any) -> tuple[int, int]:
    """How many experts a token is given to, and of how many."""
    of = next(
        (
            n
            for key in ("num_local_experts", "num_experts", "n_routed_experts")
            if (n := getattr(text, key, None))
        ),
        1,
    )
    return min(getattr(text, "num_experts_per_tok", None) or of, of), of


def _intermediate(text: Any) -> int:
    for key in ("intermediate_size", "d_ff", "ffn_dim", "n_inner", "ffn_hidden_size"):
        if width := getattr(text, key, None):
            break
    else:
        width = 4 * text.hidden_size
    chosen, of = _chosen(text)
    if of == 1:
        return int(width)
    shared = getattr(text, "n_shared_experts", None) or 0
    return int((chosen + shared) * (getattr(text, "moe_intermediate_size", None) or width))


# ── ways to train it ──


def way_of(
    config: Any,
    shape: Shape,
    *,
    adapter: Adapter | None,
    precision: str,
    attention: str,
    length: int,
    written: int,
) -> Way:
    """What is trained with `adapter` beside the weights, or without one; and what a row of `length` tokens keeps.

    `written` of them are supervised: what an encoder–decoder writes, the rest is what it reads. `attention` is one of
    ift/models/attention.py. Raises `IftError` where the adapter does not fit the model.
    """
    shallow_models: dict[Any, list[_Shallow]] = {}

    def models(kind: str, beside: Adapter | None) -> list[_Shallow]:
        """Two and three layers deep: they differ by one layer of the usual kind."""
        if (kind, beside) not in shallow_models:
            shallow_models[kind, beside] = [
                _Shallow(config, layers, kind, attention, beside) for layers in (2, 3)
            ]
        return shallow_models[kind, beside]

    trained, largest = shape.parameters, shape.largest
    if adapter:
        two, three = (model.trained() for model in models(precision, adapter))
        depth = config.get_text_config().num_hidden_layers  # of either side of an encoder–decoder
        trained = sum(two) + (depth - 2) * (sum(three) - sum(two))
        largest = max(three)
    written = min(max(1, written), length - 1)
    # kernels for experts know bf16 alone on the meta device, and not an adapter's: what is then counted is near
    for kind, beside in dict.fromkeys([(precision, adapter), ("bf16", adapter), ("bf16", None)]):
        try:
            few, more = (model.kept(length, written) for model in models(kind, beside))
        except (
            RuntimeError,
            ValueError,
            TypeError,
        ):  # mostly: what is done with a token depends on what it is
            continue
        wider, sides = BYTES[precision] // BYTES[kind], 2 if shape.encoder_decoder else 1
        kept = Kept(
            layer=(more - few) * wider // sides,
            rest=max(0, 3 * few - 2 * more) * wider,
            entry=BYTES[precision] * length * shape.hidden // sides,
            counted=(kind, beside) == (precision, adapter),
        )
        return Way(trained, largest, kept)
    return Way(
        trained, largest, kept_by_formula(shape, precision=precision, attention=attention, length=length)
    )


class _Shallow:
    """The model with fewer layers, on the meta device."""

    def __init__(
        self, config: Any, layers: int, precision: str, attention: str, adapter: Adapter | None
    ) -> None:
        import torch

        from ift.models import adapters

        self.config = shallow(config, layers)
        options = {"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
        try:
            self.model = _on_meta(
                self.config, self.config, attn_implementation=_counted(attention), **options
            )
        except KeyError:  # a model that has an attention of its own
            self.model = _on_meta(self.config, self.config, **options)
        if adapter:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's, about patterns that we did not give it
                adapters.attach(self.model, adapter, seed=0)
        self.model.train()

    def trained(self) -> list[int]:
        return [p.numel() for p in self.model.parameters() if p.requires_grad]

    def kept(self, length: int, written: int) -> int:
        """Bytes that a forward pass of one row saves for the backward one, the logits not among them."""
        import torch

        tokens = torch.zeros(1, length, dtype=torch.int64, device="meta")
        ways: list[dict[str, Any]]
        if self.config.is_encoder_decoder:
            ways = [{"input_ids": tokens[:, written:], "decoder_input_ids": tokens[:, :written]}]
        else:
            some = {"input_ids": tokens, "logits_to_keep": written}
            # without a mask most models look into the positions, which have no content here; some take no such mask
            mask = torch.zeros(1, 1, length, length, dtype=torch.bool, device="meta")
            ways = [{**some, "attention_mask": mask}, some]
        while True:
            saved: dict[int, Any] = {}
            try:
                with _saved(saved):
                    self.model(use_cache=False, **ways.pop(0))
                break
            except (RuntimeError, ValueError):
                if not ways:
                    raise
        own = {_storage(t) for t in [*self.model.parameters(), *self.model.buffers()]}
        return sum(t.untyped_storage().nbytes() for storage, t in saved.items() if storage not in own)


def shallow(config: Any, layers: int) -> Any:
    """The config of the same model with fewer layers."""
    few = copy.deepcopy(config.get_text_config())
    full = few.num_hidden_layers
    for key, value in vars(few).items():
        if isinstance(value, list) and len(value) == full:  # what each layer is like
            setattr(few, key, value[:layers])
    few.num_hidden_layers = layers
    if getattr(few, "num_decoder_layers", None):
        few.num_decoder_layers = layers
    return few


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _saved(found: dict[int, Any]) -> Iterator[None]:
    """Everything that autograd saves, by storage: a view of something keeps all of it, and keeps it once."""
    import torch

    def pack(tensor: Any) -> Any:
        found.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _counted(kind: str) -> str:
    """The name, for transformers, of an attention that computes nothing and saves what the one of this kind does."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv

    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *tensors: Any) -> Any:
            query, _, value, *_ = tensors
            rows, heads, length, _ = query.shape
            output = query.new_empty(rows, length, heads, value.shape[-1])
            sums = query.new_empty(rows, heads, length, dtype=torch.float32)
            context.save_for_backward(*tensors, output, sums)
            return output

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            raise AssertionError("nothing is computed on the meta device")

    save: Callable[..., Any] = Saves.apply

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
        if (
            kind == "sdpa"
        ):  # heads of keys and values are copied for each of the queries', and the mask is made anew
            key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
            rows, length = query.shape[0], query.shape[2]
            return save(query, key, value, query.new_empty(rows, 1, length, length)), None
        output = save(query, key, value)
        return (
            output.clone() if kind == "packed" else output
        ), None  # documents' outputs are laid end to end

    name = f"ift_counted_{kind}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda **_: None)
    return name


def kept_by_formula(shape: Shape, *, precision: str, attention: str, length: int) -> Kept:
    """What a row keeps in a layer with two RMS norms, grouped attention and a gated MLP (Llama and its relatives).

    As Korthikanti et al. 2022 (arXiv 2205.05198) count for GPT, from the operations of transformers' LlamaDecoderLayer:
    each norm keeps its input, the normalised input and its output; attention the rotated queries and keys, the values
    and the output; the MLP four times its width. In bf16, norms keep their first two in fp32.
    """
    wide = BYTES[precision]
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    norms = 2 * shape.hidden * (3 * wide if precision == "fp32" else 4 + 2 * wide)
    attended = 2 * queries + 2 * (queries if attention == "sdpa" else keys)
    attended += queries if attention == "packed" else 0
    layer = length * (norms + wide * (attended + 4 * shape.intermediate))
    if attention == "sdpa":
        layer += wide * length**2
    return Kept(layer, 3 * wide * length * shape.hidden, wide * length * shape.hidden, counted=False)
