"""Code that comes with a model, from a hub on loopback: it runs where a spec named its commit, and nowhere else."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_model, write_spec
from hub_server import FakeHub, Repo, environment, sha

from ift import spec as specs
from ift import storage
from ift.errors import IftError
from ift.models import base, remote_code, shape

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """
import os

from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig

if seen := os.environ.get("OWN_CODE_RAN"):
    open(seen, "a").write(f"{os.getpid()}\\n")


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def give_code(folder: Path, *, modeling: str = MODELING, module: str = "modeling_own") -> Path:
    """`folder`'s model as one of a kind that transformers does not have."""
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": f"{module}.OwnForCausalLM",
    }
    config.update(model_type="own", architectures=["OwnForCausalLM"], auto_map=names)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(modeling)
    return folder


@pytest.fixture
def own(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code, and what would have to run it in this process: a cache and modules of its own."""
    monkeypatch.delenv(remote_code.TRUSTED, raising=False)
    monkeypatch.setenv("OWN_CODE_RAN", str(tmp_path / "ran"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return give_code(make_model(tmp_path / "own"))


def nothing_loads(folder: Path) -> None:
    """Not even without `resolve` before it."""
    for load in (base.load_model, base.context_length, base.is_encoder_decoder):
        with pytest.raises((ValueError, IftError)):
            load(folder)


def test_code_that_nobody_allowed_is_not_run(own: Path, tmp_path: Path) -> None:
    with pytest.raises(IftError) as error:
        base.resolve(str(own), cache=tmp_path)
    assert str(error.value) == (
        f"the model in {own} is of the kind 'own', which transformers does not have; it brings code of its own "
        "(configuration_own.py, modeling_own.py), which no spec has allowed on this machine\n"
        "  wanted: a model of an architecture that transformers has, or of the hub, with its commit named\n"
        "  next:   read that code; if it may do all that you may, then "
        "model: {source: organisation/model, revision: 40 digits, trust_remote_code: true}"
    )
    nothing_loads(own)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_own.Config",
        "AutoModelForCausalLM": "someone/else--modeling_own.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert base.resolve(str(folder), cache=tmp_path) == folder  # transformers has its architecture itself
    base.load_model(folder, dtype="float32")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    with pytest.raises(IftError) as error:
        base.resolve(str(folder), cache=tmp_path)
    assert "is of the kind 'own', which transformers does not have" in str(error.value)
    assert (
        "its code lies elsewhere (someone/else--modeling_own.Model), and no spec can name its commit"
        in str(error.value)
    )
    nothing_loads(folder)
    assert not (tmp_path / "ran").exists()


def test_what_is_allowed_is_this_code_and_not_another(own: Path, tmp_path: Path) -> None:
    remote_code.allow(own, "acme/own", "4" * 40)
    model = base.load_model(base.resolve(str(own), cache=tmp_path))
    assert type(model).__name__ == "OwnForCausalLM"
    assert base.context_length(own) == 512
    assert (tmp_path / "ran").read_text().strip() == str(os.getpid())
    records = [storage.read_json(path) for path in (storage.cache_dir() / "trusted-code").iterdir()]
    assert {(r["repository"], r["revision"], r["file"]) for r in records if r} == {
        ("acme/own", "4" * 40, "configuration_own.py"),
        ("acme/own", "4" * 40, "modeling_own.py"),
    }
    copy = tmp_path / "copy"
    shutil.copytree(own, copy)
    assert remote_code.allowed(copy)  # known by what it says, wherever it lies
    before = base.digest(copy)
    (copy / "modeling_own.py").write_text(MODELING + "\n")
    assert not remote_code.allowed(copy)
    assert base.digest(copy) != before  # it may compute something else
    with pytest.raises(IftError, match="which no spec has allowed"):
        base.resolve(str(copy), cache=tmp_path)
    shutil.copytree(own, tmp_path / "more")
    (tmp_path / "more" / "custom_generate").mkdir()  # transformers would run this one as well
    (tmp_path / "more" / "custom_generate" / "generate.py").write_text("")
    assert not remote_code.allowed(tmp_path / "more")


def test_the_record_and_the_variable_each_suffice(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote_code.allow(own, "acme/own", "4" * 40)
    told = os.environ[remote_code.TRUSTED]
    monkeypatch.delenv(remote_code.TRUSTED)
    assert remote_code.allowed(own)  # a later command on this machine
    shutil.rmtree(storage.cache_dir() / "trusted-code")
    assert not remote_code.allowed(own)
    monkeypatch.setenv(remote_code.TRUSTED, told)
    assert remote_code.allowed(own)  # a worker on another


def test_code_of_a_third_repository_is_not_run(own: Path, tmp_path: Path) -> None:
    give_code(own, module="someone/else--modeling_own")
    remote_code.allow(own, "acme/own", "4" * 40)
    with pytest.raises(IftError) as error:
        base.resolve(str(own), cache=tmp_path)
    assert (
        "its code lies elsewhere (someone/else--modeling_own.OwnForCausalLM), and no spec can name its commit"
        in str(error.value)
    )
    assert remote_code.options(own) == {"local_files_only": True, "trust_remote_code": False}


def test_a_file_outside_the_folder_is_not_run(own: Path, tmp_path: Path) -> None:
    remote_code.allow(own, "acme/own", "4" * 40)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "evil.py").write_text(MODELING)
    give_code(own, module=f"{elsewhere}/evil")
    assert not remote_code.allowed(own)
    give_code(own, module="missing")
    assert not remote_code.allowed(own)


def test_what_a_config_says_of_itself_is_nobodys_word(own: Path) -> None:
    """A config.json of the hub that names a folder whose code is known, and classes of its own."""
    from transformers import AutoConfig

    remote_code.allow(own, "acme/own", "4" * 40)
    known = AutoConfig.from_pretrained(own, **remote_code.options(own))
    assert remote_code.of_config(known) == {"trust_remote_code": True}
    forged = {"name_or_path": str(own), "auto_map": {"AutoModelForCausalLM": "evil/repo--mod.Class"}}
    assert remote_code.of_config(AutoConfig.for_model("llama", **forged)) == {"trust_remote_code": False}
    assert not hasattr(shape.built("evil/model", {"model_type": "llama", **forged}), "auto_map")


def test_a_model_that_transformers_has_needs_no_code(own: Path, tmp_path: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert type(base.load_model(base.resolve(str(own), cache=tmp_path))).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "model",
    [
        {"source": "acme/own", "trust_remote_code": True},
        {"source": "acme/own", "trust_remote_code": True, "revision": "main"},
        {"source": "acme/own", "trust_remote_code": True, "revision": "4" * 39},
        {"source": "./own", "trust_remote_code": True, "revision": "4" * 40},
        {"source": "models:/own@champion", "trust_remote_code": True, "revision": "4" * 40},
    ],
)
def test_a_spec_names_the_repository_and_the_commit(model: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "model": model, "tasks": ["trec"]}))
    with pytest.raises(IftError) as error:
        specs.load(path)
    assert "`trust_remote_code: true` runs code of whoever can write to the model's repository" in str(
        error.value
    )
    assert "`source: organisation/model` and `revision:` the 40 hexadecimal digits of a commit" in str(
        error.value
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[FakeHub, str]]:
    """A hub with the model acme/own, and its commit."""
    folder = give_code(make_model(tmp_path / "repository"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server = FakeHub({"acme/own": Repo(files)})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, sha(files)
    server.shutdown()
    server.server_close()


def ift(folder: Path, url: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """`ift …` of a user with a home of their own, whose hub is at `url`."""
    settings = {
        **environment(url, folder / "home"),
        "IFT_CACHE": str(folder / "home" / "cache"),
        "OWN_CODE_RAN": str(folder / "ran"),
        "COLUMNS": "160",
    }
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != remote_code.TRUSTED}
    return subprocess.run(
        [sys.executable, "-m", "ift.cli", *command],
        cwd=folder,
        env={**clean, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.long)])
def test_a_run_with_code_of_the_hub(hub: tuple[FakeHub, str], tmp_path: Path, method: str) -> None:
    server, commit = hub
    model = {"source": "acme/own", "revision": commit}
    write_spec(tmp_path, tmp_path, model=model)
    done = ift(tmp_path, server.url, "run", "spec.yaml", f"train.method={method}")
    assert done.returncode == 2
    assert "which transformers does not have; it brings code of its own" in done.stderr
    assert not any(path.endswith(".py") for path in server.asked)

    write_spec(tmp_path, tmp_path, model={**model, "trust_remote_code": True})
    planned = ift(tmp_path, server.url, "plan", "spec.yaml", f"train.method={method}")
    assert planned.returncode == 0, planned.stderr
    assert f"config.json and the code of acme/own at revision {commit} on the hub" in planned.stdout
    done = ift(tmp_path, server.url, "run", "spec.yaml", f"train.method={method}")
    assert done.returncode == 0, done.stderr
    assert (
        len(set((tmp_path / "ran").read_text().split())) > 3
    )  # this process, its workers, and who evaluates
    tuned = tmp_path / "runs" / "tiny" / "model"
    if method == "full":
        assert (tuned / "modeling_own.py").read_text() == MODELING
    shutil.rmtree(tmp_path / "home" / "cache" / "trusted-code")
    asked = ift(tmp_path, server.url, "evaluate", "runs/tiny", "--probes", "copying", "--output", "elsewhere")
    assert asked.returncode == 2
    assert "which no spec has allowed on this machine" in asked.stderr
