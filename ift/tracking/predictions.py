"""Every answer before and after, for people to search.

In:  pairs of predictions, an item each: the base model's and the tuned model's.
Out: rows of plain text in marked pieces, those that changed first within their task, and how many were left out.

    table([(base, tuned)])["rows"][0]["answers"][1]["pieces"]    # [("the ", "", False), ("sea", "ins", True)]

A piece is (text, mark, beside the reference): `mark` is "del" for words of the base model's answer that the tuned one
has not, "ins" the other way round, else ""; the last says that the reference has not these words there. Words are
compared as they stand, in the order they come (their longest common subsequence); a sign of a script without spaces
is a word.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ift.tracking.words import Row, as_float, as_text, clip, number, percent

ROWS = 2_000
LONGEST_TEXT = 1_500  # characters of one prompt or answer; what is left out is counted on the page
MOST_TEXT = 2_500_000  # characters of all rows: the page stays below a few MB
_FOLDED = 140  # characters of a text that is shown as it is; a longer prompt or reference opens on a click
_WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]|[^\s\u2e80-\u9fff\uf900-\ufaff]+")

Piece = tuple[str, str, bool]

# What became of an item, in the order in which the rows of a task stand.
CHANGES = {
    "broken": ("right → wrong", "fail"),
    "fixed": ("wrong → right", "pass"),
    "worse": ("worse score", "fail"),
    "better": ("better score", "pass"),
    "wrong": ("stayed wrong", "none"),
    "same": ("same score", "none"),
    "right": ("stayed right", "none"),
    "ungraded": ("not graded", "none"),
}
_CHANGED = ("broken", "fixed", "worse", "better")


def table(pairs: Sequence[tuple[Row, Row]], *, most: int = ROWS, text: int = MOST_TEXT) -> dict[str, Any]:
    """`{"rows", "total", "left_out", "tasks", "changes", "outcomes"}`: `most` rows and about `text` characters at most.

    Where there are more, those that changed are kept first, and of each task alike. `tasks` and `changes` are what can
    be filtered by, each (value, words, how many rows).
    """
    changes = [_change(*pair) for pair in pairs]
    tasks = [as_text(base.get("name")) for base, _ in pairs]
    rows: dict[int, dict[str, Any]] = {}
    spent = 0
    for i in _by_interest(tasks, changes):
        if len(rows) == most or spent > text:
            break
        rows[i] = _row(*pairs[i], tasks[i], changes[i])
        spent += rows[i].pop("size")
    order, place = list(dict.fromkeys(tasks)), list(CHANGES)
    kept = sorted(rows, key=lambda i: (order.index(tasks[i]), place.index(changes[i]), i))
    of_tasks, of_changes = Counter(tasks[i] for i in kept), Counter(changes[i] for i in kept)
    everything = Counter(changes)
    return {
        "rows": [{**rows[i], "place": str(order.index(tasks[i]))} for i in kept],
        "total": len(pairs),
        "left_out": len(pairs) - len(kept),
        "tasks": [(str(order.index(name)), name, of_tasks[name]) for name in order if of_tasks[name]],
        "changes": [(key, words, of_changes[key]) for key, (words, _) in CHANGES.items() if of_changes[key]],
        "outcomes": [(f"{everything[key]:,}", *CHANGES[key]) for key in CHANGES if everything[key]],
    }


def _by_interest(tasks: Sequence[str], changes: Sequence[str]) -> list[int]:
    """All places: what changed before the rest, and the tasks in turn."""
    seen: Counter[tuple[str, bool]] = Counter()
    ranks = []
    for i, (task, change) in enumerate(zip(tasks, changes, strict=True)):
        kind = (task, change not in _CHANGED)
        ranks.append((kind[1], seen[kind], i))
        seen[kind] += 1
    return [i for *_, i in sorted(ranks)]


def _change(base: Row, tuned: Row) -> str:
    before, after = as_float(base.get("score")), as_float(tuned.get("score"))
    if not (math.isfinite(before) and math.isfinite(after)):
        return "ungraded"
    if base.get("kind") == "reference":  # a loss
        before, after = -before, -after
    elif {before, after} <= {0.0, 1.0}:
        return {(0, 1): "fixed", (1, 0): "broken", (1, 1): "right", (0, 0): "wrong"}[int(before), int(after)]
    return "better" if after > before else "worse" if after < before else "same"


def _row(base: Row, tuned: Row, task: str, change: str) -> dict[str, Any]:
    words, tone = CHANGES[change]
    loss = base.get("kind") == "reference"
    prompt, reference = _block(base.get("prompt")), _block(base.get("expected"))
    answers = [as_text(row.get("output")) for row in (base, tuned)]
    cut = [answer[:LONGEST_TEXT] for answer in answers]
    marks = [[""] * len(_WORD.findall(answer)) for answer in cut]
    for side, mark, places in zip((0, 1), ("del", "ins"), _differing(*cut), strict=True):
        for place in places:
            marks[side][place] = mark
    shown = []
    for side, row in enumerate((base, tuned)):
        beside = set(_differing(cut[side], reference["text"])[0]) if reference["text"] else set()
        shown.append(
            {
                "who": ("Base", "Tuned")[side],
                "pieces": _pieces(cut[side], marks[side], beside),
                "more": len(answers[side]) - len(cut[side]),
                "loss": loss,
                "mark": _mark(row, loss),
                "why": _why(row),
            }
        )
    return {
        "task": task,
        "id": clip(base.get("id"), 60),
        "shots": int(shots) if math.isfinite(shots := as_float(base.get("shots"))) else 0,
        "change": change,
        "words": words,
        "tone": tone,
        "prompt": prompt,
        "reference": reference,
        "answers": shown,
        "size": sum(map(len, [prompt["text"], reference["text"], *cut])) + 600,
    }


def _mark(row: Row, loss: bool) -> tuple[str, str, str]:
    """A score as a sign, a word and a tone."""
    score = as_float(row.get("score"))
    if loss:
        return "", f"{number(score)} nats a token", "none"
    if score in (0.0, 1.0):
        return ("✓", "right", "pass") if score else ("✗", "wrong", "fail")
    return "", percent(score) if 0 < score < 1 else number(row.get("score")), "none"


def _why(row: Row) -> str:
    """The rules that an answer broke."""
    try:
        detail = json.loads(as_text(row.get("detail")) or "null")
    except ValueError:
        return ""
    broken = detail if isinstance(detail, list) and all(isinstance(rule, str) for rule in detail) else []
    return clip("; ".join(broken), 300) if row.get("kind") == "generation" else ""


def _block(value: Any) -> dict[str, Any]:
    """A text; `opening` is set where it is so long that the page folds it away."""
    text = as_text(value)
    folded = len(text) > _FOLDED or text.count("\n") > 3
    return {
        "text": text[:LONGEST_TEXT],
        "more": max(0, len(text) - LONGEST_TEXT),
        "opening": " ".join(text[:_FOLDED].split()) if folded else "",
    }


def _differing(text: str, other: str) -> tuple[list[int], list[int]]:
    """The places of the words of `text` that `other` has not there, and the other way round."""
    if text == other:
        return [], []
    words = (_WORD.findall(text), _WORD.findall(other))
    same = _common(*words)
    kept, others = {i for i, _ in same}, {j for _, j in same}
    return (
        [i for i in range(len(words[0])) if i not in kept],
        [j for j in range(len(words[1])) if j not in others],
    )


def _common(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """The places, in `one` and in `other`, of the words of a longest common subsequence, the last first.

    Bits of a number stand for the places in `other` (Hyyrö 2004, Bit-parallel LCS-length computation revisited), so
    that answers that say the same a hundred times take milliseconds too: `rows[i]` has a 0 at j where the first
    j + 1 words have one more in common with the first i of `one` than the first j have.
    """
    places: dict[str, int] = {}
    for j, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << j
    rows = [(1 << len(other)) - 1]
    for word in one:
        found = rows[-1] & places.get(word, 0)
        rows.append(((rows[-1] + found) | (rows[-1] - found)) & rows[0])
    same = []
    i, j = len(one), len(other)
    while i and j:
        if rows[i] >> (j - 1) & 1:  # the last word of `other` adds nothing
            j -= 1
            continue
        i -= 1
        if (
            rows[i] >> (j - 1) & 1
        ):  # without the last word of `one` it adds nothing either: the two are a pair
            j -= 1
            same.append((i, j))
    return same


def _pieces(text: str, marks: Sequence[str], beside: set[int]) -> list[Piece]:
    """`text` in as few pieces as its marks allow; nothing of it is lost, and no space at an end is marked."""
    pieces: list[Piece] = []
    end = 0

    def add(part: str, mark: str, off: bool) -> None:
        if pieces and pieces[-1][1:] == (mark, off):
            pieces[-1] = (pieces[-1][0] + part, mark, off)
        elif part:
            pieces.append((part, mark, off))

    for i, word in enumerate(_WORD.finditer(text)):
        now = (marks[i], i in beside)
        between = text[end : word.start()]
        joined = i > 0 and now == (marks[i - 1], i - 1 in beside)
        add(between, *(now if joined else ("", False)))
        add(word.group(), *now)
        end = word.end()
    add(text[end:], "", False)
    return pieces
