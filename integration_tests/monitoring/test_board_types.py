"""Boards have the fields that Grafana's published types have, and no others (`tsc --noEmit`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from charts.boards.__main__ import BOARDS
from charts.boards.panels import board_json

HERE = Path(__file__).resolve().parent
PACKAGES = ("@grafana/schema@11.6.0", "typescript@5.6.3")


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's types and the compiler."""
    folder = tmp_path_factory.mktemp("types")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm (Debian: apt-get install npm)")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    if found.returncode:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {found.stderr[-300:]}")
    shutil.copy(HERE / "types.ts", folder)
    return folder


def complaints(folder: Path, boards: list[dict[str, Any]]) -> list[str]:
    """What the compiler says of boards."""
    lines = ["import type { Board } from './types';"]
    lines += [f"export const board{i}: Board = {json.dumps(board)};" for i, board in enumerate(boards)]
    (folder / "boards.ts").write_text("\n".join(lines))
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    tsc = [str(folder / "node_modules" / ".bin" / "tsc"), *options, "boards.ts"]
    found = subprocess.run(tsc, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert found.stderr == ""
    return [line for line in found.stdout.splitlines() if ": error " in line]


def test_boards_are_what_grafana_reads(checker: Path) -> None:
    assert complaints(checker, [board_json(board) for board in BOARDS]) == []


def test_what_grafana_does_not_know_is_found(checker: Path) -> None:
    """A field of a board, a panel, its options and its custom fields, and a value that no enum has."""
    boards = [board_json(BOARDS[0]) for _ in range(5)]
    chart = next(i for i, panel in enumerate(boards[0]["panels"]) if panel["type"] == "timeseries")
    boards[0]["colour"] = "red"
    boards[1]["panels"][chart]["heading"] = "x"
    boards[2]["panels"][chart]["options"]["legends"] = {}
    boards[3]["panels"][chart]["fieldConfig"]["defaults"]["custom"]["lineWidht"] = 1
    boards[4]["panels"][chart]["options"]["legend"]["displayMode"] = "lists"
    found = "\n".join(complaints(checker, boards))
    for name in ("colour", "heading", "legends", "lineWidht", '"lists"'):
        assert name in found
