"""Would prompting have done? The base model behind solved examples beside the tuned model behind none.

In:  predictions of the same test items, way by way, and what training cost.
Out: per task a row a way, and a verdict in words.

    compare([Way("base, 0 shots", zero), Way("base, 3 shots", three), Way("tuned, 0 shots", tuned, trained=True)],
            context=2048, trained_tokens=500_000)[0]["verdict"]["words"]
    # 'tuning pays: 0.91 against 0.78 with 3 shots (+0.13 [+0.08, +0.18]); and from 3,200 calls on also in compute: …'

Break-even counts floating-point operations: a token read costs 2 a parameter, a token trained on 6 (forward and
backward; Kaplan et al. 2020, arXiv 2001.08361, section 2.1), so `3 trained / saved` calls pay for `trained` tokens
where each call saves `saved` tokens of its prompt. The model's size does not matter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ift.evaluate.forgetting import normalised
from ift.evaluate.statistics import FEW, Interval, interval

MARGIN = 0.02  # a difference in score that nobody would train a model for
_TRAINED, _READ = 6, 2  # operations a parameter and token


@dataclass(frozen=True)
class Way:
    """A model behind so many solved examples, and what it predicted; several draws of examples may follow each other.

    `seconds` is what an example took, by task, where it was measured.
    """

    name: str
    predictions: Sequence[Mapping[str, Any]]
    trained: bool = False
    shots: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


def compare(
    ways: Sequence[Way], *, context: int | None, trained_tokens: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A row a task: `{"name", "kind", "metric", "items", "ways": [{...}], "verdict": {"kind", "words", ...}}`.

    `context` is the model's, in tokens; `trained_tokens` counts what each trained way (by name) was trained on, in
    all epochs that it came to. Only tasks that were trained on are compared.
    """
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for way in ways:
        for prediction in way.predictions:
            if prediction["suite"] == "task":
                found.setdefault(prediction["name"], {}).setdefault(way.name, []).append(prediction)
    rows = []
    for name, by_way in found.items():
        known = {way.name: _Scored(way, by_way[way.name], context) for way in ways if way.name in by_way}
        first = next(iter(by_way.values()))[0]
        rows.append(
            {
                "name": name,
                "kind": first["kind"],
                "metric": (first["metric"] or "accuracy").replace("_", " "),
                "items": len({p["id"] for predictions in by_way.values() for p in predictions}),
                "ways": [scored.row for scored in known.values()],
                "verdict": _verdict(list(known.values()), trained_tokens),
            }
        )
    return rows


class _Scored:
    """One way's scores on one task: the mean over draws for each item."""

    def __init__(self, way: Way, predictions: Sequence[Mapping[str, Any]], context: int | None) -> None:
        self.way = way
        by_item: dict[str, list[float]] = {}
        by_draw: dict[int, list[float]] = {}
        for p in predictions:
            by_item.setdefault(p["id"], []).append(p["score"])
            by_draw.setdefault(p["draw"], []).append(p["score"])
        self.scores = {id_: float(np.mean(scores)) for id_, scores in by_item.items()}
        self.chance = float(np.mean([p["chance"] for p in predictions]))
        self.interval: Interval = interval(np.array(list(self.scores.values())))
        self.prompt_tokens = float(np.mean([p["prompt_tokens"] for p in predictions]))
        self.longest = max(p["prompt_tokens"] + p["new_tokens"] for p in predictions)
        draws = [float(np.mean(scores)) for scores in by_draw.values()]
        self.row = {
            "way": way.name,
            "trained": way.trained,
            "shots": way.shots,
            "shots_given": float(np.mean([p["shots"] for p in predictions])),
            "score": self.interval,
            "normalised": normalised(float(self.interval["value"] or 0), self.chance),
            "draws": {"lowest": min(draws), "highest": max(draws), "count": len(draws)},
            "prompt_tokens": self.prompt_tokens,
            "context_left": None if context is None else context - self.longest,
            "seconds": way.seconds.get(str(predictions[0]["name"])),
        }

    @property
    def value(self) -> float:
        return float(self.interval["value"] or 0.0)

    @property
    def beats_guessing(self) -> bool:
        low = self.interval["low"]
        return (self.value if low is None else low) > self.chance

    def over(self, other: "_Scored") -> Interval:
        """How much better than another way, on the items that both answered."""
        shared = [id_ for id_ in self.scores if id_ in other.scores]
        return interval(np.array([self.scores[id_] - other.scores[id_] for id_ in shared]))


def _verdict(ways: Sequence[_Scored], trained_tokens: Mapping[str, int]) -> dict[str, Any]:
    prompted = [way for way in ways if not way.way.trained]
    tuned = [way for way in ways if way.way.trained]
    if not prompted or not tuned:
        return {"kind": "unknown", "words": "one side was not measured"}
    if broken := [way.way.name for way in ways if not math.isfinite(way.value)]:
        words = f"the scores of {', '.join(broken)} are no numbers: the model is broken"
        return {"kind": "unknown", "words": words}
    prompt = max(prompted, key=lambda way: (way.value, -way.way.shots))
    best = max(tuned, key=lambda way: way.value)
    shared = len(best.scores.keys() & prompt.scores.keys())
    if not shared:
        return {"kind": "unknown", "words": "the two sides were asked other items"}
    gain = best.over(prompt)
    value, low, high = (
        math.nan if gain[key] is None else float(gain[key] or 0) for key in ("value", "low", "high")
    )
    calls = _break_even(prompt, best, trained_tokens.get(best.way.name))
    found = {"prompt": prompt.way.name, "tuned": best.way.name, "gain": gain, "break_even_calls": calls}
    against = f"{best.value:.2f} against {prompt.value:.2f} with {_shots(prompt)} ({_signed(gain)})"
    cannot_tell = {
        "kind": "unclear",
        "words": f"{'this item' if shared == 1 else f'these {shared:,} items'} cannot tell: "
        f"tuned {against}{_in_compute(calls, prompt, best, but=True)}",
        **found,
    }
    if shared < FEW:
        return cannot_tell
    if not prompt.beats_guessing and not best.beats_guessing:
        words = f"neither works: {against} is no better than guessing ({best.chance:.2f})"
        return {"kind": "neither", "words": words, **found}
    if low > 0 and value > MARGIN:
        return {
            "kind": "tuning",
            "words": f"tuning pays: {against}{_in_compute(calls, prompt, best)}",
            **found,
        }
    if high < MARGIN:
        words = f"prompting suffices: tuned {against}{_in_compute(calls, prompt, best, but=True)}"
        return {"kind": "prompting", "words": words, **found}
    return cannot_tell


def _break_even(prompt: _Scored, tuned: _Scored, trained: int | None) -> int | None:
    """Calls until the prompt tokens that tuning saves have paid for the tokens it was trained on."""
    saved = prompt.prompt_tokens - tuned.prompt_tokens
    return math.ceil(_TRAINED * trained / (_READ * saved)) if trained and saved > 0 else None


def _in_compute(calls: int | None, prompt: _Scored, tuned: _Scored, *, but: bool = False) -> str:
    if calls is None:
        return "" if but else "; it saves no compute: its prompt is as long"
    saved = prompt.prompt_tokens - tuned.prompt_tokens
    return (
        f"; {'but' if but else 'and'} from {calls:,} calls on {'tuning pays' if but else 'also'} in compute: "
        f"each saves {saved:,.0f} tokens of the prompt"
    )


def _shots(way: _Scored) -> str:
    return f"{way.way.shots} shot{'' if way.way.shots == 1 else 's'}"


def _signed(gain: Interval) -> str:
    value = f"{gain['value']:+.2f}"
    return value if gain["low"] is None else f"{value} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
