"""A registered version's card: the page in MLflow's UI that a person decides from.

In:  a run's summary.
Out: Markdown, at most as long as the registry keeps; and what a card of the Hugging Face hub begins with.

    describe({"name": "reviews", "gate": {"verdict": "pass"}, ...})    # '# reviews\n\n**Gate: pass** ...'
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ift.models import adapters
from ift.redaction import without_secrets

# What every server's database holds; PostgreSQL and MySQL refuse more (SQLite does not).
DESCRIPTION_LENGTH = 5000
CUT = "\n\n… (cut here: MLflow keeps 5,000 characters; the report among the run's artefacts has the rest)"


def fit(text: str) -> str:
    """`text`, cut at a line's end where it is longer than the registry takes."""
    if len(text) <= DESCRIPTION_LENGTH:
        return text
    kept = text[: DESCRIPTION_LENGTH - len(CUT)]
    return kept[: kept.rfind("\n")].rstrip() + CUT if "\n" in kept else kept + CUT


def front_matter(summary: Mapping[str, Any]) -> str:
    """What a model card of the Hugging Face hub begins with."""
    if _is_adapter(summary):
        return adapters.front_matter(summary["model"]["source"])
    task = "text2text" if summary.get("model_class") == "AutoModelForSeq2SeqLM" else "text"
    return f"---\nlibrary_name: transformers\npipeline_tag: {task}-generation\ntags: [ift]\n---\n\n"


def _is_adapter(summary: Mapping[str, Any]) -> bool:
    return bool((summary.get("train") or {}).get("method") == "lora")


def describe(summary: Mapping[str, Any]) -> str:
    """The version's page in the MLflow UI, as Markdown: the verdict and the scores first, then the rest."""
    parts = [
        _verdict(summary.get("gate") or {}),
        _tasks(summary.get("task") or []),
        _probes(summary.get("probes") or []),
        _prompting(summary.get("prompting") or []),
        _attempts(summary.get("attempts") or []),
        _made(summary),
        _licences(summary.get("licenses") or {}),
        _load(summary),
    ]
    title = f"# {_cell(summary.get('name', 'model'))}"
    return "\n\n".join([title, *(part for part in parts if part)]) + "\n"


def _verdict(gate: Mapping[str, Any]) -> str:
    if not gate:
        return "**Gate: not evaluated.**"
    lines = [f"**Gate: {_cell(gate.get('verdict', 'unknown'))}**"]
    if gate.get("worst_drop") is not None:
        lines[0] += (
            f" · mean drop {_number(gate.get('mean_drop'))}, worst {_number(gate['worst_drop'])}"
            f" ({_cell(gate.get('worst_probe'))}), allowed {_number(gate.get('max_drop'))}"
        )
    not_passed = [line for line in gate.get("lines") or [] if line.get("verdict") != "pass"]
    lines += [
        f"- {_cell(line['check'])}: **{_cell(line['verdict'])}**, {_cell(line['detail'])}"
        for line in not_passed
    ]
    return lines[0] + ("\n\n" + "\n".join(lines[1:]) if not_passed else "")


def _prompting(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether prompting would have done, a line a task."""
    if not rows:
        return ""
    lines = [f"- **{_cell(row['name'])}**: {_cell(row['verdict']['words'])}" for row in rows]
    return "## Would prompting have done?\n\n" + "\n".join(lines)


def _attempts(rows: Sequence[Mapping[str, Any]]) -> str:
    """What else was tried where a first run forgot too much."""
    if not rows:
        return ""
    lines = [
        f"- {_cell(row['name'])}: {_cell(row['verdict'])}, worst drop {_number(row['worst_drop'])} "
        f"({_cell(row['worst_probe'] or 'no probe')})"
        + (f", too much on {_cell(', '.join(row['breaches'][:4]))}" if row.get("breaches") else "")
        + (", this version" if row["chosen"] else "")
        for row in rows
    ]
    return "## What was tried\n\n" + "\n".join(lines)


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [task.get("name"), task.get("metric"), task.get("items"), *_scores(task, "base", "tuned", "gain")]
        for task in tasks
    ]
    return _table("What it gained", ["task", "metric", "items", "base", "tuned", "gain"], rows)


def _probes(probes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [probe.get("name"), _metric(probe), probe.get("items"), *_scores(probe, "base", "tuned", "drop")]
        for probe in probes
    ]
    table = _table("What it forgot", ["probe", "metric", "items", "base", "tuned", "drop"], rows)
    if any(probe.get("kind") == "reference" for probe in probes):
        table += "\n\nNats: lower is better, and the drop is the share of a token's likelihood that was lost."
    return table


def _metric(probe: Mapping[str, Any]) -> str:
    return (
        "nats per token"
        if probe.get("kind") == "reference"
        else str(probe.get("metric") or probe.get("kind") or "")
    )


def _made(summary: Mapping[str, Any]) -> str:
    model, train, stream = (summary.get(key) or {} for key in ("model", "train", "stream"))
    facts = {
        "base model": model.get("source"),
        "revision": model.get("revision"),
        "SHA-256 of its archive": model.get("sha256"),
        "method": train.get("method"),
        "adapter": _adapter(train.get("adapter") or {}),
        "trained parameters": train.get("parameters"),
        "steps": train.get("steps"),
        "workers": train.get("workers"),
        "ZeRO stage": train.get("zero_stage"),
        "final training loss": train.get("final_loss"),
        "validation loss": train.get("validation_loss"),
        "examples": stream.get("examples"),
        "tokens": stream.get("tokens"),
        "supervised tokens": stream.get("supervised_tokens"),
        "stream": stream.get("hash"),
    }
    lines = [f"- {key}: {_fact(value)}" for key, value in facts.items() if value is not None]
    return "## How it was made\n\n" + "\n".join(lines) if lines else ""


def _adapter(adapter: Mapping[str, Any]) -> str | None:
    if not adapter:
        return None
    targets = adapter["targets"] if isinstance(adapter["targets"], str) else ", ".join(adapter["targets"])
    quantized = "" if adapter["quantize"] == "none" else f", on a base of {adapter['quantize']}"
    return f"{adapter['kind']} of rank {adapter['rank']}, alpha {adapter['alpha']:g}, {targets}{quantized}"


def _licences(licenses: Mapping[str, Any]) -> str:
    lines = [f"- {_cell(what)}: {_fact(terms)}" for what, terms in licenses.items()]
    return "## Data and licences\n\n" + "\n".join(lines) if lines else ""


def _load(summary: Mapping[str, Any]) -> str:
    found = summary.get("mlflow") or {}
    name, version = found.get("model_name") or summary.get("name", "model"), found.get("model_version")
    named = "@candidate" if found.get("alias", "candidate") else "/NUMBER"  # the version has none yet
    source = f"models:/{name}/{version}" if version else f"models:/{name}{named}"
    uri = found.get("tracking_uri")
    kind = summary.get("model_class") or "AutoModelForCausalLM"
    code = ", trust_remote_code=True" if (summary.get("model") or {}).get("trust_remote_code") else ""
    imports, note = [f"from transformers import {kind}, AutoTokenizer"], ""
    if _is_adapter(summary):
        kind = kind.replace("Auto", "AutoPeft", 1)
        imports = [f"from peft import {kind}", "from transformers import AutoTokenizer"]
        note = (
            "\n\nThis is an adapter; its base is where `adapter_config.json` says. "
            "`ift merge FOLDER OUTPUT` makes an ordinary model of both, and fetches the base where it is not there."
        )
    lines = "\n".join(
        [
            "## How to load it",
            "",
            "```python",
            "import mlflow",
            *imports,
            "",
            *([f"mlflow.set_tracking_uri({without_secrets(uri)!r})"] if uri else []),
            f"folder = mlflow.artifacts.download_artifacts({source!r})",
            f"tokenizer = AutoTokenizer.from_pretrained(folder{code})",
            f"model = {kind}.from_pretrained(folder{code})",
            "```",
        ]
    )
    return lines + note


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return f"## {title}\n\nNot measured."
    lines = [list(columns), ["---"] * len(columns), *([_fact(cell) for cell in row] for row in rows)]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _scores(entry: Mapping[str, Any], *keys: str) -> list[str]:
    return [_score(entry.get(key) or {}, signed=key in ("gain", "drop")) for key in keys]


def _score(score: Mapping[str, Any], *, signed: bool) -> str:
    value, low, high = (_number(score.get(key), signed=signed) for key in ("value", "low", "high"))
    return value if score.get("low") is None or score.get("high") is None else f"{value} [{low}, {high}]"


def _number(value: Any, *, signed: bool = False) -> str:
    with suppress(TypeError, ValueError):
        if math.isnan(float(value)):
            return "not a number"
        return f"{float(value):+.3f}" if signed else f"{float(value):.3f}"
    return "unknown"


def _fact(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | set):
        return ", ".join(_fact(item) for item in value)
    return _cell("unknown" if value is None else value)


def _cell(value: Any) -> str:
    """Text from the data as text: no table, markup or line of its own."""
    text = without_secrets(" ".join(str(value).split()))
    for mark in "\\`*_|<>[]#":
        text = text.replace(mark, "\\" + mark)
    return text
