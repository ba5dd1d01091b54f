"""`hpn-rank`: what it refuses, and what it starts. The program it starts is a script that shows what it was given."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from happyneurons.hpc.init import balsam_root

RANK = balsam_root() / "hpn-rank"
SHOW = """#!/bin/bash
printf "%s\\n" "$@"
env | grep -E "^(OMP_NUM_THREADS|TMPDIR|PYTHONPATH|CUDA_VISIBLE_DEVICES)="
exit 7
"""
GOOD = ("montage", "file:///data/store/jobs/0123abcd", "4", "0", "normal")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    show = tmp_path / "show"
    show.write_text(SHOW)
    show.chmod(0o755)
    (tmp_path / "montage.sif").touch()
    (tmp_path / "environment.sh").write_text(f"export HPN_STORES='file:///data s3://lab/neurons' HPN_PYTHON={show}\n")
    return tmp_path


@pytest.fixture
def rank(site: Path) -> Run:
    """Run hpn-rank with its arguments; keywords are its environment."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(RANK), *arguments], capture_output=True, text=True, cwd=site,
            env={"PATH": "/usr/bin:/bin", "BALSAM_SITE_PATH": str(site), **environment},
        )  # fmt: skip

    return run


def test_it_becomes_the_stage_and_ends_with_its_code(rank: Run) -> None:
    done = rank(*GOOD)
    lines = done.stdout.splitlines()
    assert done.returncode == 7
    assert lines[:7] == ["-m", "mpi4py", "-m", "happyneurons.worker.main", "run", GOOD[1], "--threads"]
    assert lines[7] == "4"
    assert "OMP_NUM_THREADS=4" in lines
    assert "--walltime-s" not in lines


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, "Montage"), (0, "montage;id"), (0, ""), (0, "../montage"), (0, "m" * 64),
        (1, "file:///data/store/jobs/0123 --takeover"), (1, "file:///data/../etc/jobs/0123"),
        (1, "file:///elsewhere/jobs/0123"), (1, "file:///database/jobs/0123"), (1, "file:///data/store"),
        (1, "file:///data/jobs/$(id)"), (1, "file:///data/jobs/a\nb"), (1, "s3://lab/neurons2/jobs/0123"),
        (2, "0"), (2, "1025"), (2, "4 --takeover"), (2, "-1"), (2, ""),
        (3, "1.5"), (3, "-1"), (3, "a[$(id)]"), (3, ""),
        (4, "takeover retry-quarantined"), (4, "--takeover"), (4, ""),
    ],
)  # fmt: skip
def test_it_refuses_a_wrong_parameter_in_one_line(rank: Run, position: int, value: str) -> None:
    arguments = list(GOOD)
    arguments[position] = value
    done = rank(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("hpn-rank: ")


def test_it_refuses_more_or_fewer_parameters(rank: Run) -> None:
    assert rank(*GOOD, "more").returncode == 2
    assert rank(*GOOD[:4]).returncode == 2


def test_without_stores_it_refuses_every_job(rank: Run, site: Path) -> None:
    (site / "environment.sh").write_text(f"export HPN_PYTHON={site}/show\n")
    done = rank(*GOOD, HPN_STORES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none" in done.stderr


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("normal", []),
        ("takeover", ["--takeover"]),
        ("retry-quarantined", ["--retry-quarantined"]),
        ("takeover+retry-quarantined", ["--takeover", "--retry-quarantined"]),
    ],
)
def test_modes_are_options_of_the_stage(rank: Run, mode: str, options: list[str]) -> None:
    given = rank(*GOOD[:4], mode).stdout.splitlines()
    assert [line for line in given if line in ("--takeover", "--retry-quarantined")] == options


@pytest.mark.parametrize(("own", "batch", "least", "most"), [("900", None, 900, 900), ("900", 100, 1, 100),
                                                            ("50", 100, 50, 50), ("0", 100, 1, 100), ("0", -5, 1, 1),
                                                            ("0900", None, 900, 900)])  # fmt: skip
def test_the_walltime_is_what_ends_first(rank: Run, own: str, batch: int | None, least: int, most: int) -> None:
    environment = {} if batch is None else {"HPN_BATCH_END": str(int(time.time()) + batch)}
    lines = rank(*GOOD[:3], own, "normal", **environment).stdout.splitlines()
    assert least <= int(lines[lines.index("--walltime-s") + 1]) <= most


def test_ranks_get_node_local_scratch_their_gpu_and_not_the_launchers_modules(rank: Run, site: Path) -> None:
    text = (site / "environment.sh").read_text()
    (site / "environment.sh").write_text(text + 'export HPN_NODE_GPUS=4 HPN_SCRATCH="$PWD/scratch/$MPI_LOCALRANKID"\n')
    lines = rank(*GOOD, MPI_LOCALRANKID="2", PYTHONPATH="/launcher").stdout.splitlines()
    assert f"TMPDIR={site}/scratch/2" in lines
    assert (site / "scratch" / "2").is_dir()
    assert "CUDA_VISIBLE_DEVICES=2" in lines
    assert not [line for line in lines if line.startswith("PYTHONPATH")]
    lines = rank(*GOOD, MPI_LOCALRANKID="1", CUDA_VISIBLE_DEVICES="5,7").stdout.splitlines()
    assert "CUDA_VISIBLE_DEVICES=7" in lines


def test_in_a_container_it_binds_stores_and_what_the_site_says(rank: Run, site: Path) -> None:
    (site / "environment.sh").write_text(
        f"export HPN_STORES='file:///data s3://lab/neurons' HPN_IMAGES={site} HPN_CONTAINER={site}/show\n"
        "export HPN_BINDS='/opt /var/run/palsd' HPN_HOST_MPI=/mpi/a:/mpi/b\n"
    )
    given = rank(*GOOD).stdout.splitlines()
    binds = [given[i + 1] for i, word in enumerate(given) if word == "--bind"]
    assert given[0] == "exec"
    assert binds == ["/opt", "/var/run/palsd", "/mpi/a", "/mpi/b", "/data"]
    start = given.index(str(site / "montage.sif"))
    assert given[start - 2 : start] == ["--env", "HPN_STAGES=montage"]
    assert given[start + 1 : start + 6] == ["hpn-stage", "run", GOOD[1], "--threads", "4"]
    missing = rank("align", *GOOD[1:])
    assert missing.returncode == 2
    assert "align.sif" in missing.stderr
