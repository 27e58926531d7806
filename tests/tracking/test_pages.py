"""Promotion in MLflow's own pages: a person sees card and verdict, sets the alias, and the guard answers.

MLflow on PostgreSQL and S3, its pages in Chromium, the guard as a process of its own behind MLflow's webhooks.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from made import make_version
from servers import MlflowServer, free_port, mlflow_server, postgresql, s3, until

from ift.tracking import promotion
from ift.tracking.registry import Registry

pytestmark = pytest.mark.slow
# what an operator sets so that webhooks may go to this machine: by default MLflow sends to https on public hosts only
WEBHOOKS = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        database, storage = stack.enter_context(postgresql()), stack.enter_context(s3())
        environment = {**storage["environment"], **WEBHOOKS}
        yield stack.enter_context(
            mlflow_server(folder, database, artifacts=storage["artifacts"], environment=environment)
        )


@pytest.fixture
def guard(server: MlflowServer, tmp_path: Path) -> Iterator[Path]:
    """`ift guard --enforce` behind webhooks; by itself it would look again in ten minutes. Gives what it prints."""
    port, output = free_port(), tmp_path / "guard.txt"
    listen = ["--listen", f"127.0.0.1:{port}", "--url", f"http://127.0.0.1:{port}/"]
    command = [sys.executable, "-m", "ift.cli", "guard", "--enforce", "--every", "600", *listen]
    process = subprocess.Popen(
        [*command, "--uri", server.uri],
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        until(lambda: "Ctrl-C stops it" in output.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, output.read_text()
        yield output
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1  # something had not passed
        assert "Traceback" not in output.read_text()
        assert not Registry(server.uri).client.list_webhooks()  # it takes its webhook away
    finally:
        process.kill()


@pytest.fixture
def page() -> Iterator[Any]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("needs the package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        yield page
        chromium.close()


def set_alias(page: Any, alias: str) -> None:
    """As a person does it on a version's page."""
    page.get_by_title("Edit aliases").or_(
        page.get_by_role("button", name="Add", exact=True).first
    ).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").fill(alias)
    page.keyboard.press("Enter")
    dialog.get_by_text("Add/Edit alias").click()  # the list of proposals closes
    dialog.get_by_role("button", name="Save aliases").click()
    dialog.wait_for(state="hidden")


def test_an_alias_set_in_the_pages_is_checked_at_once_and_goes_back(
    server: MlflowServer, guard: Path, page: Any, tmp_path: Path
) -> None:
    for name, tuned in (("a", (0.9, 0.8)), ("b", (0.9, 0.5))):
        make_version(server.uri, tmp_path / name, "reviews", tuned=tuned)
    registry = Registry(server.uri)
    good = registry.version("reviews", "1")
    promotion.promote(registry, good, "champion", promotion.decide(registry, good, None), by="ada")

    page.goto(f"{server.uri}/#/models/reviews/versions/2")
    page.get_by_text("What it forgot").wait_for()
    assert page.get_by_text("Gate: fail").is_visible()
    assert page.get_by_text("probe words (accuracy)").first.is_visible()
    set_alias(page, "champion")

    until(
        lambda: registry.aliases("reviews").get("champion") == 1 and "back to version 1" in guard.read_text()
    )
    page.reload()
    page.get_by_text("was set here in MLflow, and this version").wait_for()
    assert page.get_by_text("did not pass").first.is_visible()
    assert page.get_by_text("ift.guard.champion").first.is_visible()
    assert registry.version("reviews", "2").tags["ift.guard.champion"].startswith("did not pass, ")
    moves = promotion.history(registry, "reviews", "champion")
    assert [(move.version, move.how) for move in moves] == [
        (1, "promoted"),
        (2, "set in MLflow, not passed"),
        (1, "returned by the guard"),
    ]

    make_version(server.uri, tmp_path / "c", "reviews", tuned=(0.95, 0.8))
    page.goto(f"{server.uri}/#/models/reviews/versions/3")
    page.reload()
    page.get_by_text("Gate: pass").wait_for()
    set_alias(page, "champion")
    until(lambda: "champion was set to version 3 of reviews in MLflow: it passes" in guard.read_text())
    assert registry.aliases("reviews")["champion"] == 3
    assert promotion.rollback(registry, "reviews", "champion", by="ada")[0].number == 1


def test_a_request_that_is_not_signed_wakes_nobody(server: MlflowServer, tmp_path: Path) -> None:
    import threading
    import time
    import urllib.error
    import urllib.request

    from ift.tracking import guard as guards

    port, wake = free_port(), threading.Event()
    registry, url = Registry(server.uri), f"http://127.0.0.1:{port}/"
    with guards.webhooks(registry, host="127.0.0.1", port=port, url=url, secret="s" * 32, wake=wake):
        for headers in ({}, {"X-MLflow-Signature": "v1,AAAA"}):
            request = urllib.request.Request(url, data=b"{}", headers=headers, method="POST")
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(request)
        assert not wake.is_set()
        stamp = str(int(time.time()))
        signed = {
            "X-MLflow-Delivery-Id": "d",
            "X-MLflow-Timestamp": stamp,
            "X-MLflow-Signature": guards.signature("s" * 32, "d", stamp, b"{}"),
        }
        urllib.request.urlopen(urllib.request.Request(url, data=b"{}", headers=signed, method="POST"))
        assert wake.is_set()
