"""Near-duplicates: each text's MinHash bands, and the groups of rows that share one.

In:  the words of a batch of texts; then the bands of all rows, and other keys by which rows are the same.
Out: 14 numbers a text; for each row the number of its group, which is the first row in it.

    bands(words(["one two three four five six", "One, two, three, four, five: six!", "something else"]))
    # three rows of 14 numbers, of which the first two are equal
    groups(np.array([[7, 1], [8, 2], [7, 3], [9, 2]], np.uint64))    # [0, 1, 0, 1]

A text is the set of its word 5-grams. Two texts whose sets have the Jaccard similarity s share one band or more with
probability 1 - (1 - s^8)^14 (14 bands of 8 minima: the numbers of FineWeb, Penedo et al. 2024): 5 % at s = 0.5, 56 % at
0.7, 92 % at 0.8, 100 % at 0.9.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ift.data.shingles import Hashes, Offsets, Words, content, mixed, ngrams

SHINGLE = 5
BANDS, ROWS = 14, 8
_BINS = BANDS * ROWS
_EMPTY = np.uint64(2**64 - 1)
_TOGETHER = 1 << 16  # shingles and bins at a time: their arrays stay in the processor's cache
_STEP = np.uint64(0xA0761D6478BD642F)

# How often a shingle is thrown, round by round. After 1,024 throws even a single shingle has met every bin but one
# in ten thousand.
_THROWS = [1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256]


def bands(words: Words) -> NDArray[np.uint64]:
    """14 numbers for each text; all 0 for one without words. One of fewer than 5 words is a shingle by itself."""
    grams, offsets = ngrams(words, SHINGLE)
    short = offsets[1:] == offsets[:-1]
    grams = np.insert(grams, offsets[:-1][short], content(words)[short])
    offsets = offsets + np.concatenate([np.zeros(1, np.int64), np.cumsum(short)])
    load = offsets + _BINS * np.arange(len(offsets))
    cuts = np.unique([*np.searchsorted(load, np.arange(0, load[-1], _TOGETHER)), len(short)])
    found = [np.zeros((0, BANDS), np.uint64)]
    for first, last in pairwise(cuts):
        part = offsets[first : last + 1]
        found.append(_bands(grams[part[0] : part[-1]], part - part[0]))
    return np.where((np.diff(words.offsets) > 0)[:, None], np.concatenate(found), np.uint64(0))


def _bands(grams: Hashes, offsets: Offsets) -> NDArray[np.uint64]:
    minima = _minima(grams, offsets).reshape(-1, BANDS, ROWS)
    found = minima[:, :, 0].copy()
    for row in range(1, ROWS):
        found *= _STEP
        found += minima[:, :, row]
    return mixed(found)


def _minima(grams: Hashes, offsets: Offsets) -> NDArray[np.uint64]:
    """Fast similarity sketching (Dahlgaard, Knudsen & Thorup 2017).

    Each shingle is thrown into one of the bins under a random value, and a bin keeps the smallest. While a text has
    an empty bin, its shingles are thrown again, with values above all earlier ones. So a bin is as good as a hash
    function of its own, even for texts of few shingles (one permutation alone, Li et al. 2012, leaves most of their
    bins empty), and a text costs a few hundred throws instead of 112 a shingle.
    """
    count = len(offsets) - 1
    texts = np.repeat(np.arange(count, dtype=np.uint64) * np.uint64(_BINS), np.diff(offsets))
    minima = np.full(count * _BINS, _EMPTY)
    thrown = 0
    for round_, times in enumerate(_THROWS):
        salts = np.arange(thrown, thrown + times, dtype=np.uint64) * _STEP
        thrown += times
        hashes = mixed((grams + salts[:, None]).ravel())
        bins = (hashes >> np.uint64(32)) * np.uint64(_BINS) >> np.uint64(32)
        bins += np.tile(texts, times)
        hashes &= np.uint64(0xFFFFFFFF)
        hashes |= np.uint64(round_ << 32)
        np.minimum.at(minima, bins.astype(np.int64), hashes)
        unfilled = (minima.reshape(count, _BINS) == _EMPTY).any(axis=1)
        again = unfilled[texts // np.uint64(_BINS)]
        grams, texts = grams[again], texts[again]
        if not len(grams):
            break
    return minima


def groups(columns: NDArray[np.uint64], extra: Sequence[Hashes] = ()) -> NDArray[np.int64]:
    """For each row the first row of its group: rows that share a value in any column are together, transitively.

    `extra` are more columns. A 0 is no value: it is shared with nobody.
    """
    first = np.arange(len(columns))
    for column in [*columns.T, *extra]:
        order = np.argsort(column, kind="stable")
        values = column[order]
        same = np.zeros(len(values) + 1, bool)  # as the one before
        same[1:-1] = (values[1:] == values[:-1]) & (values[1:] > 0)
        shared = same[1:] | same[:-1]
        new = ~same[:-1][shared]
        _unite(first, order[shared], np.flatnonzero(new), np.cumsum(new) - 1)
    return first


def _unite(first: NDArray[np.int64], rows: Offsets, starts: Offsets, run: Offsets) -> None:
    """Each run of `rows` into one group: its groups point to the first among them until all do."""
    while len(rows):
        own = first[rows]
        least = np.minimum.reduceat(own, starts)[run]
        if (own == least).all():
            return
        np.minimum.at(first, own, least)
        while ((nearer := first[first]) != first).any():
            first[:] = nearer
