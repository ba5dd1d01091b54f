"""`hpn-stage selftest` under the real mpiexec, and on stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from happyneurons import __version__
from happyneurons.store.documents import Store
from happyneurons.worker.launch import mpiexec
from happyneurons.worker.selftest import store_problems

SELFTEST = [sys.executable, "-m", "mpi4py", "-m", "happyneurons.worker.main", "selftest"]


def test_two_ranks_say_what_they_find(tmp_path: Path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "3"}
    command = [mpiexec(), "-n", "2", *SELFTEST, "--store", str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # one document, from rank 0
    assert said["ranks"] == 2
    assert said["problems"] == []
    assert said["version"] == __version__
    assert [Path(p).name for p in said["libmpi"]] == ["libmpi.so.12"]  # the MPICH ABI
    assert "MPICH" in said["mpi"]
    assert said["scratch"] == str(tmp_path)
    assert said["threads"] == "3"
    assert said["cores"] == [len(os.sched_getaffinity(0))] * 2
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file()], "it leaves nothing behind"


def test_one_process_is_told_from_two_ranks():
    """What a launcher of another MPI makes: processes that do not know one another."""
    done = subprocess.run(SELFTEST, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ranks"] == 1


def test_a_store_that_cannot_be_written_is_said_and_fails(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    done = subprocess.run([*SELFTEST, "--store", str(tmp_path / "file" / "store")], capture_output=True, text=True)
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert "file/store" in problem


def test_missing_scratch_is_said(tmp_path: Path):
    """Python falls back to other folders, so all of them have to be refused."""
    code = (
        "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']\n"
        "from happyneurons.worker.selftest import selftest; print(selftest()['problems'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "rank 0: temporary files cannot be written" in done.stdout, done.stderr


def test_a_good_store_has_no_problems(store: Store):
    assert store_problems(store.uri) == []


def test_a_store_without_put_if_absent_is_found_out(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Stand-in for an S3 server that ignores If-None-Match: creating is writing, for everybody."""

    def create(self: Store, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True

    monkeypatch.setattr(Store, "create", create)
    (problem,) = store_problems(store.uri)
    assert "put-if-absent" in problem
