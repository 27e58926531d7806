"""The import rules of the house, read from the source: nothing of `ift` is imported here.

Every import counts, at the top of a file or inside a function, and `importlib.import_module("ray")` too.
"""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1] / "ift"

# Arrows run downwards only: a section imports from the floors below its own, never from a neighbour.
FLOORS = [
    ["cli"],
    ["versions", "reproducing"],
    [
        "pipeline",
        "inspection",
        "looking",
        "chatting",
        "listing",
        "merging",
        "evaluating",
        "promoting",
        "submitting",
        "syncing",
        "doctor",
    ],
    ["stages"],
    ["reporting"],
    ["planning", "summary", "parcel"],
    ["fetching"],
    ["train", "tracking"],
    ["data", "evaluate"],
    ["models", "tasks"],
    ["dashboard"],
    ["prompts", "spec", "cluster", "packages", "following"],
    ["storage", "places", "strict_yaml", "console", "memory", "stopping"],
    ["redaction"],
    ["errors"],
]

# Two sections that stand one above the other and still do not know each other.
STRANGERS = [("train", "evaluate")]

# What decides what a run computes is plain Python and torch: it can be read, tested and trusted on its own.
PURE = [
    "ift.train.best",
    "ift.train.checkpoint",
    "ift.train.job",
    "ift.train.loss",
    "ift.train.loop",
    "ift.train.noise",
    "ift.data.cache",
    "ift.data.contamination",
    "ift.data.draws",
    "ift.data.duplicates",
    "ift.data.examples",
    "ift.data.gather",
    "ift.data.items",
    "ift.data.mixture",
    "ift.data.pack",
    "ift.data.quarantine",
    "ift.data.shingles",
    "ift.data.split",
    "ift.data.stream",
    "ift.data.tokenize",
    "ift.data.tokens",
    "ift.data.wording",
    "ift.models.plan",
    "ift.models.scaling",
    "ift.tasks",
    "ift.prompts",
]
MACHINERY = {"ray", "deepspeed", "mlflow"}

# The only places that may import these; elsewhere they would spread. The key covers its submodules.
RESERVED = {
    "deepspeed": {"ift.train.engine", "ift.train.shards", "ift.doctor.look"},
    "ray.train": {"ift.train.worker", "ift.train.trainer", "ift.train.group"},
    "yaml": {"ift.strict_yaml", "ift.spec", "ift.tasks", "ift.data.formats", "ift.prompts.promptsource"},
    "ift.strict_yaml": {"ift.models.base", "ift.spec", "ift.tasks"},
}

# `ift --help` is instant because none of these is loaded.
HEAVY = {"torch", "ray", "transformers", "mlflow", "pydantic", "deepspeed", "datasets", "pyarrow", "numpy"}


def dotted(path: Path) -> str:
    """ift/data/pack.py -> ift.data.pack; ift/data/__init__.py -> ift.data"""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def within(module: str, place: str) -> bool:
    """Whether `module` is `place` or lies inside it: ift.data.pack is within ift.data, ift.datafile is not."""
    return module == place or module.startswith(place + ".")


def section(module: str) -> str:
    """ift.data.pack -> data; `ift` itself, the map of the package, has none."""
    return module.removeprefix("ift").lstrip(".").partition(".")[0]


class House:
    """The modules of a package, and for each what it imports.

    `imports["ift.data.pack"] == {"torch.nn", "ift.prompts.template"}`: dotted names, as deep as they go.
    """

    def __init__(self, root: Path) -> None:
        files = {dotted(path.relative_to(root.parent)): path for path in sorted(root.rglob("*.py"))}
        self.modules = set(files)
        self.imports = {
            module: {self.known(name) for name in names(path, module)} for module, path in files.items()
        }

    def known(self, name: str) -> str:
        """`from ift.data import pack` names a module, `from ift.data.pack import Packer` something in one."""
        while name.startswith("ift.") and name not in self.modules:
            name = name.rpartition(".")[0]
        return name

    def closure(self, module: str) -> dict[str, list[str]]:
        """All that `module` imports at any depth, and the way there: {"ray": ["ift.data.pack", ..., "ray"]}.

        Importing ift.data.pack runs ift/__init__.py and ift/data/__init__.py too, so they count.
        """
        ways: dict[str, list[str]] = {module: [module]}
        queue = [module]
        for here in queue:
            for there in sorted(self.imports.get(here, set()) | parents(here)):
                if there not in ways:
                    ways[there] = [*ways[here], there]
                    queue.append(there)
        return ways


def parents(module: str) -> set[str]:
    """ift.data.pack -> {ift, ift.data}"""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))} if parts[0] == "ift" else set()


def names(path: Path, module: str) -> Iterator[str]:
    """The dotted names that a file imports; `import ray` and then `ray.train.report()` counts as ray.train."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=origin, names=aliases, level=level):
                base = package[: len(package) - level + 1] if level else []
                prefix = ".".join([*base, *([origin] if origin else [])])
                yield from (prefix if alias.name == "*" else f"{prefix}.{alias.name}" for alias in aliases)
            case ast.Attribute(value=ast.Name(id="ray"), attr=attribute):
                yield f"ray.{attribute}"
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def upward_arrows(house: House) -> list[str]:
    """Imports that do not run downwards, and sections that have no floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = []
    for module, imports in sorted(house.imports.items()):
        here = section(module)
        if here and here not in floor:
            wrong.append(f"{module}: {here} stands on no floor; give it one in FLOORS")
            continue
        for target in sorted(imports):
            there = section(target)
            if not within(target, "ift") or not here or here == there:
                continue
            if there and floor.get(there, -1) <= floor[here]:
                wrong.append(f"{module} imports {target}: {there} is not below {here}")
            elif (here, there) in STRANGERS:
                wrong.append(f"{module} imports {target}: {here} and {there} do not know each other")
    return wrong


def machinery_in_pure_modules(house: House) -> list[str]:
    """Ways from a pure module to ray, deepspeed or mlflow, at any depth."""
    return [
        f"{' -> '.join(way)}: {module} is pure"
        for module in sorted(house.modules)
        if any(within(module, place) for place in PURE)
        for name, way in house.closure(module).items()
        if name.split(".")[0] in MACHINERY
    ]


def trespasses(house: House) -> list[str]:
    """Imports of a reserved name from a place that is not its own."""
    return [
        f"{module} imports {name}: only {', '.join(sorted(places))} may"
        for module, imports in sorted(house.imports.items())
        for name in sorted(imports)
        for reserved, places in RESERVED.items()
        if within(name, reserved) and not any(within(module, place) for place in {*places, reserved})
    ]


RULES = [upward_arrows, machinery_in_pure_modules, trespasses]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule):
    house = House(HOUSE)
    assert "ift.errors" in house.modules
    assert rule(house) == []


@pytest.mark.parametrize(
    ("rule", "path", "source", "complaint"),
    [
        (upward_arrows, "data/pack.py", "from ift import pipeline", "pipeline is not below data"),
        (upward_arrows, "data/pack.py", "from ..train.loss import mean", "train is not below data"),
        (upward_arrows, "models/base.py", "def f():\n    import ift.tasks", "tasks is not below models"),
        (upward_arrows, "train/loop.py", "from ift.evaluate import score", "do not know each other"),
        (upward_arrows, "attic.py", "", "attic stands on no floor"),
        (machinery_in_pure_modules, "tasks/metrics.py", "def f():\n    import mlflow", "is pure"),
        (machinery_in_pure_modules, "prompts/__init__.py", "import ray.data", "is pure"),
        (machinery_in_pure_modules, "data/split.py", "from ift.storage import put", "ift.storage -> ray"),
        (machinery_in_pure_modules, "data/__init__.py", "import deepspeed", "ift.data -> deepspeed"),
        (
            trespasses,
            "train/loop.py",
            "from deepspeed import zero",
            "only ift.doctor.look, ift.train.engine, ift.train.shards may",
        ),
        (trespasses, "cluster.py", "import ray\nray.train.report({})", "imports ray.train"),
        (
            trespasses,
            "cluster.py",
            "from ray import train",
            "only ift.train.group, ift.train.trainer, ift.train.worker may",
        ),
        (trespasses, "cluster.py", "import importlib\nimportlib.import_module('deepspeed')", "deepspeed"),
        (
            trespasses,
            "evaluate/score.py",
            "import yaml",
            "only ift.data.formats, ift.prompts.promptsource, ift.spec, ift.strict_yaml, ift.tasks may",
        ),
        (
            trespasses,
            "cli.py",
            "from ift.strict_yaml import load",
            "only ift.models.base, ift.spec, ift.tasks may",
        ),
    ],
)
def test_a_broken_rule_is_seen(tmp_path, rule, path, source, complaint):
    house = tmp_path / "ift"
    lawful = {"storage.py": "import ray", "data/pack.py": "import torch", "strict_yaml.py": "import yaml"}
    for name in ("__init__.py", "pipeline.py", "train/loss.py", "evaluate/score.py", "tasks/__init__.py"):
        lawful[name] = ""
    for name, text in lawful.items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(text)
    assert rule(House(house)) == []

    (house / path).parent.mkdir(exist_ok=True)
    (house / path).write_text(source)
    found = rule(House(house))
    assert found
    assert complaint in found[0]


def test_every_folder_of_code_is_packaged():
    folders = {path.parent for path in HOUSE.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.skipif(importlib.util.find_spec("ift.cli") is None, reason="there is no ift.cli")
def test_help_loads_nothing_heavy():
    script = """
import json, sys
from ift.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
finally:
    print("\\n" + json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    help_text, _, loaded = done.stdout.strip().rpartition("\n")
    assert "Usage" in help_text
    assert HEAVY & {name.split(".")[0] for name in json.loads(loaded)} == set()
