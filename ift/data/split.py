"""Who is trained on and who is tested: a pure function of the examples' content.

In:  the ids of a task's examples, which of them belong together, and how many go to validation and test.
Out: places, in a stable order that has nothing to do with the order of rows in the file.

    apart = set_apart(ids, groups, test=300, validation=100)
    apart["test"], apart["rest"]                  # the rest is what may be trained on; "left_out" belongs to neither
    take(ids, apart["rest"], 600)

An example's place is decided by its hash, so adding or removing rows moves few others, and asking for more
training examples moves none from the test set: the test set takes the lowest hashes, then validation, then train.
A group, such as near-identical rows or those of one document, is never parted: it stands where its lowest hash does,
or behind all others where it alone is more than the test set takes. What is left of one when the test set is full is
neither validated nor trained on.

    ids     0a 1b 2c 3d 4e 5f       groups  a b a c b d       test=3, validation=1
    test    0a 2c 1b                2c belongs to 0a
    left out         4e             belongs to 1b, which is tested
    valid.  3d
    rest    5f
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift.errors import IftError

Places = NDArray[np.int64]
Splits = dict[str, Places]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def set_apart(
    ids: Sequence[int] | NDArray[np.uint64],
    groups: Sequence[int] | NDArray[Any],
    *,
    test: float,
    validation: float,
    labels: NDArray[np.int32] | None = None,
    names: Sequence[str] = (),
) -> Splits:
    """The places of `test` and `validation`, each a share (below 1) or a count, the `rest`, and what is `left_out`.

    Examples of equal `groups` go to one side. With `labels`, places in `names`, as many of every label are taken, as
    far as counts divide.
    Raises `IftError` where there are fewer examples than asked for.
    """
    ordered = np.argsort(np.asarray(ids, dtype=np.uint64), kind="stable")
    counts = {"test": count_of(test, len(ordered)), "validation": count_of(validation, len(ordered))}
    groups = np.asarray(groups)
    known = [] if labels is None else np.unique(labels).tolist()
    result: Splits = {}
    left_out: list[Places] = []
    for name, count in counts.items():
        chosen = _chosen(_by_group(ordered, groups, count), count, name, labels, known, names, len(ids))
        result[name] = chosen
        ordered = ordered[~np.isin(ordered, chosen)]
        torn = np.isin(groups[ordered], groups[chosen])
        left_out.append(ordered[torn])
        ordered = ordered[~torn]
    return {**result, "rest": ordered, "left_out": np.concatenate(left_out)}


def _by_group(ordered: Places, groups: NDArray[Any], count: int) -> Places:
    """`ordered` with each group where its first row is, those of more than `count` rows last."""
    _, first, group, sizes = np.unique(
        groups[ordered], return_index=True, return_inverse=True, return_counts=True
    )
    return ordered[np.lexsort((first[group], sizes[group] > count))]


def take(
    ids: Sequence[int] | NDArray[np.uint64],
    places: Places,
    count: float | None,
    *,
    total: int,
    labels: NDArray[np.int32] | None = None,
    known: Sequence[int] = (),
    names: Sequence[str] = (),
) -> Places:
    """`count` of `places` to train on, those of the lowest ids; with `labels` as many of each (of the `known`).

    A share (below 1) is of `total`; None takes all, with `labels` as many of each as the rarest has.
    """
    places = places[np.argsort(np.asarray(ids, dtype=np.uint64)[places], kind="stable")]
    if labels is not None:
        known = known or np.unique(labels).tolist()
    if count is not None:
        return _chosen(places, count_of(count, total), "train", labels, known, names, total)
    if labels is None:
        return places
    by_label = _by_label(places, labels, known)
    rarest = min(map(len, by_label.values()), default=0)
    return _chosen(places, rarest * len(by_label), "train", labels, known, names, total)


def _chosen(
    ordered: Places,
    count: int,
    name: str,
    labels: NDArray[np.int32] | None,
    known: Sequence[int],
    names: Sequence[str],
    total: int,
) -> Places:
    """The first `count` of `ordered`, as many of each label where there are some; in their order."""
    if labels is None:
        _refuse_too_few(name, count, len(ordered), total, "")
        return ordered[:count]
    by_label = _by_label(ordered, labels, known)
    kept = []
    for i, (label, places) in enumerate(by_label.items()):
        share = count // len(by_label) + (i < count % len(by_label))
        _refuse_too_few(
            name, share, len(places), total, f" labelled `{names[label] if label >= 0 else None}`"
        )
        kept += places[:share]
    rank = {place: i for i, place in enumerate(ordered.tolist())}
    return np.array(sorted(kept, key=rank.__getitem__), dtype=np.int64)


def _by_label(ordered: Places, labels: NDArray[np.int32], known: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {label: [] for label in sorted(known)}
    for place in ordered.tolist():
        found[int(labels[place])].append(place)
    return found


def _refuse_too_few(name: str, asked: int, left: int, total: int, of_label: str) -> None:
    if asked > left:
        raise IftError(
            f"{asked:,} examples{of_label} are asked for `data.split.{name}`; {left:,} are left",
            wanted=f"at most {total:,} in all (train + validation + test)",
            hint="lower the counts in data.split, or give shares such as 0.05",
        )


def count_of(wanted: float, total: int) -> int:
    """A share (0.05) or a count (300) as a number of examples."""
    return round(wanted * total) if wanted <= 1 and wanted != int(wanted) else int(wanted)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): neighbours in, far apart out."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
