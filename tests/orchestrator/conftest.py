from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.store.documents import Store


@pytest.fixture
def orchestrator(store: Store) -> Iterator[Orchestrator]:
    found = Orchestrator(store, {"local": LocalExecutor(cores=4)})
    found.start()
    yield found
    found.close()


@pytest.fixture
def spec(control: Path) -> Any:
    """A run's spec from YAML, with the parameter `control` set."""

    def make(yaml: str) -> dict[str, Any]:
        return {
            "yaml": yaml.replace("CONTROL", str(control)),
            "parameters": {},
            "source_name": "test.yaml",
            "base_uri": "",
        }

    return make
