"""The chart as Helm renders it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/happyneurons"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
NAMES = [path.name.removesuffix("-values.yaml") for path in VALUES]
RELEASE, NAMESPACE = "neurons", "lab"

Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/helm"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    return helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *arguments)


@cache
def rendered(name: str, *settings: str) -> tuple[Object, ...]:
    """All objects for a values file of ci/, with `--set` of some values."""
    given = [text for setting in settings for text in ("--set-json", setting)]
    done = template("--values", str(CHART / f"ci/{name}-values.yaml"), *given)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def of_kind(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    """Objects of a kind by name."""
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


def pods(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object]]:
    """`(what, pod template)` of everything that runs, the template of Jobs included."""
    for o in objects:
        if o["kind"] == "Deployment":
            yield o["metadata"]["name"], o["spec"]["template"]
        elif o["kind"] == "Pod":
            yield o["metadata"]["name"], o
        elif o["kind"] == "ConfigMap" and "job.yaml" in o.get("data", {}):
            yield "jobs", yaml.safe_load(o["data"]["job.yaml"])


@pytest.fixture(params=NAMES)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return rendered(request.param)


Render = Callable[..., tuple[Object, ...]]
