"""What the documents point at is there: tests that they name, files that they link to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/**/README.md"))
    if ".venv" not in page.parts
)


def test_every_test_that_security_names_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    file, named = "", 0
    for path, function in re.findall(r"`([\w/]+\.py|…)(?:::(\w+))?`", text):
        file = file if path == "…" else path
        if not file.rpartition("/")[2].startswith("test_"):
            continue
        named += 1
        source = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in source, f"{file}::{function}"
    assert named > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target
