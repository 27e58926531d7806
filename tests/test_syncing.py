"""`ift sync` leaves alone what a run is at work on."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ift import storage, syncing
from ift.console import Terminal
from ift.stages import VERSION
from ift.tracking import registry
from ift.tracking.outbox import Outbox


def test_a_model_is_not_registered_beside_the_run_that_registers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text("name: reviews\n")
    asked = {"name": "reviews", "description": "", "tags": {}, "alias": None, "into": "."}
    storage.write_json(tmp_path / VERSION, asked)
    outbox = Outbox(tmp_path)
    outbox.open({"uri": "http://mlflow:5000", "experiment": "reviews"})
    monkeypatch.setattr(registry, "register", pytest.fail)
    output = io.StringIO()
    terminal = Terminal(Console(file=output, width=200))
    with outbox.alone():
        outbox.save()
        assert not syncing._register(tmp_path, terminal, None)
    assert "another process is at work on it" in output.getvalue()
