"""What a job costs besides its work: through Balsam directly, through our executor on it, and on this machine.

All in one run, the same jobs (one task that squares a number), taken in turn so that a busy machine
meets each alike:

local   our local executor, against starting the same processes by hand
balsam  our Balsam executor (real Balsam server, PostgreSQL, Slurm of one node), against the same jobs given to
        Balsam by its REST API in one call, with a batch job that runs already in both cases

    scripts/hpc-install && python benchmarks/jobs.py [--jobs 12] [--rounds 3] [--only local]

Prints seconds per job, jobs per second and the ratio to the peer with its spread over the rounds.
"""

# ruff: noqa: E402 (the sandbox stage has to be found before stages are looked up)
from __future__ import annotations

import argparse
import base64
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = str(ROOT / "tests" / "worker" / "plugin")
sys.path[:0] = [str(ROOT), PLUGIN]
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (PLUGIN, os.environ.get("PYTHONPATH")) if p)
os.environ.setdefault("OMP_NUM_THREADS", "1")

from happyneurons.executors.base import Executor, ProcessState, Submission
from happyneurons.executors.local import LocalExecutor
from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import load_manifest
from happyneurons.store.documents import Store
from happyneurons.worker.launch import Launch, stage_command, stage_environment

LIMIT_S = 300.0
CORES = os.cpu_count() or 1
serial = 0


def new_jobs(store: Store, count: int) -> list[str]:
    """Keys of jobs that nobody did yet."""
    global serial
    keys = []
    for _ in range(count):
        serial += 1
        spec = make_spec(load_stage("sandbox"), inputs={}, params={"tasks": 1, "behaviour": {"never": str(serial)}})
        save_spec(store, spec)
        keys.append(spec.key)
    return keys


def finished(store: Store, keys: Sequence[str]) -> None:
    missing = [key for key in keys if load_manifest(store, key) is None]
    if missing:
        raise SystemExit(f"{len(missing)} of {len(keys)} jobs gave no result")


def by_executor(executor: Executor, store: Store, keys: Sequence[str]) -> None:
    """Submit all, then poll until all have exited: what the orchestrator does."""
    handles = [
        executor.submit(Submission(job_uri(store, key), "sandbox", Resources(), token=f"bench/{key}")) for key in keys
    ]
    deadline = time.monotonic() + LIMIT_S
    while any(r.state is not ProcessState.EXITED for r in executor.poll(handles).values()):
        if time.monotonic() > deadline:
            raise SystemExit("; ".join(executor.explain(h) for h in handles[:3]))
        time.sleep(0.05)


def by_hand(store: Store, keys: Sequence[str]) -> None:
    """The same processes, as many at a time as there are cores."""
    running: list[subprocess.Popen[bytes]] = []
    for key in keys:
        launch = Launch(job_uri(store, key), Resources())
        running.append(
            subprocess.Popen(stage_command(launch), env=stage_environment(launch.resources), stderr=subprocess.DEVNULL)
        )
        while sum(p.poll() is None for p in running) >= CORES:
            time.sleep(0.01)
    for process in running:
        process.wait()


def report(name: str, peer: str, jobs: int, ours: Sequence[float], theirs: Sequence[float]) -> None:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    best, other = min(ours), min(theirs)
    print(
        f"{name:7} {jobs} jobs: {best / jobs:.2f} s a job, {jobs / best:.2f} jobs/s; {peer}: {other / jobs:.2f} s, "
        f"{jobs / other:.2f} jobs/s; ratio of times {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    )


def timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def local(jobs: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, ours, theirs = Store(folder), [], []
        executor = LocalExecutor(CORES)
        for _ in range(rounds):
            keys = new_jobs(store, jobs)
            theirs.append(timed(lambda keys=keys: by_hand(store, keys)))
            finished(store, keys)
            keys = new_jobs(store, jobs)
            ours.append(timed(lambda keys=keys: by_executor(executor, store, keys)))
            finished(store, keys)
    report("local", "processes by hand", jobs, ours, theirs)


def balsam(jobs: int, rounds: int) -> None:
    from integration_tests.hpc.rig import Rig, start_rig

    from happyneurons.executors.balsam.config import BalsamAccess, PoolLimits
    from happyneurons.executors.balsam.executor import BalsamExecutor
    from happyneurons.hpc.folders import load_site_folder

    def directly(rig: Rig, store: Store, keys: Sequence[str]) -> None:
        """One bulk call, then ask for the states of all, four times a second."""
        app, jobs = rig.app_id(), []
        for key in keys:
            text = {
                "stage": "sandbox", "job_uri": job_uri(store, key), "threads": "1", "walltime_s": "0", "mode": "normal"
            }  # fmt: skip
            jobs.append({
                "app_id": app, "workdir": f"direct/{key}", "tags": {"hpn_pool": rig.site_name, "direct": keys[0]},
                "serialized_parameters": base64.b64encode(pickle.dumps(text)).decode(), "parameters": {},
                "num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1, "node_packing_count": CORES,
            })  # fmt: skip
        rig.call("POST", "/jobs/", jobs)
        deadline = time.monotonic() + LIMIT_S
        while len(rig.call("GET", "/jobs/", tags=f"direct:{keys[0]}", state="JOB_FINISHED")["results"]) < len(keys):
            if time.monotonic() > deadline:
                raise SystemExit(rig.logs())
            time.sleep(0.25)

    rig = start_rig(nodes=1, cores=CORES)
    try:
        store, ours, theirs = rig.new_store(), [], []
        access = BalsamAccess(api=rig.api, site=rig.site_name, token_file=rig.token_file, poll_s=0.5)
        executor = BalsamExecutor(rig.site_name, load_site_folder(str(rig.site_folder)), access, PoolLimits())
        rig.request_nodes(walltime_min=60)
        by_executor(executor, store, new_jobs(store, 1))  # so that the batch job runs
        for _ in range(rounds):
            keys = new_jobs(store, jobs)
            theirs.append(timed(lambda keys=keys: directly(rig, store, keys)))
            finished(store, keys)
            keys = new_jobs(store, jobs)
            ours.append(timed(lambda keys=keys: by_executor(executor, store, keys)))
            finished(store, keys)
        executor.close()
    finally:
        rig.end()
    report("balsam", "Balsam directly", jobs, ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=12, help="jobs a round [12]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds [3]")
    parser.add_argument("--only", choices=["local", "balsam"])
    options = parser.parse_args()
    if options.only != "balsam":
        local(options.jobs, options.rounds)
    if options.only != "local":
        balsam(options.jobs, options.rounds)


if __name__ == "__main__":
    main()
