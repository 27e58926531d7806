"""Documents into packs of at most `capacity` tokens: best-fit decreasing within a window of the given order.

In:  document lengths in the order in which they should be seen, the capacity, the window.
Out: packs, each a list of positions in that order; every document in exactly one pack.

    pack([5, 3, 4, 2], capacity=7)    # [[0, 3], [1, 2]]

Without packing a document is a row of its own, and rows of like length are neighbours, so that little is padded:

    bucket([5, 90, 4, 91], size=2, key="17/0")    # [[1], [3], [0], [2]], or the other pair first, as the key says
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], *, capacity: int, window: int = 4096) -> list[list[int]]:
    """Packs in the order of their earliest document, documents in a pack in order.

    Best-fit decreasing (Johnson 1973) needs at most 11/9 of the best possible number of packs. The window
    keeps the shuffle: a document moves by no more than `window` places.
    """
    if too_long := [n for n in lengths if not 0 < n <= capacity]:
        raise ValueError(f"a document of {too_long[0]} tokens does not fit into packs of {capacity}")
    packs: list[list[int]] = []
    for start in range(0, len(lengths), window):
        positions = range(start, min(start + window, len(lengths)))
        packs += sorted(_best_fit(lengths, positions, capacity))
    return packs


def _best_fit(lengths: Sequence[int], positions: Sequence[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted: the tightest fit is found by bisection
    for position in sorted(positions, key=lambda p: -lengths[p]):
        length = lengths[position]
        i = bisect_left(room, (length, -1))
        if i < len(room):
            left, index = room.pop(i)
        else:
            left, index = capacity, len(packs)
            packs.append([])
        packs[index].append(position)
        insort(room, (left - length, index))
    for members in packs:
        members.sort()
    return packs


def bucket(lengths: Sequence[int], *, key: str, size: int = 64, window: int = 4096) -> list[list[int]]:
    """Every document alone, in runs of `size` of like length; the runs of a window follow in an order that `key` draws.

    A document moves by no more than `window` places.
    """
    rows: list[list[int]] = []
    for start in range(0, len(lengths), window):
        positions = sorted(range(start, min(start + window, len(lengths))), key=lambda p: (lengths[p], p))
        runs = [positions[i : i + size] for i in range(0, len(positions), size)]
        random.Random(f"buckets/{key}/{start}").shuffle(runs)
        rows += [[position] for run in runs for position in run]
    return rows
