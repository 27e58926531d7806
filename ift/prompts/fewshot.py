"""Few-shot prompts: solved examples before the one that is asked.

In:  the query, its exemplars worded by the same template, a key, and how many tokens the prompt may have.
Out: the query with the exemplars that fit before it; only the query's answer is ever supervised.

    prepend(query, [first, second], key="17/0/ab", budget=100, count=len)

    Review: Dull.            <- exemplar
    negative                 <- its answer, read but not supervised

    Review: Fun.             <- the query

The same function builds the prompts of training and of in-context learning.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from ift.prompts.options import pick
from ift.prompts.template import Instruction

T = TypeVar("T")

# What stands between a prompt and its answer, and between one exemplar and the next.
SEPARATORS = (
    ("\n", "\n\n"),
    ("\n\n", "\n\n\n"),
    ("\nAnswer: ", "\n\n"),
    ("\nAnswer: ", "\n\n---\n\n"),
    ("\n\nAnswer:\n", "\n\n"),
    ("\nA: ", "\n\n"),
    ("\n-> ", "\n\n"),
    ("\n=> ", "\n"),
    ("\nOutput: ", "\n\n"),
    ("\n****\n", "\n\n\n"),
    ("\nResponse: ", "\n\n"),
    ("\n---\n", "\n\n======\n\n"),
)


def draw(pool: Sequence[T] | NDArray[Any], query: T, *, shots: int, key: str) -> list[int]:
    """Places in `pool`, a list of example ids, of at most `shots` exemplars for the example `query`, never itself."""
    # one more than asked for, so that the query can be left out of what was drawn
    places = random.Random(f"shots/{key}").sample(range(len(pool)), min(shots + 1, len(pool)))
    return [place for place in places if pool[place] != query][:shots]


def prepend(
    query: Instruction,
    exemplars: Sequence[Instruction],
    *,
    key: str,
    budget: int,
    count: Callable[[str], int],
) -> tuple[Instruction, int]:
    """`query` behind as many leading `exemplars` as its prompt has room for, and how many they are.

    `count` says how many tokens a text has; the exemplars that fit are the longest beginning of the list whose
    prompt stays within `budget`. With none the query comes back as it was.
    """
    to_answer, between = pick(SEPARATORS, f"separators/{key}")
    solved = [exemplar.prompt + to_answer + exemplar.completion + between for exemplar in exemplars]
    last = query.prompt + to_answer.rstrip()
    room = budget - count(last)
    kept = 0
    for text in solved:
        room -= count(text)
        if room < 0:
            break
        kept += 1
    if not kept:
        return query, 0
    return replace(query, prompt="".join(solved[:kept]) + last), kept
