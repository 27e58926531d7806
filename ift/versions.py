"""`ift models`: what is registered, beside each other, and fetched.

In:  the tracking URI; names of models, and versions as NAME@ALIAS or NAME/NUMBER.
Out: tables for people, the same rows as JSON, or a folder with a model.

    rows(Registry("sqlite:///mlflow.db"))    # [{"name": "reviews", "versions": 7, "champion": 5, ...}]
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from ift import storage
from ift.console import VERDICT_COLOURS, widened
from ift.errors import IftError
from ift.listing import print_json
from ift.tracking import promotion
from ift.tracking.registry import Registry, Version

Row = dict[str, Any]


def rows(registry: Registry) -> list[Row]:
    """A row a model."""
    found = []
    for name in registry.names():
        versions = registry.versions(name)
        newest = versions[0] if versions else None
        found.append(
            {
                "name": name,
                "versions": len(versions),
                "newest": newest.number if newest else None,
                "gate": newest.tags.get("ift.gate", "") if newest else "",
                "aliases": registry.aliases(name),
                "created": newest.created if newest else None,
            }
        )
    return found


def show_models(uri: str, *, as_json: bool, console: Console | None = None) -> None:
    """Print the registered models."""
    registry = Registry(uri)
    found = rows(registry)
    if as_json:
        print_json(found)
        return
    if not found:
        raise IftError(
            f"no model is registered in MLflow at {registry.address}",
            hint="`ift run SPEC` registers what it trains",
        )
    table = _table("name", "versions", "newest", "gate", "aliases", "since")
    for row in found:
        aliases = ", ".join(f"{alias} {number}" for alias, number in row["aliases"].items())
        since = promotion.when(row["created"]) if row["created"] else ""
        table.add_row(
            row["name"], str(row["versions"]), _text(row["newest"]), _verdict(row["gate"]), aliases, since
        )
    widened(console).print(table)


def version_row(version: Version, summary: Mapping[str, Any] | None) -> Row:
    """What tells a version apart, with its scores where they are known."""
    summary = summary or {}
    return {
        "version": version.number,
        "aliases": list(version.aliases),
        "gate": version.tags.get("ift.gate", ""),
        "base": version.tags.get("ift.base_model", ""),
        "tasks": {row["name"]: row["tuned"]["value"] for row in summary.get("task", ())},
        "gains": {row["name"]: row["gain"]["value"] for row in summary.get("task", ())},
        "drops": {row["name"]: row["drop"]["value"] for row in summary.get("probes", ())},
        "guard": {
            key.rpartition(".")[2]: text for key, text in version.tags.items() if key.startswith("ift.guard.")
        },
        "created": version.created,
        "run": version.run_id,
    }


def show_model(
    uri: str, name: str, which: str | None, *, as_json: bool, console: Console | None = None
) -> None:
    """Print the versions of a model and the moves of its aliases; or one version's card and tags."""
    registry = Registry(uri)
    if which:
        _show_version(registry, registry.version(name, which), as_json=as_json, console=widened(console))
        return
    versions = registry.versions(name)
    with ThreadPoolExecutor(8) as threads:  # a request or two each, and there may be a hundred
        found = list(map(version_row, versions, threads.map(registry.summary, versions)))
    aliases = [
        tag.removeprefix("ift.history.")
        for tag in registry.model(name).tags
        if tag.startswith("ift.history.")
    ]
    moves = {alias: promotion.history(registry, name, alias) for alias in aliases}
    if as_json:
        print_json(
            {"versions": found, "moves": {alias: [vars(m) for m in of] for alias, of in moves.items()}}
        )
        return
    console = widened(console)
    table = _table("version", "aliases", "gate", "scores", "worst drop", "since")
    for row in found:
        scores = ", ".join(
            f"{task} {_signed(row['gains'][task], value)}" for task, value in row["tasks"].items()
        )
        drops = {probe: drop for probe, drop in row["drops"].items() if drop is not None}
        worst = max(drops, key=drops.__getitem__, default=None)
        table.add_row(
            str(row["version"]),
            ", ".join(row["aliases"]),
            _verdict(row["gate"]),
            scores,
            f"{drops[worst]:+.2f} ({worst})" if worst else "",
            promotion.when(row["created"]),
        )
    console.print(table)
    for alias, of in moves.items():
        console.print(f"\n[bold]{alias}[/]", highlight=False)
        for move in of[-10:]:
            reason = f": {move.reason}" if move.reason else ""
            console.print(
                Text(
                    f"  {promotion.when(move.time)}  version {move.version or 'none'}, {move.how} by {move.by}{reason}"
                ),
                soft_wrap=True,
            )


def _show_version(registry: Registry, version: Version, *, as_json: bool, console: Console) -> None:
    if as_json:
        row = version_row(version, registry.summary(version))
        print_json(
            {**row, "tags": dict(version.tags), "description": version.description, "source": version.source}
        )
        return
    console.print(Markdown(version.description or f"# {version}\n\nIt has no card."))
    table = _table("tag", "")
    for key, value in sorted(version.tags.items()):
        table.add_row(key, value)
    console.print(table)


def diff(uri: str, one: str, other: str, *, as_json: bool, console: Console | None = None) -> None:
    """Print what tells two versions apart: scores, probes, the spec's values, data."""
    registry = Registry(uri)
    versions = [registry.named(one), registry.named(other)]
    found = difference(registry, *versions)
    if as_json:
        print_json(found)
        return
    console = widened(console)
    table = _table("", *(f"{version}" for version in versions), "change")
    for group, lines in found.items():
        if not lines:
            continue
        table.add_row(Text(group, style="bold"))
        for key, (before, after) in lines.items():
            change = (
                f"{after - before:+.3f}" if isinstance(before, float) and isinstance(after, float) else ""
            )
            table.add_row(f"  {key}", _value(before), _value(after), change)
    console.print(table)
    if not any(found.values()):
        console.print("they do not differ in anything that is written down")


def difference(registry: Registry, one: Version, other: Version) -> dict[str, dict[str, tuple[Any, Any]]]:
    """By group (`tasks`, `probes`, `spec`, `made`), what differs: key → the value of `one`, and of `other`."""
    summaries = [registry.summary(version) or {} for version in (one, other)]
    params = [registry.params(version) for version in (one, other)]
    groups = {
        "tasks": [{row["name"]: row["tuned"]["value"] for row in s.get("task", ())} for s in summaries],
        "probes": [{row["name"]: row["tuned"]["value"] for row in s.get("probes", ())} for s in summaries],
        "spec": params,
        "made": [_made(version, summary) for version, summary in zip((one, other), summaries, strict=True)],
    }
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for group, (before, after) in groups.items():
        keys = dict.fromkeys([*before, *after])
        found[group] = {
            key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
        }
    return found


def _made(version: Version, summary: Mapping[str, Any]) -> Row:
    stream, train = summary.get("stream") or {}, summary.get("train") or {}
    return {
        "base": version.tags.get("ift.base_model"),
        "pin": version.tags.get("ift.base_pin"),
        "stream": stream.get("hash"),
        "examples": stream.get("examples"),
        "supervised tokens": stream.get("supervised_tokens"),
        "steps": train.get("steps"),
        "method": train.get("method"),
        "workers": train.get("workers"),
        "gate": version.tags.get("ift.gate"),
    }


def pull(uri: str, reference: str, folder: Path, console: Console | None = None) -> None:
    """Fetch the model of a version into `folder`."""
    registry = Registry(uri)
    version = registry.named(reference)
    registry.pull(version, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    widened(console).print(
        f"version {version.number} of {version.name} is in {folder}, {size / storage.GIB:.2f} GiB: "
        f"`ift chat {folder}` talks to it",
        highlight=False,
        soft_wrap=True,
    )


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _verdict(verdict: str) -> Text:
    return Text(verdict, style=VERDICT_COLOURS.get(verdict, ""))


def _signed(gain: float | None, value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}" + (f" ({gain:+.2f})" if gain is not None else "")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _value(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "–" if value is None else f"{value}"
