"""The real servers, and a load that has something of everything: for Prometheus to look at.

An orchestrator and a stage server in processes of their own, on one store, and a Balsam site whose server is the
tests' stand-in (a real one is in integration_tests/hpc). Nothing of the load depends on how long anything takes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.conftest import PLUGIN
from tests.executors.balsam_standin import StandIn
from tests.worker.waiting import wait_for

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.client import Client
from happyneurons.client.runs import Run
from happyneurons.errors import NotFoundError
from happyneurons.v1 import acquisition_pb2

STANDINS = Path(__file__).resolve().parent / "standins"

PICTURES = """
name: pictures
parameters: {acquisition: , labels: }
jobs:
  ingest: {params: {source: "${acquisition}"}}
  montage: {inputs: {tiles: ingest.tiles}}
  align: {inputs: {stack: montage.stack}}
  score:
    stage: evaluate
    inputs: {montage: montage.stack, aligned: align.stack}
    params: {acquisition: "${acquisition}"}
  labels: {stage: evaluate, inputs: {segmentation: "${labels}", truth: "${labels}"}}
  train: {stage: ffn-train, needs: [montage]}
"""
FAULTS = """
name: faults
jobs:
  poison: {stage: sandbox, params: {tasks: 6, control: "CONTROL", behaviour: {"2": fail}}}
  lost: {stage: sandbox, params: {tasks: 4, control: "CONTROL", behaviour: {"1": die-once}}, resources: {ranks: 2}}
  wrong: {stage: sandbox, params: {tasks: 2, control: "CONTROL", behaviour: {"0": user}}}
  served: {stage: sandbox, site: box, params: {tasks: 5, control: "CONTROL"}}
"""
LONG = """
name: long
jobs:
  long: {stage: sandbox, params: {tasks: 7, control: "CONTROL", behaviour: {"5": block}}}
  after: {stage: sandbox, params: {tasks: 3, control: "CONTROL"}, needs: [long]}
  far: {stage: sandbox, site: hpc, params: {tasks: 8, control: "CONTROL"}}
"""
GATED = """
name: gated
jobs:
  first: {stage: sandbox, params: {tasks: 9, control: "CONTROL"}}
  second: {stage: sandbox, params: {tasks: 10, control: "CONTROL"}, needs: [look, check]}
gates:
  check: {after: [first], condition: first.sum > 0}
  look: {after: [first], ask: "Good?"}
"""
OPEN = """
name: open
acquisition: {batch: 2, wait_s: 3600}
jobs:
  look: {stage: gather, each: batch, params: {source: "${batch}"}}
  all: {stage: gather, inputs: {tables: look.table}}
"""


class Stack:
    """The servers. `environment`: of their processes; `metrics`: addresses for Prometheus."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.control = folder, folder / "control"
        self.control.mkdir(parents=True)
        self.store = folder / "store"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        paths = [PLUGIN, str(STANDINS), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        self.addresses: dict[str, str] = {}
        self.metrics: dict[str, str] = {}

    def serve(self, name: str, *options: str) -> None:
        """Start `hpn serve NAME`; returns once it serves."""
        log, port = self.folder / f"{name}.log", self.folder / f"{name}.port"
        command = [sys.executable, "-m", "happyneurons.cli.main", "serve", name, "--store", str(self.store)]
        command += ["--address", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--port-file", str(port), *options]
        with log.open("wb") as sink:
            self._processes[name] = subprocess.Popen(command, env=self.environment, stdout=sink, stderr=sink)
        wait_for(lambda: port.exists() or self._processes[name].poll() is not None, name)
        said = wait_for(lambda: "/metrics" in (text := log.read_text()) and text, f"{name}: {log.read_text()}")
        self.addresses[name] = port.read_text().strip()
        self.metrics[name] = str(said).split("http://")[1].split("/metrics")[0]

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def close(self) -> None:
        (self.control / "release").touch()
        for name in list(self._processes):
            self.kill(name)

    def text(self, pipeline: str) -> str:
        return pipeline.replace("CONTROL", str(self.control))


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Stack]:
    """Orchestrator and stage server."""
    balsam, stack = StandIn(), Stack(folder)
    stack.environment["BALSAM_TOKEN"] = balsam.token
    sites: Mapping[str, Any] = {
        "local": {"executor": "local", "cores": 4, "cost": {"per_core_hour": 0.05, "budget": 2000}},
        "hpc": {
            "executor": "balsam", "folder": "slurm", "balsam": {"api": balsam.url, "site": "box", "poll_s": 0.5},
            "pool": {"max_nodes": 2}, "cost": {"per_node_hour": 1, "currency": "node_hours", "budget": 500},
        },
    }  # fmt: skip
    try:
        stack.serve("stage", "--cores", "2", "--memory-gb", "4")
        box = {"executor": "service", "address": stack.addresses["stage"]}
        file = folder / "sites.yaml"
        file.write_text(yaml.safe_dump({**sites, "box": box}))
        stack.serve("orchestrator", "--sites", str(file), "--default-site", "local")
        yield stack
    finally:
        stack.close()
        balsam.close()


def load(stack: Stack, client: Client) -> list[Run]:
    """Runs of all sorts, and wrong requests. Returns those that go on until `control/release` is there."""
    image, labels = write_phantom(make_phantom((8, 128, 192), seed=3), (stack.folder / "phantom").as_uri())
    acquisition = stack.folder / "acquisition"
    simulate_acquisition(image, acquisition, labels_uri=labels, tiles=(2, 1), seed=3)
    pictures = client.submit(PICTURES, parameters={"acquisition": str(acquisition), "labels": labels})
    faults, long = client.submit(stack.text(FAULTS)), client.submit(stack.text(LONG))
    gated, microscope = client.submit(stack.text(GATED)), client.submit(OPEN)
    microscope.report_sections([section(z) for z in (0, 1, 4)])
    with contextlib.suppress(NotFoundError):
        client.run("nothing")
    wait_for(lambda: gated.refresh().state == "waiting", "the gate")
    wait_for(lambda: microscope.refresh().proto.acquisition.sections_done == 2, "the batch")
    for run, wanted in ((faults, "failed"), (pictures, "succeeded")):
        wait_for(lambda run=run: run.refresh().state in ("failed", "succeeded"), run.proto.name, limit_s=180)
        assert run.state == wanted, run.message
    return [long, gated, microscope]


def section(z: int) -> acquisition_pb2.Section:
    tile = acquisition_pb2.Tile(uri=f"file:///scope/{z}.tif", width_px=110, height_px=90)
    return acquisition_pb2.Section(z=z, pixel_size_nm=8, thickness_nm=40, tiles=[tile])
