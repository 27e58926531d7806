"""The pages in Chromium: no error, nothing of the data runs, readable in light, dark, on a phone and on paper."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_pages import HOSTILE, make_metrics, make_predictions, make_record, prediction

from ift.tracking.comparison import write_comparison
from ift.tracking.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path"),
]

ATTACKS = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '<img src=x onerror="window.hacked = 3">',
    "<svg onload='window.hacked = 4'>",
    '"><a href="javascript:window.hacked = 5">x</a>',
    "a NUL\x00and an escape\x1b[31m",
    HOSTILE,
    "x" * 600,  # no place to break
]
WIDTHS = (320, 390, 721, 881, 1280)  # of phones, just above where the layout changes, of a screen
PAGES = ("report", "comparison")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a comparison with attacks in every text of theirs that data can reach."""
    folder = tmp_path_factory.mktemp("pages")
    before, after = make_predictions()
    for i, attack in enumerate(ATTACKS):
        told = {"prompt": attack, "expected": attack, "suite": "task", "task_kind": "classification"}
        told |= {"label": attack, "id": attack}
        before.append(prediction(attack, i, **told, output=attack, predicted=attack))
        after.append(prediction(attack, i, **told, output=f"{attack} again", predicted="", score=0.0))
    before += [prediction("many", i, output=f"the answer {i}") for i in range(80)]
    after += [prediction("many", i, output=f"answer {i}", score=float(i % 3 > 0)) for i in range(80)]
    metrics = [{**row, "losses": dict.fromkeys(ATTACKS, row["loss"])} for row in make_metrics()]
    record = make_record(before=before, after=after, metrics=metrics)
    write_report(folder / "report.html", record)
    settings = {"train.method": ATTACKS[0], "x" * 300: ATTACKS[2]}
    write_comparison(
        folder / "comparison.html",
        {
            "one": make_record(),
            ATTACKS[0]: record,
            "three": make_record(settings=settings, summary={"name": "x"}),
        },
    )
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Open a page; when the test is over, no page has had an error or asked for anything but itself."""
    contexts, troubles = [], []

    def open_page(name: str = "report", *, width: int = 1280, **how: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **how)
        contexts.append(context)
        page = context.new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.partition("#")[0] in (address, "data:,") else troubles.append(request.url)
            ),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def control(page: Any, name: str) -> Any:
    return page.locator(f'[data-control="{name}"]')


def shown(page: Any) -> list[str]:
    """What became of the items whose rows are seen."""
    rows: list[str] = page.eval_on_selector_all(
        ".prediction", "rows => rows.filter(row => row.offsetHeight).map(row => row.dataset.change)"
    )
    return rows


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_error_and_nothing_of_the_data_runs(opened: Callable[..., Any], name: str, scheme: str) -> None:
    page = opened(name, color_scheme=scheme)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, a:not([href^='#'])").count() == 0
    assert page.locator("script").count() == (name == "report")
    assert ATTACKS[0] in page.locator("main").inner_text()


def test_a_script_in_a_prediction_stays_text(opened: Callable[..., Any]) -> None:
    page = opened()
    control(page, "text").fill("window.hacked")
    text = page.locator("#predictions tbody").inner_text()
    for attack in ATTACKS[:5]:
        assert attack in text
    control(page, "text").fill("a nul")
    assert "a NUL␀and an escape␛[31m again" in page.locator("#predictions tbody").inner_text()
    assert page.evaluate("window.hacked") is None


def test_the_policy_holds_against_what_would_get_in(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(pages["report"].as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 9";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "https://example.invalid/x.png";
            image.setAttribute("onerror", "window.hacked = 10");
            document.body.append(image);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in text for text in said) >= 2
    page.close()


@pytest.mark.parametrize("scripts", [True, False], ids=["with script", "without"])
@pytest.mark.parametrize("name", PAGES)
def test_the_body_never_scrolls_sideways(opened: Callable[..., Any], name: str, scripts: bool) -> None:
    page = opened(name, java_script_enabled=scripts)
    found = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found[width] = page.locator("html").evaluate("page => page.scrollWidth")
    assert found == {width: width for width in WIDTHS}


def test_rows_are_found_by_task_change_and_words(opened: Callable[..., Any]) -> None:
    page = opened()
    told = control(page, "told")
    assert len(shown(page)) == 50
    assert told.inner_text() == "50 of 100 rows that fit"
    page.get_by_role("button", name="50 more").click()
    assert len(shown(page)) == 100
    control(page, "change").select_option("broken")
    assert set(shown(page)) == {"broken"}
    control(page, "task").select_option(label="many (80)")
    assert told.inner_text() == "27 of 27 rows that fit"
    control(page, "text").fill("ANSWER 30")
    assert len(shown(page)) == 1
    control(page, "text").fill("answer 31")
    assert told.inner_text() == "No row fits."
    control(page, "text").fill("")
    control(page, "change").select_option("")
    page.get_by_role("button", name="All").click()
    assert len(shown(page)) == 80


def test_marks_can_be_those_against_the_reference(opened: Callable[..., Any]) -> None:
    page = opened()
    coloured = "mark => getComputedStyle(mark).backgroundColor !== 'rgba(0, 0, 0, 0)'"
    assert page.locator(".prediction del").first.evaluate(coloured)
    assert not page.locator(".prediction u").first.evaluate(coloured)
    control(page, "marks").select_option("reference")
    assert not page.locator(".prediction del").first.evaluate(coloured)
    assert page.locator(".prediction u").first.evaluate(coloured)


def test_without_a_script_all_rows_are_there(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(".prediction:visible").count() == 100
    assert not page.locator(".controls").first.is_visible()
    assert page.get_by_text("Without JavaScript there is no filter").is_visible()


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const luminance = (name) => {
        canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
        canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
        const linear = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const found = {};
    for (const name of ["--ink", "--muted", "--tuned", "--good", "--bad", "--unsure"])
        for (const ground of ["--card", "--page"]) {
            const [low, high] = [luminance(name), luminance(ground)].sort((a, b) => a - b);
            found[`${name} on ${ground}`] = (high + 0.05) / (low + 0.05);
        }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(opened: Callable[..., Any], scheme: str) -> None:
    found = opened(color_scheme=scheme).evaluate(CONTRAST)
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}  # WCAG 2.2, 1.4.3, level AA


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_it_is_light_without_controls(opened: Callable[..., Any], name: str, tmp_path: Path) -> None:
    page = opened(name, color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(18, 22, 26)"
    page.emulate_media(media="print")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert page.locator("nav, .controls, button").filter(visible=True).count() == 0
    assert len(shown(page)) <= 50
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
