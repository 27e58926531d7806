"""How sure a mean is, and whether a difference is more than chance.

In:  scores of items, or the differences of two models on the same items.
Out: an interval; the probability of such a difference by chance, and that corrected for many looks.

    interval(np.array([1.0, 0.0, 1.0, 1.0]))           # {"value": 0.75, "low": 0.25, "high": 1.0}
    p_of_drop(base - tuned)                            # 0.004
    holm([0.004, 0.03, 0.2])                           # [0.012, 0.06, 0.2]
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = dict[str, float | None]
RESAMPLES = 4000
_AT_ONCE = 10**7  # numbers that are drawn at a time: what is in memory does not grow with the items
FEW = 6  # items below which no difference is told apart from chance, though all of them say the same
EXACT = 12  # so many differences have few enough signs to try them all
FEW = 6  # items below which no difference is told apart from chance, though all of them say the same


def interval(values: NDArray[np.float64]) -> Interval:
    """The mean of `values` and its 95 % bootstrap interval (Efron 1979), with a fixed seed.

    One value has no interval: `low` and `high` are None. Of differences of two models on the same items this is the
    paired bootstrap (Koehn 2004, Statistical significance tests for machine translation evaluation). Percentiles of
    few values are too narrow; they are taken further out, by as much as Student's t is wider than the normal
    distribution ("expanded percentile": Hesterberg 2015, What teachers should know about the bootstrap, 4.3).
    """
    from scipy.stats import bootstrap, norm, t

    mean = float(values.mean())
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None}
    # the bootstrap of equal values is that value, and of what is no number, or infinite, nothing else
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return {"value": mean, "low": mean, "high": mean}
    n = len(values)
    level = 1 - 2 * float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1)))
    result = bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=at_once(n),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {"value": mean, "low": float(result.low), "high": float(result.high)}


def at_once(items: int) -> int:
    """How many resamples of so many items are drawn at a time."""
    return max(1, _AT_ONCE // items)


def p_of_drop(differences: NDArray[np.float64]) -> float:
    """How often chance alone makes the mean of `differences` (base - tuned, an item each) as large as this.

    The paired permutation test, one-sided (Fisher 1935; Dror et al. 2018, The hitchhiker's guide to testing
    statistical significance in NLP): were the two models alike, each item's difference could as well have the other
    sign. Of up to 12 items that differ all signs are tried, of more a drawn 9,999. 1.0 where no item differs. An
    infinite difference, of a loss that overflows, is larger than all others together; one that is no number tells
    nothing: 1.0.
    """
    from scipy.stats import permutation_test

    moved = differences[differences != 0]
    if not len(moved) or np.isnan(moved).any():
        return 1.0
    infinite = np.isinf(moved)
    moved = np.where(infinite, np.sign(moved) * (1 + np.abs(moved[~infinite]).sum()), moved)
    if len(moved) == 1:
        return 0.5 if moved[0] > 0 else 1.0
    exact = len(moved) <= EXACT
    result = permutation_test(
        (moved,),
        lambda signed, axis: signed.mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf if exact else 9999,
        batch=at_once(len(moved)),
        alternative="greater",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` corrected for how many they are (Holm 1979, A simple sequentially rejective multiple test
    procedure): the chance of even one false alarm among all stays below the level that these are compared with.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
