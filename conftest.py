"""Fixtures of all test suites."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before any library reads them: two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import signal

import hypothesis
import pytest

from happyneurons.store.documents import Store

# Shared assertions say what they compared, as those of test modules do.
pytest.register_assert_rewrite("tests.executors.conformance")

# A shell that starts something in the background lets it ignore Ctrl-C, and so all that it starts: tests would wait
# in vain for what they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that stands still for a second fails no test.
hypothesis.settings.register_profile(
    "any-speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-speed")

SHARED_DATA = Path(__file__).resolve().parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the repository; tests that need it are skipped where it is absent."""
    if not (SHARED_DATA / "README.md").exists():
        pytest.skip(f"real data is missing: there is no {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store in a folder of its own."""
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    """Folder through which sandbox tasks are told what to do. No task waits longer than its test."""
    folder = tmp_path / "control"
    folder.mkdir()
    yield folder
    (folder / "release").touch()
