"""Fixtures: the command in this process, and as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from happyneurons.cli.main import main

TWO = """
name: two
parameters: {n: 4}
jobs:
  first: {stage: sandbox, params: {tasks: 3, control: "CONTROL"}}
  second: {stage: sandbox, params: {tasks: "${n}", control: "CONTROL"}, needs: [first]}
"""


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store that commands find without being told."""
    monkeypatch.setenv("HPN_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("HPN_ORCHESTRATOR", raising=False)
    return tmp_path / "store"


@pytest.fixture
def pipeline(tmp_path: Path, control: Path) -> Callable[[str], str]:
    """Writes a pipeline file; returns its path."""

    def write(text: str = TWO) -> str:
        path = tmp_path / "pipeline.yaml"
        path.write_text(text.replace("CONTROL", str(control)))
        return str(path)

    return write


@pytest.fixture
def hpn() -> Callable[..., Result]:
    """Runs the command here."""
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def start_hpn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command as a process of its own; what is left over is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "happyneurons.cli.main", *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
