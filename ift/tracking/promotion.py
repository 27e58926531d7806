"""Promotion: an alias such as `champion` goes to a version that passes, and every move of it is written down.

In:  a registry, a model's name, a version, an alias.
Out: a decision, line by line; where it passes, or is overridden with a reason, the alias points at the version, and
     the version, the model and the version's run say who did it, when and why.

    decision = decide(registry, registry.version("reviews", "7"), registry.version("reviews", "@champion"))
    promote(registry, registry.version("reviews", "7"), "champion", decision, by="ada")

What is decided (gate.py has the rules of the first three):

    gain         on every task, against the base model
    forgetting   on every probe, against the base model
    champion     no task worse and no probe lower than with the version that holds the alias, on the same items
    leaks        the rows trained on were searched for test items
    export       the files of the model are there, in their sizes, are those that its run measured, and it was reloaded
                 with equal logits
    licences     the terms of every data set, and of the base model where its card states them, permit use

Every move of an alias has a number. It is claimed as a param of the run of the model's first version: MLflow takes a
param once and never changes it, so of two promotions at the same time one is told so, on any of its databases. The
moves themselves stand in a tag of the registered model (`ift.history.ALIAS`).
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ift.errors import IftError
from ift.evaluate import forgetting
from ift.tracking import gate
from ift.tracking.registry import CANDIDATE, Registry, Unreadable, Version
from ift.tracking.values import TAG_LENGTH

CHAMPION = "champion"
# How an alias moves: to another version, or back to one that held it (version 0: it was taken away).
PROMOTED, OVERRIDDEN, SET, NOT_PASSED = "promoted", "overridden", "set in MLflow", "set in MLflow, not passed"
ROLLED_BACK, RETURNED = "rolled back", "returned by the guard"
REASON_LENGTH = 300  # characters of a reason in the history, and on a version's page
_FRESH_S = 60.0  # a claim that is younger may still be at work
# Both are looked for in terms whose punctuation is spaces, `CC_BY-NC4.0` as `cc by nc4 0`.
# use for one purpose; not the Academic Free License, nor the Educational Community License
_SOME_USE = r"(research|evaluation|personal|academic(?! free)|education(?:al)?(?! community)|non ?profit)"
_PUNISHED = re.compile(
    r"\b(cc ?)?(by ?)?(sa ?)?n[cd](sa|nd)?\d*\b"
    r"|\b(non?|not for) ?commercial|commercial use (is )?(not|prohibited|forbidden)"
    r"|\bno(n|t)? ?deriv|for research|\bnon ?production"
    rf"|\b{_SOME_USE}( \w+){{0,3}} only\b|\bonly (for )?{_SOME_USE}\b|\b(personal|academic|evaluation|non ?profit) use"
    # terms that are known by a name
    r"|\b(qwen|qianwen|mistral( ai)?|stability ai|falcon llm|apple|microsoft) research( ai)?( model)? licen[cs]e"
    r"|\b(qwen|qianwen) research\b|\b(mrl|mnpl|msr ?la|amlr)\b",
)
_UNKNOWN = re.compile(
    r"^$|unstated|unknown|unchecked|not stated|unspecified|all rights reserved|proprietary"
    rf"|^(n a|na|none|null|no licen[cs]e)\b|^(cc|creative commons)$|\b{_SOME_USE}\b"
    # what a model's card names by itself (`license_name`), but for widely read terms
    r"|^other\b(?! ((modified )?mit|apache|llama ?\d*|gemma|qwen|tongyi qianwen|deepseek|nvidia open model)\b)"
)
_WIDEST = 20  # words in a row up to which a search for leaks finds some
_RELOADED = 1e-3  # relative error of the logits up to which an export counts as reloaded


class Moved(IftError):
    """Somebody else has moved the alias, or is about to."""


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    number: int
    version: int
    how: str
    by: str
    time: float  # unix seconds
    reason: str = ""  # its first 300 characters: the tags of the version have all of it


@dataclass(frozen=True)
class Decision:
    """Whether a version may have an alias, with a line for each check."""

    version: Version
    champion: Version | None
    lines: Sequence[Mapping[str, str]]

    @property
    def verdict(self) -> str:
        return gate.worst(self.lines)

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    @property
    def failed(self) -> list[Mapping[str, str]]:
        """The lines that stand in the way."""
        return [line for line in self.lines if line["verdict"] != "pass"]


# ── the decision ──


def decide(
    registry: Registry,
    version: Version,
    champion: Version | None,
    *,
    max_drop: float | None = None,
    min_gain: float = 0.0,
    accepted: Sequence[str] = (),
    asked: Sequence[Mapping[str, Any]] | None = None,
) -> Decision:
    """May `version` follow `champion`? `max_drop` is the run's own if not given; against the champion, the smaller one
    of the two runs'.

    `accepted` are words of licences whose terms somebody has read. `asked` are the champion's predictions of the
    version's items, where they were made anew.
    """

    def all_lines() -> list[dict[str, str]]:
        summary = registry.summary(version)
        if summary is None or not summary.get("task"):
            missing = "its files hold no results (ift.json): it was not registered by `ift run`, or they were deleted"
            return [gate.line("evaluations", "evaluations", "unclear", missing)]
        tolerated = summary["gate"]["max_drop"] if max_drop is None else max_drop
        own = gate.decide(summary["task"], summary["probes"], max_drop=tolerated, min_gain=min_gain)
        lines = list(own["lines"])
        if champion and champion.number != version.number:
            check = f"against version {champion.number}"
            lines += _readable(
                "champion",
                check,
                lambda: _against(registry, version, champion, check, summary, max_drop, asked),
            )
        if served := registry.elsewhere(version):
            words = f"it serves {served}, and what was measured is the model of its run {version.run_id}"
            lines += [leaks(summary), gate.line("export", "export", "fail", words)]
        else:
            lines += [leaks(summary), export(summary, registry.files(version))]
        return lines + licences(summary.get("licenses") or {}, accepted)

    return Decision(version, champion, _readable("evaluations", "evaluations", all_lines))


def _readable(of: str, check: str, make: Callable[[], list[dict[str, str]]]) -> list[dict[str, str]]:
    """The lines that `make` makes; an unclear one where what they are made of is not as `ift run` writes it."""
    try:
        return make()
    except Unreadable as error:
        return [gate.line(of, check, "unclear", error.what)]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        words = f"its results are not as `ift run` writes them ({type(error).__name__}: {error})"
        return [gate.line(of, check, "unclear", words)]


def _against(
    registry: Registry,
    version: Version,
    champion: Version,
    check: str,
    summary: Mapping[str, Any],
    max_drop: float | None,
    asked: Sequence[Mapping[str, Any]] | None,
) -> list[dict[str, str]]:
    after = registry.predictions(version, "evaluate")
    before = asked if asked is not None else registry.predictions(champion, "evaluate")
    ask = "`--ask` asks it the same items now"
    if after is None:
        gone = "its predictions are not in MLflow, so it cannot be compared"
        return [gate.line("champion", check, "unclear", gone)]
    if before is None:
        gone = f"the predictions of version {champion.number} are not in MLflow; {ask}"
        return [gate.line("champion", check, "unclear", gone)]
    its_items, own_items = forgetting.questions(before, after)
    if its_items != own_items:
        others = max(len(set(its_items) - set(own_items)), abs(len(before) - len(after)))
        words = f"the two were asked other items ({others:,} of {len(before):,} differ); {ask}"
        return [gate.line("champion", check, "unclear", words)]
    tasks, probes = forgetting.compare(before, after, may_gain=False)
    its = registry.summary(champion) or {}
    if max_drop is None:
        max_drop = min(found["gate"]["max_drop"] for found in (summary, its) if found)
    judged = gate.beside(tasks, probes, max_drop=max_drop)
    asked_of_it = dict.fromkeys(str(probe["name"]) for probe in its.get("probes") or [])
    words = f"version {champion.number} was asked it, version {version.number} was not"
    for name in asked_of_it:
        if name not in {probe["name"] for probe in probes}:
            judged.append(gate.line("champion", f"probe {name}", "unclear", words))
    return [{**line, "check": f"{line['check']} {check}"} for line in judged]


def leaks(summary: Mapping[str, Any]) -> dict[str, str]:
    """Whether training rows were searched for the test items, and how closely."""
    searched = (summary.get("data") or {}).get("decontaminate")
    if searched is None:
        return gate.line("leaks", "leaks", "unclear", "it is not known whether training rows hold test items")
    if not searched:
        return gate.line(
            "leaks",
            "leaks",
            "fail",
            "training rows were not searched for test items (data.decontaminate: false)",
        )
    if searched > _WIDEST:
        words = (
            f"only {searched} words in a row count as a leak (data.decontaminate); {_WIDEST} at most show one"
        )
        return gate.line("leaks", "leaks", "unclear", words)
    own = forgetting.METRICS.values()  # those of the lm-evaluation-harness are named as it names them
    foreign = [str(p["name"]) for p in summary.get("probes") or [] if p.get("metric", "accuracy") not in own]
    dropped = summary["data"].get("contaminated", 0)
    words = (
        f"no training row holds a whole test item or probe, or {searched} words in a row of one that ten other rows "
        f"do not share ({dropped:,} were dropped)"
        + f"; the harness's items were not searched for ({', '.join(foreign[:3])})"
        * bool(foreign)
    )
    return gate.line("leaks", "leaks", "pass", words)


def export(summary: Mapping[str, Any], there: Mapping[str, int]) -> dict[str, str]:
    """Whether the model's files are as they were written, and were reloaded with equal logits."""
    wanted = summary.get("files") or {}
    gone = [name for name in wanted if name not in there]
    other = [name for name, size in wanted.items() if name in there and there[name] != size]
    error = (summary.get("train") or {}).get("reload_error")
    if not there or gone:
        named = ", ".join(gone[:3]) or "all of them"
        return gate.line(
            "export", "export", "fail", f"files of the model are not in MLflow any more: {named}"
        )
    if other:
        name = other[0]
        return gate.line(
            "export", "export", "fail", f"{name} has {there[name]:,} bytes, {wanted[name]:,} were written"
        )
    if error is None or not wanted:
        return gate.line("export", "export", "unclear", "it is not known whether the export was reloaded")
    if not error <= _RELOADED:
        return gate.line(
            "export", "export", "fail", f"reloaded with other logits: relative error {error:.0e}"
        )
    words = f"{len(there)} files as written; reloaded with the same logits (error {error:.0e})"
    return gate.line("export", "export", "pass", words)


def licences(terms: Mapping[str, str], accepted: Sequence[str]) -> list[dict[str, str]]:
    """A line for each kind of terms: a clause against commercial use or derivatives fails, terms that nobody stated or
    that only their owner knows are unclear."""
    if not terms:
        return [gate.line("licences", "licences", "unclear", "the run has no licences of its data")]
    of: dict[tuple[str, str], list[str]] = {}
    for name, text in terms.items():
        if any(word.lower() in text.lower() for word in accepted):
            of.setdefault(("pass", f"{text} (accepted)"), []).append(name)
        elif _PUNISHED.search(_plain(text)):
            of.setdefault(("fail", f"{text}: does not permit every use"), []).append(name)
        elif _UNKNOWN.search(_plain(text)):
            of.setdefault(("unclear", f"{text or 'no licence'}: its terms are not known"), []).append(name)
        else:
            of.setdefault(("pass", text), []).append(name)
    return [
        gate.line(
            "licences",
            "licence of " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
            verdict,
            words + ("" if verdict == "pass" else "; `--accept-licence WORD` once you have read them"),
        )
        for (verdict, words), names in of.items()
    ]


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().lower()


# ── the moves ──


def check_alias(alias: str) -> None:
    """Raise `IftError` for an alias that nobody may be promoted to."""
    if alias == CANDIDATE:
        raise IftError(
            f"`{CANDIDATE}` is set by `ift run`, to its newest version",
            wanted="an alias that a person gives, such as champion",
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias) or not re.fullmatch(r"[\w-]+", alias):
        raise IftError(
            f"`{alias}` cannot be an alias: MLflow keeps `latest` and v1, v2, … for itself, and takes letters, "
            "digits, `_` and `-`",
            wanted="an alias such as champion",
        )


def promote(
    registry: Registry, version: Version, alias: str, decision: Decision, *, by: str, override: str = ""
) -> Move:
    """Point `alias` at the version. Raises `IftError` where the decision is against it and nobody overrides it, and
    where somebody else was faster."""
    check_alias(alias)
    if not decision.passed and not override:
        words = "; ".join(f"{line['check']}: {line['verdict']}" for line in decision.failed[:4])
        raise IftError(
            f"version {version.number} of {version.name} is not promoted to {alias}: {words}",
            wanted="pass on every line",
            hint='--override "reason" promotes it all the same, and writes the reason down',
        )
    compared = decision.champion.number if decision.champion else None
    # nobody, or the version itself by other means than ours: it takes the place of none but the one compared with
    with _unmoved(registry, version.name, alias, compared, None, version.number):
        move = _claim(
            registry,
            version.name,
            version.number,
            alias,
            how=PROMOTED if decision.passed else OVERRIDDEN,
            by=by,
            reason=override,
        )
    _set(registry, version, alias, move)
    lines = "\n".join(f"{line['verdict']}: {line['check']}: {line['detail']}" for line in decision.lines)
    with registry.errors("written to"):
        client = registry.client
        client.set_model_version_tag(
            version.name, str(version.number), f"ift.decision.{alias}", lines[:TAG_LENGTH]
        )
        if override:
            text = f"{override} ({by}, {when(move.time)})"
            client.set_model_version_tag(
                version.name, str(version.number), f"ift.override.{alias}", text[:TAG_LENGTH]
            )
    return move


def rollback(registry: Registry, name: str, alias: str, *, by: str, reason: str = "") -> tuple[Version, Move]:
    """Point `alias` at the version that held it before. Raises `IftError` where there is none whose files are there."""
    check_alias(alias)
    held = registry.aliases(name).get(alias)
    past = history(registry, name, alias)
    version = with_files(registry, holders(registry, name, alias, held))
    if version:
        with _unmoved(registry, name, alias, held):
            move = _claim(
                registry, name, version.number, alias, how=ROLLED_BACK, by=by, reason=reason, past=past
            )
        _set(registry, version, alias, move)
        return version, move
    raise IftError(
        f"no version held `{alias}` of {name} before" + (f" version {held}" if held else ""),
        wanted="an earlier version that was promoted, and whose files are still there",
        hint=f"`ift models show {name}` lists the versions, `ift promote {name} NUMBER --to {alias}` promotes one",
    )


def holders(registry: Registry, name: str, alias: str, held: int | None) -> list[Version]:
    """The versions that held `alias` before `held`, the last first, as far as they are still registered."""
    versions = {version.number: version for version in registry.versions(name)}
    return [versions[n] for n in before(history(registry, name, alias), held) if n in versions]


def moved_by_ift(registry: Registry, name: str, alias: str, version: int) -> bool:
    """Whether the last move of `alias` was to this version, and not made in MLflow's pages."""
    past = history(registry, name, alias)
    return bool(past and past[-1].version == version and past[-1].how not in (SET, NOT_PASSED))


def with_files(registry: Registry, versions: Sequence[Version]) -> Version | None:
    """The first of them whose model is there, and can be loaded."""
    return next((version for version in versions if registry.files(version)), None)


def before(moves: Sequence[Move], held: int | None) -> list[int]:
    """The versions that held the alias before, the last first: a move back takes the later ones away, and a version
    that did not pass was never one that the alias may go back to.

    before([Move(1, 4, ...), Move(2, 7, ...)], held=7) == [4]
    """
    stack: list[int] = []
    for move in moves:
        if move.how in (ROLLED_BACK, RETURNED):
            while stack and stack[-1] != move.version:
                stack.pop()
            if not stack and move.version:
                stack.append(move.version)
        elif move.how != NOT_PASSED and (not stack or stack[-1] != move.version):
            stack.append(move.version)
    while stack and stack[-1] == held:
        stack.pop()
    return stack[::-1]


def history(registry: Registry, name: str, alias: str) -> list[Move]:
    """The last moves of `alias`, the first first."""
    text = registry.model(name).tags.get(_tag(alias))
    return [Move(**move) for move in json.loads(text)] if text else []


def return_alias(
    registry: Registry, of: Version, alias: str, to: Version | None, *, by: str, reason: str
) -> None:
    """Take `alias` back from the version `of`: to the version that held it before, or away.

    Raises `IftError` where `of` does not hold it any more.
    """
    with _unmoved(registry, of.name, alias, of.number):
        move = _claim(registry, of.name, to.number if to else 0, alias, how=RETURNED, by=by, reason=reason)
    if to:
        _set(registry, to, alias, move)
    else:
        with registry.errors("written to"):
            registry.client.delete_registered_model_alias(of.name, alias)
        _remember(registry, of.name, alias, move)


def record(registry: Registry, version: Version, alias: str, *, how: str, reason: str = "") -> Move | None:
    """Write down a move that somebody made in MLflow's pages, who MLflow does not say.

    None where it was `ift` after all, which writes its move down behind it. Raises `IftError` where the version does
    not hold the alias any more: a decision on it is of no use then.
    """
    past = history(registry, version.name, alias)
    if past and past[-1].version == version.number and past[-1].how != NOT_PASSED:
        return None
    with _unmoved(registry, version.name, alias, version.number):
        move = _claim(
            registry,
            version.name,
            version.number,
            alias,
            how=how,
            by="somebody in MLflow",
            reason=reason,
            past=past,
        )
    _remember(registry, version.name, alias, move)
    return move


def _claim(
    registry: Registry,
    name: str,
    version: int,
    alias: str,
    *,
    how: str,
    by: str,
    reason: str,
    past: Sequence[Move] | None = None,
) -> Move:
    """The next number of the alias' moves behind those of the `past`, ours alone."""
    from mlflow.exceptions import MlflowException

    past = history(registry, name, alias) if past is None else past
    number = past[-1].number + 1 if past else 1
    run_id = _first_run(registry, name)
    while True:
        move = Move(number, version, how, short(by), round(time.time(), 3), short(reason))
        if run_id is None:
            return move
        text = f"version {version} {how} by {by}, {when(move.time)} ({move.time})"
        key = f"ift.move.{alias}.{number:04d}"
        with registry.errors("written to"):
            try:
                registry.client.log_param(run_id, key, text)
                return move
            except MlflowException as error:
                taken = registry.client.get_run(run_id).data.params.get(key)
                if taken is None:
                    raise error
        since = time.time() - float(taken.rpartition("(")[2].rstrip(")"))
        if since < _FRESH_S:
            raise _other(alias, taken.rpartition(" (")[0])
        number += 1  # whoever took it did not come to its end


def _first_run(registry: Registry, name: str) -> str | None:
    for version in reversed(registry.versions(name)):
        if version.run_id and registry.run_is_active(version.run_id):
            return version.run_id
    return None


def _set(registry: Registry, version: Version, alias: str, move: Move) -> None:
    with registry.errors("written to"):
        registry.client.set_registered_model_alias(version.name, alias, str(version.number))
        text = f"{move.how} by {move.by}, {when(move.time)}"
        registry.client.set_model_version_tag(version.name, str(version.number), f"ift.alias.{alias}", text)
    _remember(registry, version.name, alias, move)


def _remember(registry: Registry, name: str, alias: str, move: Move) -> None:
    text = _as_text([*history(registry, name, alias), move])
    with registry.errors("written to"):
        registry.client.set_registered_model_tag(name, _tag(alias), text)


def _as_text(moves: Sequence[Move]) -> str:
    """The newest moves, as many as a tag holds. Of older ones those of versions that did not pass go first, as no way
    leads back to them."""
    kept = list(moves)
    while True:
        text = json.dumps([vars(move) for move in kept], ensure_ascii=False)
        if len(text) <= TAG_LENGTH or len(kept) == 1:
            return text
        marked = [place for place, move in enumerate(kept[:-1]) if move.how == NOT_PASSED]
        del kept[marked[0] if marked else 0]


def short(text: str) -> str:
    """`text` in one line, cut where a history or a page would have too little room for the rest."""
    line = " ".join(text.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 2] + " …"


@contextmanager
def _unmoved(
    registry: Registry, name: str, alias: str, expected: int | None, *also: int | None
) -> Iterator[None]:
    """Raise `IftError` where another version holds the alias than was looked at, at the beginning of the block or, as
    somebody may have come to an end before our claim, at its end."""

    def check() -> None:
        held = registry.aliases(name).get(alias)
        if held != expected and held not in also:
            then = f"version {expected}" if expected else "nobody"
            now = f"version {held}" if held else "nobody"
            raise _other(alias, f"{now} holds it now, and {then} held it before")

    check()
    yield
    check()


def _tag(alias: str) -> str:
    return f"ift.history.{alias}"


def _other(alias: str, what: str) -> Moved:
    return Moved(
        f"somebody else has just moved `{alias}`: {what}",
        wanted="one promotion at a time",
        hint="look at what it is now (`ift models show NAME`), and promote again if you still want to",
    )


def when(seconds: float) -> str:
    """Unix seconds as people read them, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
