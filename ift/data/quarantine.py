"""The quarantine: rows that cannot be used, with their source, line and reason, on disk as they are found.

In:  bad rows, one after the other.
Out: quarantine.jsonl, and how many there are for which reason.

    with Quarantine(folder / "quarantine.jsonl") as bad:
        bad.add(task="trec", file="a.jsonl", line=3, reason="not JSON: …", text="{…")
    bad.tally.count, bad.tally.reasons, bad.tally.first
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ift.errors import IftError
from ift.storage import json_line

_TOKENS = re.compile(r"^[\d,]+ tokens, (?=over )")
_QUOTED = 500  # characters of a row that are kept


@dataclass
class Tally:
    """How many rows are bad and why, and the first of them."""

    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, Any] | None = None

    def add(self, entry: dict[str, Any]) -> None:
        """Count one more; instructions that are too long, each by another number of tokens, have one reason."""
        self.count += 1
        self.reasons[_TOKENS.sub("", str(entry["reason"]))] += 1
        self.first = self.first or entry

    def refuse(self, task: str, total: int, allowed: float | int, *, where: Path | None = None) -> None:
        """Raise `IftError` with the reasons where more than `allowed` of a task's `total` rows are here.

        `allowed` is a share (a float) or a count (an int).
        """
        bad = self.count
        if not bad or bad <= (allowed if isinstance(allowed, int) else allowed * total):
            return
        assert self.first is not None
        most = self.reasons.most_common(3)
        at_most = f"{allowed:,}" if isinstance(allowed, int) else f"{allowed:.1%}"
        raise IftError(
            f"{bad:,} of {total:,} rows of `{task}` are bad ({bad / total:.1%}): "
            + "; ".join(f"{reason} ({count:,})" for reason, count in most),
            wanted=f"at most {at_most} (data.max_bad_rows)",
            hint=_move(str(self.first["reason"]))
            + (f" (all are listed in {where})" if where else "")
            + (", or raise data.max_bad_rows" if bad < total else ""),
            where=f"{self.first['file']}:{self.first['line']}" if self.first["file"] else None,
        )


class Quarantine:
    """Bad rows in a file; in memory is only their tally."""

    def __init__(self, path: Path) -> None:
        self.path, self.tally = path, Tally()

    def __enter__(self) -> "Quarantine":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = self.path.open("w", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(
        self,
        *,
        task: str,
        file: str | None,
        line: int | None,
        reason: str,
        text: str,
        example: str | None = None,
        item: int | None = None,
    ) -> dict[str, Any]:
        """One bad row. `item` counts where lines say little; `example` is its id where it has become one."""
        entry: dict[str, Any] = {"task": task, "file": file, "line": line}
        entry |= {} if item is None else {"item": item}
        entry |= {} if example is None else {"example": example}
        entry |= {"reason": reason, "text": text[:_QUOTED]}
        self._file.write(json_line(entry))
        self.tally.add(entry)
        return entry

    def take(self, other: Path) -> None:
        """All the rows of another quarantine's file."""
        with other.open(encoding="utf-8") as lines:
            for line in lines:
                self._file.write(line)
                self.tally.add(json.loads(line))


def _move(reason: str) -> str:
    if reason.endswith("is not UTF-8"):
        return "convert the file, for example with iconv -f LATIN1 -t UTF-8 FILE > NEW"
    return "mend the file, its task's `fields` or its templates"
