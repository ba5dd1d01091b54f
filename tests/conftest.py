"""The sandbox stage for all tests.

It lies in tests/worker/plugin and is installed for the test session as any plug-in would be:
found by its entry point, in this process and in those that tests start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = str(ROOT / "tests" / "worker" / "plugin")

sys.path.insert(0, PLUGIN)
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (PLUGIN, os.environ.get("PYTHONPATH")) if p)
