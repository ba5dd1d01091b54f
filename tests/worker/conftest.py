"""Fixtures for tests that run jobs in processes of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store
from happyneurons.worker.launch import Launch, stage_command


@pytest.fixture
def new_job(store: Store) -> Callable[..., str]:
    """Register a sandbox job; returns its key."""

    def make(allow_failed_tasks: int = 0, **params: Any) -> str:
        spec = make_spec(load_stage("sandbox"), inputs={}, params=params, allow_failed_tasks=allow_failed_tasks)
        save_spec(store, spec)
        return spec.key

    return make


@pytest.fixture
def start_attempt(store: Store) -> Iterator[Any]:
    """Start a real attempt as an executor does; processes left over are killed."""
    started: list[subprocess.Popen[bytes]] = []

    def run(key: str, ranks: int = 1, takeover: bool = False, **options: Any) -> subprocess.Popen[bytes]:
        launch = Launch(job_uri(store, key), Resources(ranks=ranks, **options), takeover)
        process = subprocess.Popen(stage_command(launch), stderr=subprocess.PIPE, start_new_session=True)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()
