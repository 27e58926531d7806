"""A model's shape out of its config: as many parameters as the real one has, and what its forward pass really keeps."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_t5 import make_t5

from ift.data.stream import Pack
from ift.errors import IftError
from ift.models import adapters, attention, base, shape
from ift.models.adapters import Adapter
from ift.train.loss import collate, collate_pairs

LENGTH, WRITTEN = 96, 20


def tiny(kind: str, **more: Any) -> Any:
    """The config of a model of three layers."""
    from transformers import AutoConfig

    values = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 1),
        **more,
    }
    return AutoConfig.for_model(kind, **values)


FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 16},
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "attn_pdrop": 0.0},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}


def saved_by(model: Any, forward: Any) -> int:
    """Bytes that autograd saves in a forward pass, without the weights."""
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own)


def pack_of(length: int, written: int) -> Pack:
    supervised = [i >= length - written for i in range(length)]
    return Pack([7] * length, supervised, [length], ["a"], ["t"], ["x"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_counted_without_weights_is_what_a_real_forward_pass_keeps(family: str, method: str) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny(family, **FAMILIES[family])
    adapter = Adapter(rank=4) if method == "lora" else None
    found = shape.shape_of(config, family)
    way = shape.way_of(
        config,
        found,
        adapter=adapter,
        precision="fp32",
        attention="packed",
        length=LENGTH,
        written=WRITTEN,
    )
    assert way.kept.counted

    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    assert found.parameters == sum(p.numel() for p in model.parameters())
    if adapter:
        adapters.attach(model, adapter, seed=0)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert (way.trained, way.largest) == (sum(trained), max(trained))
    attention.use(model, "packed")
    batch = collate([pack_of(LENGTH, WRITTEN)], "cpu")
    real = saved_by(model, lambda: batch.logits(model))
    assert way.kept.layer * 3 + way.kept.rest == pytest.approx(real, rel=0.03)


def test_an_encoder_decoder_is_counted_on_both_sides(tmp_path: Path) -> None:
    model = base.load_model(make_t5(tmp_path)).train()
    config, words = shape.config_of(str(tmp_path), cache=tmp_path)
    found = shape.shape_of(config, "t5")
    assert words == f"config.json in {tmp_path}"
    assert (found.encoder_decoder, found.layers) == (True, 4)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    way = shape.way_of(
        config,
        found,
        adapter=None,
        precision="fp32",
        attention="sdpa",
        length=LENGTH,
        written=WRITTEN,
    )
    batch = collate_pairs([pack_of(LENGTH, WRITTEN)], "cpu")
    real = saved_by(model, lambda: batch.logits(model))
    assert way.kept.layer * 4 + way.kept.rest == pytest.approx(
        real, rel=0.25
    )  # its own attention is not ours


def test_a_shape_says_what_a_plan_counts_with() -> None:
    found = shape.shape_of(tiny("llama", tie_word_embeddings=True), "tiny")
    attention_weights = 64 * 64 + 2 * 64 * 32 + 64 * 64
    layer = attention_weights + 3 * 64 * 96 + 2 * 64
    assert (found.layers, found.hidden, found.intermediate, found.heads) == (3, 64, 96, 4)
    assert (found.kv_heads, found.head, found.vocabulary, found.tied) == (2, 16, 300, True)
    assert (found.embedding, found.layer, found.largest) == (300 * 64, layer, 300 * 64)
    assert found.parameters == 300 * 64 + 3 * layer + 64
    assert found.linear == 3 * (layer - 2 * 64)
    assert found.active == 3 * layer + 64


def test_of_experts_a_token_meets_a_few() -> None:
    config = tiny("mixtral", num_local_experts=8, num_experts_per_tok=2)
    found = shape.shape_of(config, "mixtral")
    experts = 3 * 8 * 3 * 64 * 96
    assert found.experts == experts
    assert found.active == found.parameters - 2 * 300 * 64 - experts * 6 // 8
    assert found.intermediate == 2 * 96
    way = shape.way_of(
        config,
        found,
        adapter=None,
        precision="bf16",
        attention="varlen",
        length=LENGTH,
        written=WRITTEN,
    )
    assert (
        way.kept.layer
        > shape.kept_by_formula(found, precision="bf16", attention="varlen", length=LENGTH).layer
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["packed", "varlen", "sdpa"])
def test_the_formula_is_what_is_counted_for_llama(precision: str, kind: str) -> None:
    config = tiny("llama")
    found = shape.shape_of(config, "tiny")
    counted = shape.way_of(
        config, found, adapter=None, precision=precision, attention=kind, length=LENGTH, written=WRITTEN
    ).kept
    formula = shape.kept_by_formula(found, precision=precision, attention=kind, length=LENGTH)
    assert counted.layer == pytest.approx(formula.layer, rel=0.02)
    assert counted.entry == formula.entry == LENGTH * 64 * shape.BYTES[precision]
    assert (counted.counted, formula.counted) == (True, False)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_is_counted_as_it_is_attached(kind: str) -> None:
    from transformers import AutoModelForCausalLM

    config, adapter = tiny("llama"), Adapter(kind=kind, rank=8, targets=("q_proj", "down_proj"))
    found = shape.shape_of(config, "tiny")
    way = shape.way_of(
        config,
        found,
        adapter=adapter,
        precision="fp32",
        attention="packed",
        length=LENGTH,
        written=WRITTEN,
    )
    model = adapters.attach(AutoModelForCausalLM.from_config(config), adapter, seed=0)
    assert way.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(IftError, match="has no linear layer `x_proj`"):
        shape.way_of(
            config,
            found,
            adapter=Adapter(targets=("x_proj",)),
            precision="fp32",
            attention="packed",
            length=LENGTH,
            written=WRITTEN,
        )


# --- where a config comes from


class Hub(BaseHTTPRequestHandler):
    """A hub that has one model, one that wants a token, and nothing else."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Hub.asked.append(self.path)
        if self.path.startswith("/org/tiny/"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({**tiny("llama").to_dict(), "model_type": "llama"}).encode())
            return
        self.send_response(401 if self.path.startswith("/meta-llama/") else 404)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Hub.asked.clear()
    yield
    server.shutdown()
    server.server_close()


def test_of_a_model_on_the_hub_the_config_alone_is_fetched(hub: None, tmp_path: Path) -> None:
    config, words = shape.config_of("org/tiny", cache=tmp_path, revision="abc")
    assert config.hidden_size == 64
    assert Hub.asked == ["/org/tiny/resolve/abc/config.json"]
    assert words == "config.json of org/tiny at revision abc on the hub"


def test_a_model_that_wants_a_token_is_looked_up_in_the_table(hub: None, tmp_path: Path) -> None:
    config, words = shape.config_of("meta-llama/Llama-3.2-1B-Instruct", cache=tmp_path)
    assert config.hidden_size == 2048
    assert words.startswith(
        "ift's table of common models: the hub gives config.json of meta-llama/Llama-3.2-1B"
    )
    assert "token" in words


def test_a_model_that_the_hub_does_not_have_is_refused(hub: None, tmp_path: Path) -> None:
    with pytest.raises(IftError, match=r"the hub has no config\.json of a model Qwen/Qwen2\.5-7C") as caught:
        shape.config_of("Qwen/Qwen2.5-7C", cache=tmp_path)
    assert caught.value.hint == "did you mean `Qwen/Qwen2.5-7B`?"


def test_without_a_hub_a_common_model_is_looked_up_in_the_table(tmp_path: Path) -> None:
    config, words = shape.config_of("Qwen/Qwen2.5-0.5B-Instruct", cache=tmp_path)
    assert config.hidden_size == 896
    assert words == "ift's table of common models: the hub cannot be reached (HF_HUB_OFFLINE is set)"


def test_without_a_hub_an_unknown_model_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(IftError) as caught:
        shape.config_of("Qwen/Qwen2.5-8B", cache=tmp_path)
    assert "the table of common models does not hold it" in caught.value.what
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean `Qwen/Qwen2.5-")


def test_a_folder_needs_a_config_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(IftError, match=r"has no config\.json"):
        shape.config_of(str(tmp_path), cache=tmp_path)
    tiny("llama").save_pretrained(tmp_path)
    config, words = shape.config_of(str(tmp_path), cache=tmp_path)
    assert (config.hidden_size, words) == (64, f"config.json in {tmp_path}")


def test_an_architecture_that_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(IftError, match="a model of type made_up, which transformers does not know"):
        shape.built("org/x", {"model_type": "made_up"})
