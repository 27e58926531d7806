"""What a check came to.

In:  a name, a verdict, what was found, the next move.
Out: a line for people and a row for programs.

    Check("disk", "fail", "0.4 GiB free in /tmp", "free some room")
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail"]
ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Check:
    """One line of `ift doctor`. What does not pass has a next move."""

    name: str
    verdict: Verdict
    found: str
    next_move: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def worst(checks: Sequence[Check]) -> Verdict:
    """`pass` where there is nothing to judge."""
    return max((check.verdict for check in checks), key=ORDER.index, default="pass")


def everywhere(by_node: Mapping[str, Sequence[Check]]) -> list[Check]:
    """The same checks of several nodes as one line each: what is wrong names its nodes, what is well is said once."""
    by_name: dict[str, list[tuple[str, Check]]] = defaultdict(list)
    for node, checks in by_node.items():
        for check in checks:
            by_name[check.name].append((node, check))
    merged = []
    for name, found in by_name.items():
        verdict = worst([check for _, check in found])
        telling = [(node, check) for node, check in found if check.verdict == verdict]
        texts = list(dict.fromkeys(check.found for _, check in telling))
        if len(telling) == len(found) and len(texts) == 1:
            text = texts[0]
        elif verdict == "pass":
            text = f"well on all {len(found)} nodes; {telling[0][0]}: {texts[0]}"
        else:
            text = "; ".join(f"{node}: {check.found}" for node, check in telling)
        merged.append(Check(name, verdict, text, telling[0][1].next_move))
    return merged
