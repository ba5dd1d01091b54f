"""A store, sandbox jobs in it, and stage servers in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store
from tests.worker.waiting import wait_for

CORES, MEMORY_GB = 2, 4.0


class ServerProcess:
    """`hpn-stage serve` on one store; can be killed and started again on its port."""

    def __init__(self, store: Store, folder: Path, *options: str) -> None:
        self.store, self.folder, self.options = store, folder, options
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        port_file = self.folder / "port"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "happyneurons.worker.main", "serve", "--store", self.store.uri]
        command += ["--address", self.address, "--port-file", str(port_file)]
        command += ["--cores", str(CORES), "--memory-gb", str(MEMORY_GB), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lambda: port_file.exists() or self.process.poll() is not None, "the server")
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
        self.address = port_file.read_text().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def new_job(store: Store, control: Path) -> Callable[..., str]:
    """Register a sandbox job; returns its key."""

    def make(**params: Any) -> str:
        spec = make_spec(load_stage("sandbox"), inputs={}, params={**params, "control": str(control)})
        save_spec(store, spec)
        return spec.key

    return make


@pytest.fixture(scope="module")
def shared_server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(store, tmp_path_factory.mktemp("server"))
    yield server
    assert server.stop() == 0


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that a test may kill."""
    server = ServerProcess(store, tmp_path)
    yield server
    server.kill()
