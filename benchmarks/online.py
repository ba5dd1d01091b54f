"""Does processing keep up with a microscope? Sections at a steady pace, an open run on Balsam and Slurm.

The experiment of the HAPPYNeurons paper (section "Results": one section of two 10833×14000 tiles every 20 s, a
montage job for each), scaled to one small machine: smaller tiles, a faster pace. Everything else is real: a simulated
microscope writes tiles, `hpn acquire watch` checks and reports them, an orchestrator makes jobs of them, the elastic
pool asks a Slurm of several nodes (all of them this machine) for batch jobs through a Balsam server.

    scripts/hpc-install && python benchmarks/online.py [--sections 60] [--pace-s 3] [--batch 5] [--output online]

Writes OUTPUT/online.json (samples and figures) and OUTPUT/online.png (lag, sections and nodes over time); prints the
lag (age of the oldest section still in work), and how many nodes there were at most and at the end.
"""

# ruff: noqa: E402 (this tree has to be found first)
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml
from integration_tests.hpc.rig import Rig, start_rig
from tests.worker.waiting import wait_for

from happyneurons.client import Client
from happyneurons.client.runs import Run

HPN = [sys.executable, "-m", "happyneurons.cli.main"]
LIMIT_S = 900.0


def make_image(folder: Path, size_xyz: tuple[int, int, int]) -> str:
    """A phantom to be photographed; its URI."""
    from happyneurons.acquisition.phantom import make_phantom, write_phantom

    write_phantom(make_phantom(size_xyz[::-1], seed=11), folder.as_uri())
    return (folder / "image").as_uri()


def write_sites(rig: Rig, path: Path, nodes: int) -> Path:
    """The sites file: the rig's site with a pool of up to `nodes` batch jobs of one node."""
    pool = {"max_nodes": nodes, "nodes_per_batch": 1, "max_batch_jobs": nodes, "walltime_min": 60, "idle_s": 15}
    access = {"api": rig.api, "site": rig.site_name, "token_file": str(rig.token_file), "poll_s": 1}
    site = {"executor": "balsam", "folder": str(rig.site_folder), "balsam": access, "pool": pool}
    path.write_text(yaml.safe_dump({"hpc": site}))
    return path


def sample(run: Run, rig: Rig, began: float) -> dict[str, Any]:
    """What there is now."""
    acquisition = run.refresh().proto.acquisition
    queue = rig.slurm_queue()
    states = [job.proto_state for job in map(JobView, run.proto.jobs)]
    return {
        "s": round(time.monotonic() - began, 1),
        "reported": acquisition.sections_reported,
        "done": acquisition.sections_done,
        "lag_s": round(acquisition.lag.ToMilliseconds() / 1000, 1),
        "jobs_queued": states.count("queued"),
        "jobs_running": states.count("running"),
        "nodes_running": sum(int(job["nodes"]) for job in queue if job["state"] == "RUNNING"),
        "nodes_waiting": sum(int(job["nodes"]) for job in queue if job["state"] == "PENDING"),
    }


class JobView:
    """A job's state as a short name."""

    def __init__(self, job: Any) -> None:
        from happyneurons.client.plain import short

        self.proto_state = short(job.job, "state")


def draw(samples: list[dict[str, Any]], title: str, path: Path) -> None:
    """Lag, sections and nodes over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, middle, bottom) = plt.subplots(3, 1, sharex=True, figsize=(8, 8))
    t = [s["s"] for s in samples]
    top.plot(t, [s["lag_s"] for s in samples], color="tab:red")
    top.set_ylabel("lag behind the\nmicroscope (s)")
    middle.step(t, [s["reported"] for s in samples], where="post", label="reported")
    middle.step(t, [s["done"] for s in samples], where="post", label="montaged")
    middle.step(t, [s["jobs_queued"] + s["jobs_running"] for s in samples], where="post", label="jobs queued + running")
    middle.set_ylabel("sections, jobs")
    middle.legend(frameon=False)
    bottom.stackplot(
        t, [s["nodes_running"] for s in samples], [s["nodes_waiting"] for s in samples], step="post",
        labels=["running", "waiting at Slurm"],
    )  # fmt: skip
    bottom.set_ylabel("nodes of the pool")
    bottom.set_xlabel("s since the first section")
    bottom.legend(frameon=False)
    for axes in (top, middle, bottom):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def experiment(rig: Rig, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The run, sampled once a second until the pool is empty again."""
    store = rig.stores / "online"
    image = make_image(folder / "phantom", options.size)
    sites, port_file = write_sites(rig, folder / "sites.yaml", options.nodes), folder / "port"
    started = [
        subprocess.Popen([
            *HPN, "serve", "orchestrator", "--store", str(store), "--sites", str(sites), "--address", "127.0.0.1:0",
            "--port-file", str(port_file),
        ], stdout=subprocess.DEVNULL)
    ]  # fmt: skip
    try:
        wait_for(port_file.exists, "the orchestrator", 60)
        address = port_file.read_text().strip()
        with Client(address) as client:
            pipeline = ROOT / "examples" / "online.yaml"
            run = client.submit(pipeline, {"sections_per_batch": options.batch, "wait_s": 10 * options.pace_s})
            tiles = rig.stores / "microscope"
            watch = [*HPN, "acquire", "watch", str(tiles), "--run", run.id, "--orchestrator", address]
            microscope = [*HPN, "acquire", "simulate", image, str(tiles), "--pace-s", str(options.pace_s)]
            microscope += ["--sections", f"0:{options.sections}"]
            started.append(subprocess.Popen(microscope, stdout=subprocess.DEVNULL))
            wait_for((tiles / "acquisition.json").exists, "the first section", 120)
            began = time.monotonic()
            started.append(subprocess.Popen([*watch, "--until-complete"], stdout=subprocess.DEVNULL))
            samples: list[dict[str, Any]] = []
            while not (run.final and samples[-1]["nodes_running"] + samples[-1]["nodes_waiting"] == 0):
                samples.append(sample(run, rig, began))
                if samples[-1]["s"] > LIMIT_S:
                    raise SystemExit(f"not over after {LIMIT_S} s: {run.message}\n{rig.logs()}")
                time.sleep(1.0)
            if run.state != "succeeded":
                raise SystemExit(f"run {run.id} {run.state}: {run.message}\n{rig.logs()}")
    finally:
        for process in started:
            process.terminate()
            process.wait(60)
    last_report = next(s["s"] for s in samples if s["reported"] == options.sections)
    steady = [s["lag_s"] for s in samples if last_report / 3 <= s["s"] <= last_report]
    half = len(steady) // 2
    return {
        "sections": options.sections,
        "pace_s": options.pace_s,
        "acquired_in_s": last_report,
        "finished_after_s": next(s["s"] for s in samples if s["done"] == options.sections),
        "lag_s": {"median": sorted(steady)[half], "max": max(s["lag_s"] for s in samples)},
        # Bounded means that it does not grow: the second half of the steady time against the first.
        "lag_growth_s": round(sum(steady[half:]) / max(1, len(steady) - half) - sum(steady[:half]) / max(1, half), 1),
        "nodes": {"max": max(s["nodes_running"] for s in samples), "end": samples[-1]["nodes_running"]},
        "jobs": len(run.jobs),
        "retries": sum(job.infrastructure_retries for job in run.jobs.values()),
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sections", type=int, default=60)
    parser.add_argument("--pace-s", type=float, default=3.0, help="seconds from one section to the next")
    parser.add_argument("--batch", type=int, default=5, help="sections of a job")
    parser.add_argument("--nodes", type=int, default=4, help="nodes of the Slurm, and of the pool at most")
    parser.add_argument("--size", type=int, nargs=2, default=(720, 400), metavar=("X", "Y"), help="px of a section")
    parser.add_argument("--output", type=Path, default=Path("online"))
    options = parser.parse_args()
    options.size = (*options.size, options.sections)
    options.output.mkdir(parents=True, exist_ok=True)
    rig = start_rig(nodes=options.nodes)
    try:
        result = experiment(rig, options.output.resolve(), options)
    finally:
        rig.end()
    (options.output / "online.json").write_text(json.dumps(result, indent=1))
    title = f"{options.sections} sections, one each {options.pace_s:g} s, {options.batch} a job"
    draw(result["samples"], title, options.output / "online.png")
    print(json.dumps({k: v for k, v in result.items() if k != "samples"}, indent=1))


if __name__ == "__main__":
    main()
