"""Which validation was the best, when there have been enough without a better one, and when too much is forgotten.

In:  what each validation came to: the loss (less is better) or a metric's score (more is better).
Out: the step of the best, and whether to stop; all of it is plain JSON, so that a resumed run decides the same.

    best = Best("loss", patience=2)
    best.take(10, 0.9)            # True: the best so far
    best.take(20, 0.8)            # True
    best.take(30, 0.8)            # False: no better
    best.take(40, math.nan)       # False
    best.step, best.should_stop   # (20, True)

A loss is there when its validation is over. A score is made elsewhere while training goes on: `expect` says that one
will come, and it is taken in before the next validation, however long that has to wait. So what is decided at a step
does not hang on how fast anything was.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass
class Best:
    """`by` is None where the last step is as good as any; `patience` is how many validations without a better one."""

    by: Literal["loss", "metric"] | None = None
    patience: int | None = None
    step: int | None = None  # of the best validation
    value: float | None = None  # what it came to
    since: int = 0  # validations behind it
    expects: int | None = None  # the step whose score has not come yet

    def __post_init__(self) -> None:
        assert self.by or self.patience is None, "patience, and nothing to judge by"

    def expect(self, step: int) -> None:
        """A score of the weights behind `step` will come."""
        assert self.expects is None, f"the score of step {self.expects} has not come yet"
        self.expects = step

    def take(self, step: int, value: float) -> bool:
        """What the validation behind `step` came to; whether it is the best so far. NaN and infinity never are."""
        assert self.expects in (None, step), (
            f"step {step}, and the score of step {self.expects} has not come yet"
        )
        self.expects = None
        better = self.by is not None and math.isfinite(value) and self._beats(value)
        if better:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1
        return better

    def _beats(self, value: float) -> bool:
        if self.value is None:
            return True
        return value < self.value if self.by == "loss" else value > self.value

    @property
    def should_stop(self) -> bool:
        """Whether `patience` validations in a row were no better."""
        return self.patience is not None and self.since >= self.patience

    def to_json(self) -> dict[str, Any]:
        """All of it, for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Best":
        """As it was."""
        return cls(**state)


@dataclass
class Budget:
    """How much of what the probes ask may be forgotten: looked at now and then, `limit` None only looks.

    budget = Budget(limit=0.05)
    budget.expect(50); budget.take(50, 0.02)     # False: within
    budget.expect(100); budget.take(100, 0.09)   # True: spent; what was within, step 50, is to come out
    """

    limit: float | None = None
    within: int | None = None  # the last step at which no more than that was forgotten
    expects: int | None = None  # the step whose drop has not come yet

    def expect(self, step: int) -> None:
        """The drop of the weights behind `step` will come."""
        self.expects = step

    def take(self, step: int, drop: float) -> bool:
        """What was forgotten behind `step`; whether that is more than the budget. NaN is."""
        self.expects = None
        if self.limit is None:
            return False
        if drop <= self.limit:
            self.within = step
            return False
        return True

    def to_json(self) -> dict[str, Any]:
        """All of it, for the checkpoint."""
        return asdict(self)
