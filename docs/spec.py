"""`docs/spec.md` from the spec's own fields: every key, its default, what it wants.

python docs/spec.py > docs/spec.md        # a test holds the page to what this prints
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ift.spec import Spec

HEAD = """\
# The spec

Every key that `ift run`, `ift plan`, `ift prepare` and `ift submit` know, with its default. A file is YAML; on the
command line a key is written with dots, such as `train.epochs=2`. What was filled in stands in `spec.yaml` in the run's
folder.
This page is written by `python docs/spec.py`.
"""


def page() -> str:
    """All of it."""
    paths: dict[type[BaseModel], list[str]] = {}
    for model, path in models(Spec, ""):
        paths.setdefault(model, []).append(path)
    return HEAD + "".join(section(model, found) for model, found in paths.items())


def models(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """`model` and all that are mappings below it, each with the keys that lead to it."""
    yield model, path
    for name, field in fields(model):
        for inner in mappings(field.annotation):
            if inner is not model:  # tasks of a mix are tasks
                yield from models(inner, f"{path}.{name}" if path else name)


def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """The keys of a mapping, as a file writes them."""
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def mappings(annotation: Any) -> list[type[BaseModel]]:
    """The mappings among what a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in mappings(inner)]


def section(model: type[BaseModel], paths: list[str]) -> str:
    """The table of a mapping."""
    named = ", ".join(f"`{path}`" for path in paths)
    title = f"\n## {named}\n\n{(model.__doc__ or '').strip().splitlines()[0]}\n" if paths != [""] else ""
    rows = "".join(
        f"| `{name}` | {default(field)} | {field.description or ''} |\n" for name, field in fields(model)
    )
    return f"{title}\n| key | default | what it is |\n|---|---|---|\n{rows}"


def default(field: Any) -> str:
    """What a key is if nobody says; nothing for none."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value == ():
        return ""
    if isinstance(value, BaseModel):
        return "below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
