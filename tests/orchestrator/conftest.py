from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from happyneurons.client import Client
from happyneurons.executors.local import LocalExecutor
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.store.documents import Store

SITES = {"local": SiteConfig(executor="local", cores=4, description="the test's machine")}


@pytest.fixture
def server(store: Store) -> Iterator[OrchestratorServer]:
    with OrchestratorServer(store, sites=SITES, metrics_address="127.0.0.1:0") as found:
        yield found


@pytest.fixture
def client(server: OrchestratorServer) -> Iterator[Client]:
    with Client(server.address) as found:
        yield found


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
