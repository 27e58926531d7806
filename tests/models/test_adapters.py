"""Adapters: they change nothing at first, are told apart by their seed alone, and answer the same wherever they go."""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_t5 import make_t5

from ift import cli, storage
from ift.errors import IftError
from ift.models import adapters, base
from ift.models.adapters import Adapter

IDS = list(range(3, 43))
CASES = [("causal", "lora"), ("causal", "rslora"), ("causal", "dora"), ("t5", "dora")]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"causal": tiny_model, "t5": make_t5(tmp_path_factory.mktemp("t5"), factor=0.5)}


def logits(model: Any) -> Any:
    return base.reference_logits(model.eval(), IDS, encoder_decoder=model.config.is_encoder_decoder)


def distance(one: Any, other: Any) -> float:
    """Relative to `other`."""
    return float(((one - other) ** 2).sum() ** 0.5 / (other**2).sum() ** 0.5)


def as_if_trained(model: Any) -> Any:
    """Every adapter weight moved, so that none is what it was born as."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def saved(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Any]]:
    """The folder of a model's adapter, and the logits that the adapter gave before it was saved."""
    made: dict[tuple[str, str], tuple[Path, Any]] = {}

    def of(model: str, kind: str) -> tuple[Path, Any]:
        if (model, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{kind}")
            attached = adapters.attach(base.load_model(models[model]), Adapter(kind, rank=4, alpha=8), seed=1)
            expected = logits(as_if_trained(attached))
            adapters.save(attached, folder, on=models[model])
            base.load_tokenizer(models[model]).save_pretrained(folder)
            made[model, kind] = folder, expected
        return made[model, kind]

    return of


@pytest.fixture
def adapter_folder(saved: Callable[..., tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy of a causal model's adapter that a test may spoil."""
    return Path(shutil.copytree(saved("causal", "lora")[0], tmp_path / "adapter"))


# --- attach


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_an_adapter_changes_nothing_before_it_is_trained(
    models: dict[str, Path], model: str, kind: str
) -> None:
    plain = base.load_model(models[model])
    before = logits(plain)
    attached = adapters.attach(plain, Adapter(kind, rank=4), seed=1)
    assert distance(logits(attached), before) < 1e-6
    assert distance(logits(as_if_trained(attached)), before) > 1e-2  # and everything after


@pytest.mark.parametrize(("kind", "scale"), [("lora", 8 / 16), ("rslora", 8 / math.sqrt(16))])
def test_what_an_adapter_adds_is_scaled_by_its_rank_or_by_the_root_of_it(
    tiny_model: Path, kind: str, scale: float
) -> None:
    attached = adapters.attach(base.load_model(tiny_model), Adapter(kind, rank=16, alpha=8), seed=1)
    layer = as_if_trained(attached).get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    added = layer(x) - x @ layer.base_layer.weight.T
    torch.testing.assert_close(added, scale * x @ a.T @ b.T)


def test_only_the_adapter_is_trained(tiny_model: Path) -> None:
    attached = adapters.attach(base.load_model(tiny_model), Adapter("dora", rank=4), seed=1)
    trained = {name: p for name, p in attached.named_parameters() if p.requires_grad}
    # of each layer (in, out): A has 4·in, B has 4·out, DoRA's lengths out; 4 of attention, 3 of the MLP, 2 layers
    layers = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)] * 2
    assert sum(p.numel() for p in trained.values()) == sum(4 * i + 4 * o + o for i, o in layers)
    attached(input_ids=torch.tensor([IDS]), labels=torch.tensor([IDS])).loss.backward()
    assert {name for name, p in attached.named_parameters() if p.grad is not None} == set(trained)


def test_an_adapters_first_weights_are_a_function_of_its_seed(tiny_model: Path) -> None:
    def first(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)  # what was drawn before must not matter
        torch.rand(noise)
        attached = adapters.attach(base.load_model(tiny_model), Adapter(rank=4), seed=seed)
        return {name: p.detach() for name, p in attached.named_parameters() if ".lora_A." in name}

    one, again, other = first(1, noise=0), first(1, noise=5), first(2, noise=0)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    q_proj = [tensor for name, tensor in one.items() if "q_proj" in name]
    assert not torch.equal(q_proj[0], q_proj[1])
    bound = 1 / math.sqrt(32)  # what torch.nn.Linear draws by: the width of its input
    assert 0.9 * bound < float(q_proj[0].abs().max()) <= bound


def test_an_adapter_has_the_dtype_of_its_model(tiny_model: Path) -> None:
    attached = adapters.attach(base.load_model(tiny_model, dtype="bfloat16"), Adapter("dora", rank=4), seed=1)
    assert {p.dtype for p in attached.parameters()} == {torch.bfloat16}


def test_some_layers_alone(tiny_model: Path) -> None:
    attached = adapters.attach(
        base.load_model(tiny_model), Adapter(rank=4, targets=("q_proj", "layers.1.mlp.up_proj")), seed=1
    )
    places = {name.partition(".lora_")[0] for name, p in attached.named_parameters() if p.requires_grad}
    assert {place.partition("layers.")[2] for place in places} == {
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "1.mlp.up_proj",
    }


def refused(model: Any, *targets: str) -> IftError:
    with pytest.raises(IftError) as caught:
        adapters.attach(model, Adapter(targets=targets or "all-linear"), seed=1)
    return caught.value


def test_a_wrong_target_names_its_neighbour(tiny_model: Path) -> None:
    """PEFT itself would leave it out without a word, as long as another name is right."""
    error = refused(base.load_model(tiny_model), "q_proj", "v_porj")
    assert error.what == "`train.adapter.targets`: LlamaForCausalLM has no linear layer `v_porj`"
    assert error.wanted == (
        "all-linear, or some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
    assert error.hint == "did you mean `v_proj`?"
    assert "no linear layer `norm`" in refused(base.load_model(tiny_model), "norm").what


def test_a_head_that_is_the_embedding_gets_no_adapter(tiny_model: Path) -> None:
    error = refused(base.load_model(tiny_model), "lm_head")
    assert error.what == "`train.adapter.targets`: `lm_head` shares its weights with the input embeddings"


@pytest.mark.parametrize("target", ["v_porj", "lm_head"])
def test_a_wrong_target_is_known_from_the_models_config(
    tiny_model: Path, tmp_path: Path, target: str
) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)  # no weights
    with pytest.raises(IftError, match=target) as caught:
        adapters.check_targets(Adapter(targets=("q_proj", target)), tmp_path)
    assert str(caught.value) == str(refused(base.load_model(tiny_model), "q_proj", target))
    adapters.check_targets(Adapter(), tmp_path)


class Fused(torch.nn.Module):
    """A model whose weights are all in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.Parameter(torch.zeros(2, 3, 3))

    def get_output_embeddings(self) -> None:
        return None


def test_a_model_without_linear_layers_is_refused() -> None:
    error = refused(Fused())
    assert error.what == "Fused has no linear layers for an adapter"
    assert "fused experts" in (error.wanted or "")
    assert error.hint == "train.method=full"


def test_weights_of_four_bits_are_refused_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    four = Adapter(quantize="4bit")
    with pytest.raises(IftError, match=r"quantize` is 4bit and `train.zero_stage` is 3") as caught:
        adapters.check(four, zero_stage=3)
    assert "train.zero_stage=2" in (caught.value.hint or "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(IftError, match="bitsandbytes is not installed") as caught:
        adapters.check(four, zero_stage=2)
    assert caught.value.hint == "pip install bitsandbytes"
    adapters.check(Adapter(), zero_stage=3)


# --- a folder that holds an adapter


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_a_saved_adapter_answers_as_before(
    saved: Callable[..., tuple[Path, Any]], models: dict[str, Path], model: str, kind: str
) -> None:
    folder, expected = saved(model, kind)
    verified = base.verify(folder, IDS, expected, dtype="float32")
    assert verified["relative_error"] < 1e-5
    assert verified["parameters"] < base.parameter_count(models[model])  # the adapter's own
    assert base.is_encoder_decoder(folder) == (model == "t5")
    loaded = base.load_model(folder)
    assert type(loaded) is type(base.load_model(models[model]))  # what evaluates a model need not know
    assert not loaded.training
    with pytest.raises(IftError, match="answers differently"):
        base.verify(models[model], IDS, expected, dtype="float32")


def test_in_bfloat16_an_adapter_stays_beside_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    """A weight of bfloat16 has 8 bits: part of what an adapter adds would be rounded off."""
    model = base.load_model(tiny_model, dtype="bfloat16")
    attached = as_if_trained(adapters.attach(model, Adapter("dora", rank=4), seed=1))
    expected = logits(attached)
    adapters.save(attached, tmp_path, on=tiny_model)
    assert distance(logits(base.load_model(tmp_path, dtype="bfloat16")), expected) == 0.0


def test_the_folder_holds_the_adapter_and_nothing_else(
    saved: Callable[..., tuple[Path, Any]], tiny_model: Path
) -> None:
    from safetensors import safe_open

    folder, _ = saved("causal", "lora")
    tokenizer = {path.name for path in tiny_model.iterdir()} - {"config.json", "model.safetensors"}
    names = {path.name for path in folder.iterdir()}
    assert names - tokenizer == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors.keys())  # noqa: SIM118
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model.resolve())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: peft\n")


def test_peft_alone_loads_it(saved: Callable[..., tuple[Path, Any]]) -> None:
    from peft import AutoPeftModelForCausalLM

    folder, expected = saved("causal", "dora")
    assert distance(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), expected) < 1e-5


def test_a_base_from_the_hub_is_named_by_its_id(adapter_folder: Path) -> None:
    before = storage.read_json(adapter_folder / "adapter_config.json") or {}
    adapters.name_base(adapter_folder, "/models/some", None)
    assert storage.read_json(adapter_folder / "adapter_config.json") == before
    adapters.name_base(adapter_folder, "some/model", "abc")
    named = storage.read_json(adapter_folder / "adapter_config.json")
    assert named == {**before, "base_model_name_or_path": "some/model", "revision": "abc"}
    assert "base_model: some/model\n" in adapters.front_matter("some/model")
    assert "base_model" not in adapters.front_matter("/models/some")


def test_a_base_that_moved_is_found_by_its_source(
    adapter_folder: Path, tiny_model: Path, tmp_path: Path, own_cache: Path
) -> None:
    config = storage.read_json(adapter_folder / "adapter_config.json") or {}
    gone = str(tmp_path / "gone")
    storage.write_json(adapter_folder / "adapter_config.json", {**config, "base_model_name_or_path": gone})
    with pytest.raises(IftError) as caught:
        base.load_model(adapter_folder)
    assert caught.value.what == (
        f"the model that the adapter in {adapter_folder} was trained on is not to be had; "
        f"looked for {gone} (adapter_config.json)"
    )
    assert "`base_model_name_or_path`" in (caught.value.hint or "")

    storage.write_json(adapter_folder / "ift.json", {"model": {"source": str(tmp_path / "also")}})
    with pytest.raises(IftError, match=rf"; {tmp_path}/also: no model at {tmp_path}/also"):
        base.load_model(adapter_folder)
    storage.write_json(adapter_folder / "ift.json", {"model": {"source": str(tiny_model)}})
    assert adapters.base_of(adapter_folder) == tiny_model.resolve()


def test_a_pickled_adapter_is_refused(adapter_folder: Path, tmp_path: Path) -> None:
    (adapter_folder / "adapter_model.safetensors").unlink()
    torch.save({}, adapter_folder / "adapter_model.bin")
    with pytest.raises(IftError, match="has no safetensors file"):
        base.resolve(str(adapter_folder), cache=tmp_path)
    with pytest.raises(IftError, match="has no safetensors file"):
        base.load_model(adapter_folder)


def test_an_adapter_with_a_tensor_missing_is_refused(adapter_folder: Path) -> None:
    """PEFT would only warn."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter_folder / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("up_proj.lora_B.weight")))
    save_file(tensors, adapter_folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(IftError, match=r"lacks 1 tensors of the adapter, .*up_proj.lora_B"):
        base.load_model(adapter_folder)


@pytest.mark.parametrize("other", ["shapes", "names"])
def test_an_adapter_of_another_model_is_refused(
    saved: Callable[..., tuple[Path, Any]],
    adapter_folder: Path,
    models: dict[str, Path],
    tmp_path: Path,
    other: str,
) -> None:
    if other == "names":
        wrong = models["t5"]
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        wrong = tmp_path / "wide"
        config = AutoConfig.from_pretrained(models["causal"], hidden_size=48)
        AutoModelForCausalLM.from_config(config).save_pretrained(wrong)
    config = storage.read_json(adapter_folder / "adapter_config.json") or {}
    storage.write_json(
        adapter_folder / "adapter_config.json", {**config, "base_model_name_or_path": str(wrong)}
    )
    with pytest.raises(IftError, match="does not fit its base") as caught:
        base.load_model(adapter_folder)
    assert caught.value.wanted == "the model that it was trained on"


def test_another_kind_of_adapter_is_refused(adapter_folder: Path) -> None:
    config = storage.read_json(adapter_folder / "adapter_config.json") or {}
    storage.write_json(adapter_folder / "adapter_config.json", {**config, "peft_type": "IA3"})
    with pytest.raises(IftError, match="is of the kind IA3"):
        base.load_model(adapter_folder)


def test_what_was_trained_on_four_bits_is_asked_on_four_bits(tiny_model: Path, tmp_path: Path) -> None:
    """And merged into the whole weights: equal to the adapter on those."""
    pytest.importorskip("bitsandbytes")
    whole = base.load_model(tiny_model)
    model = base.load_model(tiny_model, quantize="4bit")
    before = logits(model)
    assert 1e-3 < distance(before, logits(whole)) < 1.0
    attached = adapters.attach(model, Adapter(rank=4, quantize="4bit"), seed=1)
    assert distance(logits(attached), before) < 1e-6
    attached(input_ids=torch.tensor([IDS]), labels=torch.tensor([IDS])).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in attached.parameters())
    expected = logits(as_if_trained(attached))
    adapters.save(attached, tmp_path / "adapter", on=tiny_model)
    base.load_tokenizer(tiny_model).save_pretrained(tmp_path / "adapter")
    assert base.verify(tmp_path / "adapter", IDS, expected, dtype="float32")["relative_error"] < 1e-5
    assert adapters.merge(tmp_path / "adapter", tmp_path / "merged")["relative_error"] < 1e-5
    assert distance(logits(base.load_model(tmp_path / "merged")), expected) > 1e-3


# --- merge


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_a_merged_model_answers_as_its_adapter(
    saved: Callable[..., tuple[Path, Any]], models: dict[str, Path], tmp_path: Path, model: str, kind: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder, expected = saved(model, kind)
    made = adapters.merge(folder, tmp_path / "merged")
    assert made["relative_error"] < 1e-5
    auto = AutoModelForSeq2SeqLM if model == "t5" else AutoModelForCausalLM
    merged = auto.from_pretrained(tmp_path / "merged")  # as anybody would
    assert distance(logits(merged), expected) < 1e-5
    assert not base.is_adapter(tmp_path / "merged")
    assert base.parameter_count(tmp_path / "merged") == base.parameter_count(models[model])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == base.load_tokenizer(models[model]).chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_gpt2s_layers_have_adapters_and_are_merged(tiny_model: Path, tmp_path: Path) -> None:
    """They hold their weights the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=325, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    base.load_tokenizer(tiny_model).save_pretrained(tmp_path / "gpt2")
    model = base.load_model(tmp_path / "gpt2")
    attached = as_if_trained(adapters.attach(model, Adapter(rank=2), seed=1))
    expected = logits(attached)
    adapters.save(attached, tmp_path / "adapter", on=tmp_path / "gpt2")  # without a tokenizer of its own
    adapters.merge(tmp_path / "adapter", tmp_path / "merged")
    assert distance(logits(base.load_model(tmp_path / "merged")), expected) < 1e-5
    assert len(base.load_tokenizer(tmp_path / "merged")) == 325


def test_a_merge_that_went_wrong_leaves_nothing(
    adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)  # the base as it was
    with pytest.raises(
        IftError, match="the merged model answers differently from the adapter: relative error"
    ):
        adapters.merge(adapter_folder, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """`ift` in this process: its exit status and what it printed."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    printed = capfd.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


def test_merge_on_the_command_line(
    adapter_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(adapter_folder, run_folder / "model")
    storage.write_json(run_folder / "model" / "ift.json", {"name": "films"})
    output = tmp_path / "new" / "merged"
    status, said = run(capfd, "merge", str(run_folder), str(output), "--dtype", "bfloat16")
    assert (status, "✓ merge" in said) == (0, True), said
    assert "0.0 M parameters in bfloat16" in said
    assert f"AutoModelForCausalLM.from_pretrained('{output}')" in said
    assert base.load_model(output).dtype == torch.float32
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    lineage = json.loads((output / "ift.json").read_text())
    assert (lineage["name"], lineage["merged"]["adapter"]) == ("films", str(run_folder / "model"))
    assert "library_name: transformers" in (output / "README.md").read_text()

    status, said = run(capfd, "merge", str(run_folder), str(output))
    assert (status, f"error: {output} exists" in said) == (2, True), said
    status, said = run(capfd, "merge", str(output), str(tmp_path / "again"))
    assert (status, f"{output} is no adapter" in said) == (2, True), said
