"""The Balsam executor on a real server, a real site and a real Slurm keeps what every executor promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_tests.hpc.rig import QUEUE, Rig
from tests.executors.conformance import ExecutorConformance, Site

from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.executors.balsam.executor import BalsamExecutor
from happyneurons.hpc.folders import load_site_folder

LIMIT_S = 180.0


@pytest.fixture(scope="module")
def balsam_site(running_rig: Rig) -> Iterator[Site]:
    """One node at most, which the executor asks for itself and keeps from test to test."""
    rig = running_rig
    access = BalsamAccess(api=rig.api, site=rig.site_name, token_file=rig.token_file, poll_s=0.5)
    pool = PoolLimits(queue=QUEUE, max_nodes=1, walltime_min=60, idle_s=60)
    executor = BalsamExecutor(rig.site_name, load_site_folder(str(rig.site_folder)), access, pool)
    yield Site(
        executor, rig.new_store(), rig.cores, rig.memory_mb / 1000, knows_stages=False,
        in_use="1 of 1 nodes of batch job", limit_s=LIMIT_S,
    )  # fmt: skip
    executor.close()
    rig.idle()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    (tmp_path / "release").touch()


class TestBalsam(ExecutorConformance):
    @pytest.fixture
    def site(self, balsam_site: Site) -> Site:
        return balsam_site
