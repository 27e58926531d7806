"""Checkpoints in few bits become ordinary ones, or are refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ift.errors import IftError
from ift.models import base, quantised, shape


def add_settings(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": settings}), encoding="utf-8")


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    """A model of which every weight of a layer is in FP8 with a scale for each block of 128 × 128."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    folder = tmp_path / "fp8"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("proj.weight")]:
        weight = weights[name].float()
        scales = torch.full([-(-size // 128) for size in weight.shape], float(weight.abs().max()) / 448)
        weights[name] = (weight / scales[0, 0]).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scales
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    add_settings(folder, quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic")
    return folder


@pytest.fixture
def mxfp4(tmp_path: Path) -> Path:
    """A model like gpt-oss, whose experts are in blocks of 32 numbers of 4 bits."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(4)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
    )
    folder = tmp_path / "mxfp4"
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, into, out = weights.pop(name).shape
        weights[f"{name}_blocks"] = torch.randint(256, (experts, out, into // 32, 16), dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.randint(115, 122, (experts, out, into // 32), dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    add_settings(folder, quant_method="mxfp4", modules_to_not_convert=["model.embed_tokens", "lm_head"])
    return folder


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_a_quantised_checkpoint_becomes_an_ordinary_one_once(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(kind)
    inline = SimpleNamespace(submit=lambda work, *given: SimpleNamespace(result=lambda: work(*given)))

    class Inline:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Any:
            return inline

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(quantised, "ProcessPoolExecutor", Inline)
    said: list[str] = []
    made = quantised.ordinary(folder, "org/model", cache=tmp_path / "cache", notify=said.append)
    assert said == ["writing org/model in 16 bits, once"]
    assert quantised.ordinary(folder, "org/model", cache=tmp_path / "cache", notify=said.append) == made
    assert len(said) == 1
    assert quantised.ordinary(made, "org/model", cache=tmp_path) == made
    assert "quantization_config" not in (made / "config.json").read_text(encoding="utf-8")
    weights = load_file(made / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert sum(2 * tensor.numel() for tensor in weights.values()) == quantised._size(folder)

    ids = list(range(3, 23))
    expected = base.reference_logits(base.load_model(folder, dtype="bfloat16"), ids)
    got = base.reference_logits(base.load_model(made, dtype="bfloat16"), ids)
    assert (got == expected).all()
    # and what comes out of training is ordinary too, and counted as such before
    model = base.load_model(made, dtype="bfloat16")
    model.save_pretrained(tmp_path / "exported")
    assert load_file(tmp_path / "exported" / "model.safetensors").keys() == weights.keys()
    counted = [shape.shape_of(shape.config_of(str(f), cache=tmp_path)[0], "model") for f in (folder, made)]
    assert counted[0] == counted[1]


def test_other_kinds_are_refused_with_the_way_out(tiny_model: Path, tmp_path: Path) -> None:
    for settings, named in [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4}, "unknown"),
    ]:
        for config in ({"quantization_config": settings}, {"text_config": {"quantization_config": settings}}):
            with pytest.raises(IftError) as caught:
                quantised.check(config, "org/model-AWQ")
            assert caught.value.what == (
                f"the weights of org/model-AWQ are quantised ({named}), and such weights are not trained"
            )
    quantised.check({"text_config": {"quantization_config": None}}, "org/model")
    assert quantised.ordinary(tiny_model, "tiny", cache=tmp_path) == tiny_model


def test_a_machine_that_does_not_hold_the_model_in_16_bits_says_so(
    fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(IftError, match=r"org/model in 16 bits takes 0\.0 GiB of memory once"):
        quantised.ordinary(fp8, "org/model", cache=tmp_path)
