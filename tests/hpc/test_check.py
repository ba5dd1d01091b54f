"""`hpn site check` as far as one machine without Balsam goes; the rest is in integration_tests/hpc."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
from happyneurons.hpc.check import CheckPlan, Finding, check_site, rank_command
from happyneurons.hpc.folders import load_site_folder, sites_root


def findings(plan: CheckPlan) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_site(plan)}


def test_this_environment_is_ready_with_two_ranks_and_a_store(tmp_path: Path):
    found = findings(CheckPlan("slurm", "slurm", store=str(tmp_path / "store"), native=True, here=True))
    assert {what: f.ok for what, f in found.items()} == {
        "site folder": True, "Balsam": None, "store": True, "stages": True, "two ranks": True,
    }, found  # fmt: skip
    assert "segment" in found["stages"].detail
    assert "libmpi.so.12" in found["two ranks"].detail


def test_what_was_not_looked_at_is_said(tmp_path: Path):
    found = findings(CheckPlan("slurm", "slurm", native=True))
    assert found["store"].word == found["ranks"].word == "SKIPPED"
    assert "--here" in found["ranks"].detail
    missing = findings(CheckPlan("slurm", "slurm", image=str(tmp_path / "montage.sif"), here=True))
    assert missing["image"].ok is False
    assert "make sif" in missing["image"].detail


def test_a_retired_site_is_a_problem():
    found = findings(CheckPlan("theta", "theta"))
    assert found["site folder"].ok is False
    assert "out of service" in found["site folder"].detail


def test_a_launcher_of_another_mpi_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such a launcher starts N processes that do not find one another; here a script does."""
    launcher = tmp_path / "mpiexec"
    launcher.write_text('#!/bin/bash\nshift 2\n"$@" && exec "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("HPN_MPIEXEC", str(launcher))
    found = findings(CheckPlan("slurm", "slurm", native=True, here=True))
    assert found["two ranks"].ok is False
    assert "1 ranks found one another, not 2" in found["two ranks"].detail


def test_a_program_that_is_no_stage_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sif = tmp_path / "montage.sif"
    sif.touch()
    for command, complaint in (
        ("/bin/echo", "not that of an hpn-stage"),
        ("/bin/false", "exit 1"),
        ("/no", "installed"),
    ):
        monkeypatch.setenv("HPN_CONTAINER", command)
        found = findings(CheckPlan("slurm", "slurm", image=str(sif), here=True))
        assert found["stages"].ok is False
        assert complaint in found["stages"].detail
    monkeypatch.setenv("HPN_HOST_MPI", str(tmp_path))
    assert "no libmpi.so.12" in findings(CheckPlan("slurm", "slurm", image=str(sif), here=True))["host MPI"].detail


def test_images_are_started_with_the_sites_binds_and_the_hosts_mpi(tmp_path: Path):
    facts = load_site_folder("polaris").facts
    plan = CheckPlan("p", "polaris", image="montage.sif", store=str(tmp_path))
    command = rank_command(plan, facts, {"HPN_HOST_MPI": f"{tmp_path}/mpi:/usr/lib"})
    assert command[:2] == ["apptainer", "exec"]
    assert command[-2:] == ["montage.sif", "hpn-stage"]
    bound = {command[n + 1] for n, word in enumerate(command) if word == "--bind"}
    assert bound == {"/opt", "/usr/lib", str(tmp_path)}  # of those that exist here


@pytest.mark.parametrize(
    ("pool", "complaint"),
    [
        ({"project": "p", "max_nodes": 16}, None),
        ({"project": "p"}, None),
        ({"max_nodes": 16}, "must name a project"),
        ({"project": "p", "queue": "fast"}, "pool.queue 'fast' is none"),
        ({"project": "p", "max_nodes": 8}, "no fewer than 10 nodes; pool.max_nodes is 8"),
        ({"project": "p", "max_nodes": 900, "nodes_per_batch": 500}, "10 to 496 nodes, not 500"),
        ({"project": "p", "max_nodes": 12, "walltime_min": 240}, "12 nodes at most 180 min"),
        ({"project": "p", "max_nodes": 30, "walltime_min": 240}, None),
        ({"project": "p", "options": {"qos": "x"}}, "knows no qos"),
    ],
)
def test_what_the_pool_asks_for_must_be_what_the_queue_gives(pool, complaint, tmp_path: Path):
    with socket.socket() as bound:  # bound, but nobody listens: a server that is away
        bound.bind(("127.0.0.1", 0))
        (tmp_path / "token").write_text("abc")
        access = BalsamAccess(
            api=f"http://127.0.0.1:{bound.getsockname()[1]}", site="here", token_file=tmp_path / "token", timeout_s=2
        )
        found = findings(CheckPlan("p", "polaris", access, PoolLimits.model_validate(pool)))
    assert found["Balsam server and token"].ok is False
    assert "does not answer" in found["Balsam server and token"].detail
    assert "agent of the site" not in found
    limits = found["limits of the pool"]
    assert limits.ok is (complaint is None), limits
    assert complaint is None or complaint in limits.detail


def test_a_broken_folder_is_reported(tmp_path: Path):
    folder = tmp_path / "site"
    shutil.copytree(sites_root() / "slurm", folder)
    (folder / "job-template.sh").unlink()
    assert findings(CheckPlan("x", str(folder)))["site folder"].detail == "job-template.sh is missing"
