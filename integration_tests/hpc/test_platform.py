"""hpn_platform in Balsam's own environment: the parts for PBS, which cannot be installed here, and the fitting rule."""

from __future__ import annotations

import subprocess
from pathlib import Path

from integration_tests.hpc.daemons import BALSAM_ENVIRONMENT

from happyneurons.hpc.init import balsam_root


def python(script: str, folder: Path, **environment: str) -> list[str]:
    """Lines that a script prints in Balsam's environment."""
    done = subprocess.run(
        [BALSAM_ENVIRONMENT / "bin" / "python", "-c", f"from hpn_platform import *\n{script}"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(balsam_root() / "platform"), **environment},
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pbs_nodes_come_from_the_node_file_once_each(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("x1\nx1\nx2\n")
    script = "print([n.hostname for n in PbsNode.get_job_nodelist()], PbsNode.get_scheduler_id())"
    out = python(script, tmp_path, PBS_NODEFILE=str(tmp_path / "nodes"), PBS_JOBID="1234567.polaris-pbs-01")
    assert out == ["['x1', 'x2'] 1234567"]


def test_batch_jobs_name_a_project_only_where_there_is_one(tmp_path: Path) -> None:
    script = "for p in ('none', 'connectome'): print(*{0}._render_submit_args('q.sh', p, 'prod', 2, 90))"
    without, with_project = python(script.format("PbsScheduler"), tmp_path)
    assert "-A" not in without.split()
    assert "-A connectome" in with_project
    assert "select=2" in without
    assert "walltime=1:30:00" in without
    without, with_project = python(script.format("SlurmScheduler"), tmp_path)
    assert "-A" not in without.split()
    assert "-A connectome" in with_project
    assert "-p prod" in without


def test_the_coordinating_process_needs_no_core_and_no_gpu_of_its_own(tmp_path: Path) -> None:
    script = """
node = SlurmNode("n1", "n1")
print(node.check_fit(5, 5, 1.0))
node.assign(1, 5, 5, 0.5)
print(node.idle_gpus, node.check_fit(1, 1, 0.5), node.check_fit(1, 0, 0.5), node.check_fit(1, 0, 0.6))
node.free(1)
print(node.idle_gpus)
"""
    out = python(script, tmp_path, HPN_NODE_CORES="4", HPN_NODE_GPUS="4")
    assert out == ["True", "[] False True False", "[0, 1, 2, 3]"]
