"""Questions whose rows list answers that may be parts of one, or one from each annotator.

In:  a row with the answers as `answers_spans: {"spans": [...]}`.
Out: the row, or None where they are not all the same.

    one_answer({"answers_spans": {"spans": ["4", "4"]}})              # the row
    one_answer({"answers_spans": {"spans": ["Bears", "Packers"]}})    # None
"""

from collections.abc import Mapping
from typing import Any


def one_answer(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """`row` if it has one answer."""
    said = {str(span).strip().casefold() for span in row["answers_spans"]["spans"]}
    return dict(row) if len(said) == 1 else None
