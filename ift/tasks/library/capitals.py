"""Countries and territories with a capital: those without one are left out.

In:  a row of the package countryinfo: one country, with its `capital` (null or missing where there is none).
Out: the row, or None where it has no capital.

    with_capital({"name": "Chile", "capital": "Santiago"})  # {"name": "Chile", "capital": "Santiago"}
    with_capital({"name": "Antarctica"})                    # None
"""

from collections.abc import Mapping
from typing import Any


def with_capital(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """`row` where there is something to ask."""
    return dict(row) if row.get("capital") else None
