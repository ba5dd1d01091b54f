from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def fib25_checkpoint() -> str:
    """Prefix of Google's published FIB-25 checkpoint; skips where it is absent."""
    prefix = Path(__file__).resolve().parents[3] / "shared" / "models" / "fib25" / "model.ckpt-27465036"
    if not prefix.with_name(prefix.name + ".index").exists():
        pytest.skip(f"needs Google's FIB-25 checkpoint at {prefix}")
    return str(prefix)
