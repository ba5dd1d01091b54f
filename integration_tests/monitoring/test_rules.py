"""Alert rules by Prometheus's own tools: they are valid, and fire when they should and not otherwise."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from charts.monitoring import RULES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: prometheus)")


def promtool(*arguments: str) -> None:
    found = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_rules_are_valid() -> None:
    promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("file", ["rules.test.yaml", "budgets.test.yaml"])
def test_rules_fire_when_they_should(file: str) -> None:
    promtool("test", "rules", f"tests/charts/{file}")
