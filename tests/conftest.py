"""Fixtures of all tests.

The sandbox stage (tests/worker/plugin) is installed for the test session as any plug-in would be:
found by its entry point, in this process and in those that tests start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = str(ROOT / "tests" / "worker" / "plugin")

sys.path.insert(0, PLUGIN)
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (PLUGIN, os.environ.get("PYTHONPATH")) if p)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the repository; it is not part of the repository (see its licences)."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is missing: {folder}")
    return folder
