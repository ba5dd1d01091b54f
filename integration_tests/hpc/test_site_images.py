"""`hpn site check` on a real SIF file: its own MPI, and the host's bound in over the MPICH ABI."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from integration_tests.hpc.images import Images, apptainer

from happyneurons.hpc.check import CheckPlan, Finding, check_site

ROOT = Path(__file__).resolve().parents[2]
HOST_MPI = Path(sys.prefix) / "lib"  # this environment's MPICH, a whole one


@pytest.fixture(scope="module")
def sif(images: Images) -> Path:
    return images.sif("montage")


@pytest.fixture(autouse=True)
def container_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPN_CONTAINER", apptainer())
    monkeypatch.delenv("HPN_HOST_MPI", raising=False)


def findings(image: Path, store: str = "") -> dict[str, Finding]:
    plan = CheckPlan("slurm", "slurm", image=str(image), here=True, store=store)
    return {finding.what: finding for finding in check_site(plan)}


def test_two_ranks_in_the_image_find_one_another_and_the_store(sif: Path, tmp_path: Path):
    found = findings(sif, str(tmp_path / "store"))
    assert found["stages"].ok, found
    assert "montage" in found["stages"].detail
    assert found["two ranks"].ok, found
    assert str(HOST_MPI) not in found["two ranks"].detail
    assert "host MPI" not in found


def test_the_hosts_mpi_takes_the_place_of_the_images(sif: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HPN_HOST_MPI", str(HOST_MPI))
    found = findings(sif)
    assert found["host MPI"].ok, found
    assert found["two ranks"].ok, found
    assert f"{HOST_MPI}/libmpi.so.12" in found["two ranks"].detail


def test_half_a_host_mpi_is_said(sif: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The library without what it needs: what a bind that was forgotten looks like."""
    shutil.copy((HOST_MPI / "libmpi.so.12").resolve(), tmp_path / "libmpi.so.12")
    monkeypatch.setenv("HPN_HOST_MPI", str(tmp_path))
    found = findings(sif)
    assert found["host MPI"].ok
    assert found["two ranks"].ok is False
    assert "cannot open shared object file" in found["two ranks"].detail
