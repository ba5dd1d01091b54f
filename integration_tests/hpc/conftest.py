"""The rig: Balsam, PostgreSQL, Redis and Slurm, started once for all tests that need it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_tests.hpc.daemons import REPOSITORY
from integration_tests.hpc.images import Images
from integration_tests.hpc.rig import PLUGIN, Rig, start_rig

HERE = Path(__file__).resolve().parent
FIRST = ("test_demo", "test_balsam_rig", "test_balsam_faults")
LAST = ("test_containers", "test_balsam_images", "test_site_images")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that two processes end at about the same time.

    Then those without images: the demo's images are built meanwhile, once.
    """
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.hpc)
    order = {name: place for place, name in enumerate(FIRST, -len(FIRST))} | dict.fromkeys(LAST, 1)
    items.sort(key=lambda item: order.get(item.path.stem, 0))


@pytest.fixture(scope="session", autouse=True)
def sandbox_plugin() -> Iterator[None]:
    """The sandbox stage, here and in the processes that tests start; the site's ranks have it from `--env`."""
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(PLUGIN))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGIN)] + ([before] if before else []))
    yield
    sys.path.remove(str(PLUGIN))
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """Images and SIF files, built when they are asked for; what `make integration-hpc` left is built upon."""
    images = Images(Path(os.environ.get("HPN_IMAGES_DIR") or REPOSITORY / ".hpc" / "images"))
    yield images
    print(f"images: {images.seconds}")


@pytest.fixture(scope="session")
def running_rig() -> Iterator[Rig]:
    """The rig, for fixtures."""
    rig = start_rig()
    print(f"rig: {rig.seconds}")
    try:
        yield rig
    finally:
        rig.end()


@pytest.fixture
def rig(running_rig: Rig, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The rig, with its server and agent up and no batch jobs; ends of its logs go with a failed test's report."""
    running_rig.daemons.check()
    yield running_rig
    call = request.node.stash.get(OUTCOME, None)
    if call is not None and call.failed:
        request.node.add_report_section("call", "rig's logs", running_rig.logs())
        print(running_rig.logs())
    if "server" not in running_rig.daemons.running:
        running_rig.start_server()
    running_rig.idle()


OUTCOME = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    """Keep the outcome of the test itself for its fixtures."""
    report = yield
    if report.when == "call":
        item.stash[OUTCOME] = report
    return report
