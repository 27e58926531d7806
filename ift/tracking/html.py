"""A template into a page that is safe to open, whatever a model may have answered.

In:  the name of a template in `templates/`, and values.
Out: one HTML file that needs no network.

    write_page(run / "report.html", "report.html.j2", name="trec", ...)

All text is escaped where the template puts it in. A content security policy in the page forbids to load anything, and
to run anything but the page's own script, which it names by its digest: `templates/page.js`, the same for every page.
That script only shows and hides what stands there already; no data enters it. Without it the page says as much.
"""

import base64
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift.tracking.words import CONTROL, as_text, duration, interval, number, percent

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page to `path`, in one move: a reader never sees half of it. The same values give the same bytes."""
    page = _environment().get_template(template).render(values)
    page = page.translate(CONTROL)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, interval=interval, duration=duration, percent=percent, breakable=_breakable
    )
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # of our own files, the only text that goes in as it is
    environment.globals.update(
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_source=f"'sha256-{digest}'",
    )
    return environment


def _breakable(name: Any) -> Any:
    """A name that may be broken after its underscores and its points."""
    from markupsafe import Markup, escape

    wide = escape(as_text(name)).replace("_", Markup("_<wbr>"))
    return wide.replace(".", Markup(".<wbr>"))
