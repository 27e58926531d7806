"""Training rows that show what a test set asks: which, and by which words.

In:  the rows of test and probe sets; then the words of the training rows, a batch at a time. A row is some fields.
Out: the training rows to drop, each with the test set it gives away and where.

    tested = Tested.of([("films", [["What a long, dull film it was.", "bad"]])], n=5)
    rows = [["nice"], ["He said: What a LONG dull film!", "I left"]]
    hits = tested.hits(words([field for row in rows for field in row]), [len(row) for row in rows])
    decide(tested, hits)                                          # [Drop(row=1, test="films", at=2)]
    phrase(rows[1], 2, tested.n)                                  # "what a long dull film"

As in GPT-3 (Brown et al. 2020, appendix C) a training row is contaminated by n words in a row (13 unless told) that
stand in a test row too, and n words that stand in more than ten training rows do not count: those are the wording of
the task. In addition a row counts whose words are all those of a test row, however few or frequent. N words in a
row never span two fields.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ift.data.shingles import Hashes, Words, content, ngrams, spelled, words

_BATCH = 4096  # rows at a time
_SLOTS = 16  # of the sieve, for each n-gram: 1 of 16 strange n-grams or fewer come through


class Hits(NamedTuple):
    """What training rows share with test rows, one entry for each place where they do."""

    rows: NDArray[np.int64]
    keys: NDArray[np.int64]  # which n-gram of `Tested`; -1, -2, ...: which whole content
    places: NDArray[np.int64]  # of the first word among those of the row; -1: the whole row


@dataclass(frozen=True)
class Drop:
    """A training row that gives away a test row: by the n words from word `at`, or as a whole (None)."""

    row: int
    test: str
    at: int | None


@dataclass(frozen=True, eq=False)
class _Keys:
    """Sorted hashes, each with the first of the test sets that hold it."""

    hashes: Hashes
    owners: NDArray[Any]

    @classmethod
    def of(cls, by_test: Sequence[Hashes]) -> "_Keys":
        """From the hashes of each test set; 0 is none."""
        hashes = _distinct(by_test)
        hashes = hashes[hashes > 0]
        owners = np.zeros(len(hashes), np.min_scalar_type(len(by_test)))
        for owner, mine in reversed(list(enumerate(by_test))):
            owners[np.searchsorted(hashes, mine[mine > 0])] = owner
        return cls(hashes, owners)

    def find(self, wanted: Hashes) -> NDArray[np.int64]:
        """Where each of `wanted` stands, or -1."""
        if not len(self.hashes):
            return np.full(len(wanted), -1)
        found = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[found] == wanted, found, -1)


@dataclass(frozen=True, eq=False)
class Tested:
    """The n-grams and the whole contents of all test rows."""

    n: int
    max_rows: int
    names: tuple[str, ...]
    grams: _Keys
    wholes: _Keys
    sieve: NDArray[np.uint8]

    @classmethod
    def of(
        cls, tests: Iterable[tuple[str, Iterable[Sequence[str]]]], *, n: int = 13, max_rows: int = 10
    ) -> "Tested":
        """From (name, rows) of each test set. What two sets hold is the first one's.

        An n-gram that stands in more than `max_rows` training rows will not count.
        """
        names, grams, wholes = [], [], []
        for name, rows in tests:
            parts = [_hashes(batch, n) for batch in _batches(rows)]
            names.append(name)
            grams.append(_distinct([part[0] for part in parts]))
            wholes.append(_distinct([part[1] for part in parts]))
        keys = _Keys.of(grams)
        return cls(n, max_rows, tuple(names), keys, _Keys.of(wholes), _sieve(keys.hashes))

    @property
    def digest(self) -> str:
        """The address of the content: equal for the same test sets in the same order under the same rules."""
        digest = hashlib.blake2b(repr((self.n, self.max_rows, self.names)).encode(), digest_size=16)
        for keys in (self.grams, self.wholes):
            digest.update(len(keys.hashes).to_bytes(8, "little"))
            digest.update(keys.hashes.astype("<u8").tobytes())
            digest.update(keys.owners.astype("<u4").tobytes())
        return digest.hexdigest()

    def hits(self, found: Words, fields: Sequence[int], first: int = 0) -> Hits:
        """What a batch of training rows shares with the test rows.

        `found` are the words of each field, `fields` says how many of them each row has, `first` is the number of the
        first row.
        """
        rows = found.joined(fields)
        grams, offsets = ngrams(found, self.n)
        places = np.flatnonzero(_through(self.sieve, grams))
        grams = grams[places]
        field = np.searchsorted(offsets, places, side="right") - 1
        places += (found.offsets[:-1] - offsets[:-1])[field]  # from among the n-grams to among the words
        row = np.searchsorted(rows.offsets, places, side="right") - 1

        order = np.argsort(grams, kind="stable")  # a search in order is several times as fast
        keys = self.grams.find(grams[order])
        order, keys = order[keys >= 0], keys[keys >= 0]
        shared = Hits(row[order] + first, keys, (places - rows.offsets[row])[order])

        wholes = self.wholes.find(content(rows))
        equal = np.flatnonzero(wholes >= 0)
        return self.joined([Hits(equal + first, -1 - wholes[equal], np.full_like(equal, -1)), shared])

    def joined(self, parts: Sequence[Hits]) -> Hits:
        """The hits of several batches as one, without those that decide nothing.

        An n-gram keeps its first place in each of its first `max_rows` + 1 rows, so the hits of a preamble that stands
        in every row stay few. Joining now and then while reading bounds the memory and changes no decision.
        """
        none = Hits(*np.zeros((3, 0), np.int64))
        hits = Hits(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))
        order = np.argsort(hits.keys, kind="stable")
        rows, keys, places = (column[order] for column in hits)
        new_key = np.ones(len(keys), bool)
        new_key[1:] = keys[1:] != keys[:-1]
        new_row = new_key.copy()  # a row is in one part, so its entries for a key follow each other
        new_row[1:] |= rows[1:] != rows[:-1]
        entries = np.flatnonzero(new_row)
        firsts = np.flatnonzero(new_key[entries])
        rank = np.arange(len(entries)) - np.repeat(firsts, np.diff([*firsts, len(entries)]))
        kept = entries[(rank <= self.max_rows) | (keys[entries] < 0)]
        return Hits(rows[kept], keys[kept], places[kept])


def decide(tested: Tested, hits: Hits) -> list[Drop]:
    """The rows to drop, in order, from the hits of all batches (`tested.joined`).

    An n-gram that stands in more than `tested.max_rows` rows does not count. A row that is equal to a test row is
    dropped for that, any other for the first n-gram that counts.
    """
    _, which, rows_of_key = np.unique(hits.keys, return_inverse=True, return_counts=True)
    valid = (hits.keys < 0) | (rows_of_key[which] <= tested.max_rows)
    rows, keys, places = (column[valid] for column in hits)
    order = np.lexsort((places, rows))
    dropped, firsts = np.unique(rows[order], return_index=True)
    drops = []
    for row, i in zip(dropped.tolist(), order[firsts].tolist(), strict=True):
        key = int(keys[i])
        if key < 0:
            drops.append(Drop(row, tested.names[tested.wholes.owners[-1 - key]], None))
        else:
            drops.append(Drop(row, tested.names[tested.grams.owners[key]], int(places[i])))
    return drops


def phrase(row: Sequence[str], at: int, n: int) -> str:
    """The n normalised words of a row from word `at`, for people to read."""
    return " ".join([word for field in row for word in spelled(field)][at : at + n])


def _hashes(rows: Sequence[Sequence[str]], n: int) -> tuple[Hashes, Hashes]:
    found = words([field for row in rows for field in row])
    return _distinct([ngrams(found, n)[0]]), content(found.joined([len(row) for row in rows]))


def _distinct(parts: Sequence[Hashes]) -> Hashes:
    """All hashes once, sorted. (np.unique goes by a hash table, and takes ten times as long for millions.)"""
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    hashes.sort()
    new = np.ones(len(hashes), bool)
    new[1:] = hashes[1:] != hashes[:-1]
    return hashes[new]


def _batches(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    walk = iter(rows)
    while batch := list(islice(walk, _BATCH)):
        yield batch


def _sieve(hashes: Hashes) -> NDArray[np.uint8]:
    """A bit for each possible beginning of a hash: whether there is one that begins so."""
    bits = max(3, (_SLOTS * len(hashes)).bit_length())
    sieve = np.zeros(1 << bits - 3, np.uint8)
    np.bitwise_or.at(sieve, *_bit(sieve, hashes))
    return sieve


def _through(sieve: NDArray[np.uint8], hashes: Hashes) -> NDArray[np.bool]:
    """Which hashes begin like one in the sieve."""
    place, bit = _bit(sieve, hashes)
    return (sieve[place] & bit) > 0


def _bit(sieve: NDArray[np.uint8], hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    slots = hashes >> np.uint64(64 - 3 - (len(sieve) - 1).bit_length())
    return (slots >> np.uint64(3)).astype(np.int64), np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8)
