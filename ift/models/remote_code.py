"""Code that comes with a model: it runs where a spec named its repository and its commit, and nowhere else.

In:  a model's folder, whose config.json or tokenizer_config.json may name classes of its own (`auto_map`).
Out: whether they may be used, and what transformers is told.

    allow(folder, "organisation/model", "4f1c…")    # the spec says so: this code is known from now on
    options(folder)                                 # {"local_files_only": True, "trust_remote_code": True}
    check(Path("found/somewhere"))                  # IftError: brings code of its own, which nobody has allowed

Code is known by the SHA-256 of its files, so that the exported model of a run is as good as the one it began with, and
one changed letter is not. What is known stands in `trusted-code` of ift's cache, a file for each, and in the
environment variable `IFT_TRUSTED_CODE`, which Ray gives to the workers of a run on other machines.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from ift import storage
from ift.errors import IftError

TRUSTED = "IFT_TRUSTED_CODE"  # digests with commas between them
# `module.Class` of a file in the folder. Not `organisation/other--module.Class`, which is code of another repository at
# whatever commit it has today; nor the absolute path of a file that is anybody's.
_BESIDE = re.compile(r"[A-Za-z_]\w*(?:/[A-Za-z_]\w*)*\.[A-Za-z_]\w*")


def allow(folder: Path, repository: str, revision: str) -> None:
    """Have the code in `folder`, which is `repository` at the commit `revision`, known on this machine and to this
    process, and to those that it starts."""
    digests = {path: _digest(path) for path in _files(folder)}
    for path, digest in digests.items():
        record = {"repository": repository, "revision": revision, "file": path.relative_to(folder).as_posix()}
        storage.write_json(_record(digest), record)
    before = filter(None, os.environ.get(TRUSTED, "").split(","))
    if digests:
        os.environ[TRUSTED] = ",".join(dict.fromkeys([*before, *digests.values()]))


def allowed(folder: Path) -> bool:
    """Whether the model in `folder` brings code, and all of it is known: each file, and each that a class is from."""
    names = _names(folder)
    if not names or not all(_BESIDE.fullmatch(name) for name in names):
        return False
    files, here = _files(folder), os.environ.get(TRUSTED, "").split(",")
    from_these = {folder / f"{name.partition('.')[0]}.py" for name in names} <= set(files)
    return from_these and all((d := _digest(path)) in here or _record(d).is_file() for path in files)


def options(folder: Path) -> dict[str, Any]:
    """What every class of transformers is given: nothing is fetched, and no code is run that is not `allowed`."""
    return {"local_files_only": True, "trust_remote_code": allowed(folder)}


def of_config(config: Any) -> dict[str, Any]:
    """`options` for `from_config`, which takes code from the folder that `config` says it is from.

    What a config says of itself is anybody's word: that folder has to be `allowed`, and to name the same classes.
    """
    if not config.name_or_path or not allowed(folder := Path(config.name_or_path)):
        return {"trust_remote_code": False}
    named = (storage.read_json(folder / "config.json") or {}).get("auto_map")
    return {"trust_remote_code": getattr(config, "auto_map", None) == named}


def check(folder: Path) -> None:
    """Raise `IftError` for a model that cannot do without code that is not `allowed`: it could do anything here."""
    names = _names(folder)
    if not names or allowed(folder):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = (storage.read_json(folder / "config.json") or {}).get("model_type")
    if kind in CONFIG_MAPPING_NAMES:  # many that transformers has by now still name the code they began with
        return
    what = f"the model in {folder} is of the kind {kind!r}, which transformers does not have; "
    if elsewhere := sorted({name for name in names if not _BESIDE.fullmatch(name)}):
        raise IftError(
            f"{what}its code lies elsewhere ({elsewhere[0]}), and no spec can name its commit",
            wanted="a model whose code lies beside it",
            hint="copy that code into a repository of your own, with `auto_map` naming the module alone",
        )
    files = ", ".join(sorted({name.partition(".")[0] + ".py" for name in names}))
    raise IftError(
        f"{what}it brings code of its own ({files}), which no spec has allowed on this machine",
        wanted="a model of an architecture that transformers has, or of the hub, with its commit named",
        hint="read that code; if it may do all that you may, then "
        "model: {source: organisation/model, revision: 40 digits, trust_remote_code: true}",
    )


def _names(folder: Path) -> list[str]:
    """The classes that the folder's files would have loaded from code, such as `modeling_own.Model`."""
    found: list[str] = []
    for file in ("config.json", "tokenizer_config.json"):
        named = (storage.read_json(folder / file) or {}).get("auto_map") or {}
        for value in (
            named.values() if isinstance(named, dict) else [named]
        ):  # tokenizers once had a list alone
            found += [str(name) for name in (value if isinstance(value, list) else [value]) if name]
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _record(digest: str) -> Path:
    return storage.cache_dir() / "trusted-code" / f"{digest}.json"
