"""Texts into hashes of their normalised words, of n words in a row, and of the whole.

In:  texts, a batch at a time.
Out: `Words`: the 64-bit hash of each word and where each text's words begin; from these, n-grams and contents.

    found = words(["The film's GOOD.", "the films good", "bad"])
    found.offsets                          # [0, 3, 6, 7]: three words, three words, one word
    content(found)                         # three hashes, of which the first two are equal
    ngrams(found, 2)                       # four hashes, offsets [0, 2, 4, 4]
    spelled("The film's GOOD.")            # ["the", "films", "good"]

Normalised as GPT-3's decontamination does it (Brown et al. 2020, appendix C): case is folded, punctuation is taken
out, white space parts words. Before that NFKC makes equal what Unicode can write in several ways. Two things go
beyond the paper. A character of a script that puts no spaces between words (Chinese, Japanese, Thai, ...) is a word by
itself. So is a symbol such as `+`, `€` or an emoji, or `5 + 3` would be the same as `5 < 3`. What Unicode counts as
punctuation is taken out even where it means something: `5 - 3` and `5 / 3` are the same two words.

Everything is arithmetic on unsigned 64-bit numbers, so the hashes are the same on every machine. None of them is 0,
which stands for "none".
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

# What a character is: between words, part of a word, a word by itself. 0 is what is taken out.
_SPACE, _PART, _ALONE = 1, 2, 3

# Scripts without spaces between words, from the first code point to before the last.
_UNSPACED = [
    (0x0E00, 0x10A0),  # Thai, Lao, Tibetan, Burmese
    (0x1780, 0x1800),  # Khmer
    (0x3005, 0x3130),  # marks of iteration, Hiragana, Katakana, Bopomofo
    (0x31A0, 0x3200),  # their extensions
    (0x3400, 0x4DC0),  # Han
    (0x4E00, 0xA000),
    (0xA9E0, 0xAA00),  # Burmese
    (0xAA60, 0xAA80),
    (0xF900, 0xFB00),  # Han
    (0x1AFF0, 0x1B170),  # Katakana, Hiragana
    (0x20000, 0x40000),  # Han
]

_CHUNK = 1 << 16  # characters at a time: the arrays of a chunk stay in the processor's cache
_BASE = 0x9E3779B97F4A7C15  # odd numbers with well-mixed bits; which ones does not matter
_STEP = 0xD6E8FEB86659FD93


@dataclass(frozen=True, eq=False)
class Words:
    """The words of several texts: those of text i are `hashes[offsets[i] : offsets[i + 1]]`."""

    hashes: Hashes
    offsets: Offsets

    def joined(self, counts: Sequence[int]) -> "Words":
        """The same words by row, where row i is made of the next `counts[i]` texts."""
        return Words(self.hashes, self.offsets[np.cumsum([0, *counts])])


def words(texts: Sequence[str]) -> Words:
    """The hash of each word of each text."""
    hashes, offsets = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)]
    for chunk in _chunks(texts):
        found = _split(chunk)
        hashes.append(_hashed(found))
        offsets.append(found.offsets[1:] + offsets[-1][-1])
    return Words(np.concatenate(hashes), np.concatenate(offsets))


def spelled(text: str) -> list[str]:
    """The normalised words themselves, for people to read."""
    found = _split([text])
    chars = "".join(map(chr, found.chars >> np.uint32(2)))
    return [chars[start:end] for start, end in zip(found.starts, found.ends, strict=True)]


def ngrams(words: Words, n: int) -> tuple[Hashes, Offsets]:
    """The hash of each n words in a row, in order, and the offsets by text; fewer than n words give none."""
    counts = np.maximum(np.diff(words.offsets) - (n - 1), 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    starts = np.arange(offsets[-1]) + np.repeat(words.offsets[:-1] - offsets[:-1], counts)

    every = max(len(words.hashes) - n + 1, 0)  # n-grams without regard to where a text ends
    grams = words.hashes[:every].copy()
    for i in range(1, n):
        grams *= np.uint64(_STEP)
        grams += words.hashes[i : i + every]
    return mixed(grams[starts]), offsets


def content(words: Words) -> Hashes:
    """The hash of all words of each text in order; 0 for a text without words."""
    starts, ends = words.offsets[:-1], words.offsets[1:]
    sums = np.zeros(len(words.hashes) + 1, np.uint64)
    powers = _powers(_STEP, len(sums))
    np.cumsum(words.hashes * powers[: len(sums) - 1], out=sums[1:])
    whole = mixed(_moved_back(sums[ends] - sums[starts], starts, _STEP, powers))
    return np.where(ends > starts, whole, np.uint64(0))


def mixed(values: Hashes) -> Hashes:
    """Each value with its bits spread over all 64 (the finaliser of SplitMix64, Steele et al. 2014); never 0."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return np.maximum(values, np.uint64(1), out=values)


class _Split(NamedTuple):
    """The characters that are not taken out, each as in `_table`; word k is `chars[starts[k] : ends[k]]`."""

    chars: NDArray[np.uint32]
    starts: Offsets
    ends: Offsets
    offsets: Offsets  # of words by text


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many texts at a time as come to _CHUNK characters."""
    first = size = 0
    for i, text in enumerate(texts, 1):
        size += len(text)
        if size >= _CHUNK or i == len(texts):
            yield texts[first:i]
            first, size = i, 0


def _split(texts: Sequence[str]) -> _Split:
    texts = [_composed(text) for text in texts]
    chars = _table()[_codes("\n" + "\n".join(texts))]  # no word reaches from one text into the next
    kept = chars != 0
    chars = chars[kept]

    kinds = (chars & np.uint32(3)).astype(np.uint8)
    inside, alone = kinds >= _PART, kinds == _ALONE
    edge = np.ones(len(kinds) + 1, bool)  # between each character and the one before
    edge[1:-1] = (inside[1:] != inside[:-1]) | alone[1:] | alone[:-1]
    starts = np.flatnonzero(edge[:-1] & inside)
    ends = np.flatnonzero(edge[1:] & inside) + 1

    firsts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    sizes = np.add.reduceat(kept, firsts, dtype=np.int64)
    offsets = np.searchsorted(starts, np.cumsum([0, *sizes]))
    return _Split(chars, starts, ends, offsets)


def _composed(text: str) -> str:
    # the check is several times as fast as the work, which few texts need
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)


def _codes(text: str) -> NDArray[Any]:
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _hashed(found: _Split) -> Hashes:
    """Each word's Σ character · BASE^place: a difference of running sums."""
    powers = _powers(_BASE, len(found.chars))
    sums = found.chars.astype(np.uint64)
    sums *= powers[: len(sums)]
    np.cumsum(sums, out=sums)
    # the character before a word is there: a text begins after a line break
    whole = sums[found.ends - 1] - sums[found.starts - 1]
    return mixed(_moved_back(whole, found.starts, _BASE, powers))


def _moved_back(sums: Hashes, starts: Offsets, base: int, powers: Hashes) -> Hashes:
    """`sums · base^-starts`: a hash that does not depend on what stands before."""
    last = len(powers) - 1
    return sums * powers[last - starts] * np.uint64(pow(base, -last, 1 << 64))


def _powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... (mod 2^64), at least `count` of them."""
    return _all_powers(base, max(2 * _CHUNK, 1 << count.bit_length()))


@lru_cache(maxsize=4)
def _all_powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint32]:
    """For each Unicode character `folded << 2 | kind`, or 0 where it is taken out."""
    count = 0x110000
    categories = list(map(unicodedata.category, map(chr, range(count))))
    kind_of = {"Zs": _SPACE, "Zl": _SPACE, "Zp": _SPACE, "Sm": _ALONE, "Sc": _ALONE, "So": _ALONE}
    kind_of |= dict.fromkeys(["Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sk", "Cc", "Cf"], 0)
    kinds = np.fromiter((kind_of.get(category, _PART) for category in categories), np.uint32, count)
    kinds[[ord(char) for char in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"]] = _SPACE
    for first, last in _UNSPACED:
        kinds[first:last][kinds[first:last] == _PART] = _ALONE

    folded = np.arange(count, dtype=np.uint32)
    for code in (code for code, category in enumerate(categories) if category in ("Lu", "Ll", "Lt")):
        fold = chr(code).casefold()
        if len(fold) == 1:  # ß stays ß: one character for one keeps the places
            folded[code] = ord(fold)
    return np.where(kinds, folded << np.uint32(2) | kinds, np.uint32(0))
