"""Promises of the images: one stage each, hardened, traceable; ranks started inside and outside; a host's MPI."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from containers.families import family_of
from containers.images import CONTROL, ROOT, revision, version
from integration_tests.hpc.images import Images, apptainer
from packaging.utils import canonicalize_name
from tests.worker.waiting import wait_for

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.client.client import Client
from happyneurons.ffn.backends.winograd import usable_sets
from happyneurons.jobs.spec import Resources, job_uri, make_spec, save_spec
from happyneurons.rpc.client import call, connect
from happyneurons.rpc.convert import job_spec_message
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import load_manifest
from happyneurons.store.documents import Store
from happyneurons.v1 import stage_service_pb2, stage_service_pb2_grpc
from happyneurons.worker.local import run_stage

MPIEXEC = Path(sys.executable).with_name("mpiexec")
HOST_MPI = MPIEXEC.parents[1] / "lib"
# A plug-in stage whose tasks say which MPI library their rank has loaded.
PLUGIN = """
from happyneurons.jobs.stage import Output, OutputSpec, Round, Stage, StageParams, StageResult, Task, TaskResult

class Look(Round):
    name = "look"

    def plan(self, context):
        for number in range(8):
            yield Task(str(number))

    def run(self, task, context):
        from mpi4py import MPI
        ranks, mapped = MPI.COMM_WORLD.size, open("/proc/self/maps").read().split()
        found = sorted({word for word in mapped if "/libmpi.so" in word})
        return TaskResult({"ranks": ranks, "rank": MPI.COMM_WORLD.rank, "libraries": found, "ballast": "x" * 4_000_000})

class Loaded(Stage):
    name, version, summary = "loaded", "1", "Says which MPI its ranks have loaded (for tests)"
    Params, inputs = StageParams, {}
    outputs = {"table": OutputSpec("table", "what was found")}

    def rounds(self, context):
        return [Look()]

    def finish(self, context):
        found = [data for _, data in context.results("look")]
        rows = [[d["rank"], d["ranks"], d["libraries"]] for d in found]
        context.output_store("table").put_json("table.json", {"columns": ["rank", "ranks", "libraries"], "rows": rows})
        return StageResult({"table": Output("table")}, {})
"""


@pytest.fixture(scope="module")
def ingest_image(images: Images) -> str:
    images.build("ingest", "montage", "segment", "mesh", CONTROL)  # in one go: they are to share layers
    return images.image("ingest")


@pytest.fixture(scope="module")
def sif(images: Images) -> Path:
    return images.sif("ingest")


@pytest.fixture(scope="module")
def acquisition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny acquisition that every user may read."""
    folder = tmp_path_factory.mktemp("acquisition")
    image, labels = write_phantom(make_phantom((8, 128, 128), seed=3), (folder / "phantom").as_uri())
    simulate_acquisition(image, folder / "tiles", labels_uri=labels, tiles=(2, 1), seed=3)
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    return folder / "tiles"


@pytest.fixture
def open_store(store: Store, tmp_path: Path) -> Store:
    """A store that every user may write to."""
    folder = Path(store.uri.removeprefix("file://"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    tmp_path.chmod(0o755)
    return store


def ingest_job(store: Store, acquisition: Path) -> str:
    spec = make_spec(load_stage("ingest"), inputs={}, params={"source": str(acquisition)})
    save_spec(store, spec)
    return spec.key


def described(output: str) -> list[str]:
    return [stage["name"] for stage in json.loads(output)]


def expected_tiles(acquisition: Path, folder: Path) -> str:
    """Digest of the same job's output, done in this process."""
    return run_stage(Store(str(folder)), "ingest", params={"source": str(acquisition)}).outputs["tiles"].digest


def test_an_image_describes_its_stage_and_no_other(images: Images, ingest_image: str) -> None:
    done = images.run(ingest_image, "describe")
    assert done.returncode == 0, done.stderr
    assert described(done.stdout) == ["ingest"]
    assert "no stage named 'montage'; there are ingest" in images.run(ingest_image, "describe", "montage").stderr


@pytest.mark.parametrize("stage", ["ingest", "montage"])
def test_each_image_of_a_family_offers_its_own_stage(images: Images, ingest_image: str, stage: str) -> None:
    """Not the one that was built first: podman's cache took one for the other."""
    image = images.image(stage)
    assert described(images.run(image, "describe").stdout) == [stage]
    labels = images.inspect(image)["Config"]["Labels"]
    assert (labels["happyneurons.stages"], labels["org.opencontainers.image.title"]) == (stage, f"HAPPYNeurons {stage}")


def test_an_image_that_is_built_again_is_the_same(images: Images, ingest_image: str) -> None:
    before = images.engine.image_id(ingest_image)
    images.build("ingest")
    assert images.engine.image_id(ingest_image) == before


def test_labels_name_version_and_commit(images: Images, ingest_image: str) -> None:
    config = images.inspect(ingest_image)["Config"]
    labels = {k.rpartition(".")[2]: v for k, v in config["Labels"].items() if k.startswith("org.opencontainers.image.")}
    assert labels["title"] == "HAPPYNeurons ingest"
    assert (labels["version"], labels["revision"], labels["licenses"]) == (version(), revision(), "Apache-2.0")
    assert config["User"] == "1000:1000"


def test_images_of_a_family_share_all_layers(images: Images, ingest_image: str) -> None:
    layers = images.inspect(ingest_image)["RootFS"]["Layers"]
    assert images.inspect(images.image("montage"))["RootFS"]["Layers"] == layers
    mesh = images.inspect(images.image("mesh"))["RootFS"]["Layers"]
    assert mesh[:3] == layers[:3]  # the system, its user, the packages of the imaging family
    assert mesh != layers


def test_nothing_of_the_building_machine_stays(images: Images, ingest_image: str) -> None:
    """Not its pip settings, its certificates, its packagers."""
    done = images.run("--entrypoint=sh", ingest_image, "-c", "ls -d /etc/pip.conf /run/secrets /build /root/.cache")
    assert done.stdout == ""
    assert done.stderr.count("No such file") + done.stderr.count("Permission denied") == 4


@pytest.mark.parametrize(
    ("stage", "module"), [("segment", "tensorflow"), ("mesh", "igneous.task_creation")], ids=["tensorflow", "igneous"]
)
def test_libraries_of_a_family_load(images: Images, stage: str, module: str) -> None:
    image = images.image(stage)
    done = images.run(image, "-c", f"import {module}", options=["--entrypoint=/opt/hpn/bin/python"])
    assert done.returncode == 0, done.stderr
    assert described(images.run(image, "describe").stdout) == [stage]


# Distributions that a Python finds; Debian's and the environment's are two.
DISTRIBUTIONS = """
import importlib.metadata, json
print(json.dumps([[d.metadata["Name"], d.version] for d in importlib.metadata.distributions()]))
"""


@pytest.mark.parametrize("stage", ["ingest", "segment", "mesh", CONTROL])
def test_the_bill_of_materials_names_what_is_in_an_image(images: Images, stage: str) -> None:
    image = images.image(stage)
    path = images.inspect(image)["Config"]["Labels"]["happyneurons.sbom"]
    bom = json.loads(images.run(image, path, options=["--entrypoint=/bin/cat"]).stdout)
    family = CONTROL if stage == CONTROL else family_of(stage).name
    assert bom["metadata"]["component"]["name"] == f"happyneurons/{family}"
    listed: dict[str, set[tuple[str, str]]] = {}
    for part in bom["components"]:
        listed.setdefault(part["purl"].split("/")[0], set()).add((part["name"], part["version"]))
    found: set[tuple[str, str]] = set()
    for python in ("/opt/hpn/bin/python", "/usr/local/bin/python3"):
        done = images.run(image, "-c", DISTRIBUTIONS, options=[f"--entrypoint={python}"])
        found |= {(canonicalize_name(name), version) for name, version in json.loads(done.stdout)}
    assert listed["pkg:pypi"] == found
    assert ("happyneurons", version()) in found
    fields = ["-W", "-f", "${Package} ${Version}\\n"]
    packages = images.run(image, *fields, options=["--entrypoint=/usr/bin/dpkg-query"]).stdout.splitlines()
    assert listed["pkg:deb"] == {tuple(line.split()) for line in packages} != set()
    assert {"happyneurons", "numpy", "pip"} <= {part["name"] for part in bom["components"] if "licenses" in part}


def test_kernels_of_networks_are_built_for_the_same_processors_as_here(images: Images, ingest_image: str) -> None:
    """By another compiler: what they compute is compared by the demo, whose bytes are the same in images."""
    code = "from happyneurons.ffn.backends.winograd import usable_sets; print(*usable_sets())"
    done = images.run(images.image("segment"), "-c", code, options=["--entrypoint=/opt/hpn/bin/python"])
    assert done.stdout.split() == list(usable_sets()), done.stderr


@contextlib.contextmanager
def serving(images: Images, name: str, image: str, folder: Path, arguments: Sequence[str]) -> Iterator[str]:
    """A server in a hardened container; its address. It has to end well on SIGTERM."""
    with images.alone():
        yield from _serving(images, name, image, folder, arguments)


def _serving(images: Images, name: str, image: str, folder: Path, arguments: Sequence[str]) -> Iterator[str]:
    shared = folder / name
    shared.mkdir()
    shared.chmod(0o777)
    port_file = shared / "port"
    options = ["--volume", f"{folder}:{folder}", "--volume", f"{folder.parent}:{folder.parent}", "--stop-timeout=20"]
    command = images.command(image, [*arguments, "--address", "127.0.0.1:0", "--port-file", str(port_file)], options)
    with (shared / "log").open("w") as log:
        process = subprocess.Popen(command, env=images.engine.environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: port_file.exists() or process.poll() is not None, f"the server in {image}")
        assert process.poll() is None, (shared / "log").read_text()
        yield port_file.read_text().strip()
        process.terminate()  # the engine passes it on
        assert process.wait(40) == 0, (shared / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_serve_runs_a_job_without_root_and_without_a_writable_system(
    images: Images, ingest_image: str, open_store: Store, acquisition: Path, tmp_path: Path
) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    arguments = ["serve", "--store", open_store.uri, "--cores", "2"]
    with serving(images, "stage", ingest_image, tmp_path, arguments) as address, connect(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = stage_service_pb2_grpc.StageServiceStub(channel)
        spec = job_spec_message("ingest", {}, {"source": str(acquisition)}, Resources(ranks=2), 0)
        job = call(stub.SubmitJob, stage_service_pb2.SubmitJobRequest(spec=spec)).job
        manifest = wait_for(lambda: load_manifest(open_store, job.key), "the job")
    assert manifest.outputs["tiles"].digest == expected_tiles(acquisition, tmp_path / "expected")
    assert manifest.provenance["image"] == {"name": "ingest", "version": version(), "revision": revision()}
    assert manifest.provenance["workers"] == 2


def test_the_control_plane_drives_a_stage_image(
    images: Images, ingest_image: str, open_store: Store, acquisition: Path, tmp_path: Path
) -> None:
    control = images.image(CONTROL)
    stage_arguments = ["serve", "--store", open_store.uri, "--cores", "2"]
    with serving(images, "stage", ingest_image, tmp_path, stage_arguments) as stage:
        sites = tmp_path / "sites.yaml"
        sites.write_text(f'here: {{executor: service, address: "{stage}"}}\n')
        arguments = [
            "serve",
            "orchestrator",
            "--store",
            open_store.uri,
            "--sites",
            str(sites),
            "--default-site",
            "here",
        ]
        with serving(images, "control", control, tmp_path, arguments) as address, Client(address) as client:
            assert {s.name for s in client.sites()} == {"here"}
            yaml = f'jobs: {{ingest: {{params: {{source: "{acquisition}"}}}}}}\n'
            (tmp_path / "pipeline.yaml").write_text(yaml)
            done = subprocess.run(
                [Path(sys.executable).with_name("hpn"), "run", tmp_path / "pipeline.yaml", "--orchestrator", address],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    manifest = load_manifest(open_store, ingest_job(open_store, acquisition))
    assert manifest is not None
    assert manifest.provenance["image"]["name"] == "ingest"
    for command in (["acquire", "watch", "--help"], ["site", "list"]):
        done = images.run(control, *command)
        assert done.returncode == 0, done.stderr
    everything = images.run(control, "stage", "list", "--json")
    assert {"montage", "segment", "mesh"} <= {s["name"] for s in json.loads(everything.stdout)}, everything.stderr


def in_sif(sif: Path, *binds: Path, **environment: str) -> list[str]:
    """Start of a command that runs in a SIF."""
    command = [apptainer(), "exec"]
    for path in binds:
        command += ["--bind", str(path)]
    for name, value in environment.items():
        command += ["--env", f"{name}={value}"]
    return [*command, str(sif)]


def launch(where: str, inside: list[str], *command: str) -> None:
    """Three ranks, one of which coordinates; mpiexec inside the container, or outside of three containers."""
    if where == "inside":
        full = [*inside, "mpiexec", "-n", "3", *command]
    else:
        full = [str(MPIEXEC), "-n", "3", *inside, *command]
    done = subprocess.run(full, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Folder of the plug-in above."""
    folder = tmp_path / "plugin"
    metadata = folder / "hpn_loaded-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "hpn_loaded.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hpn-loaded\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[happyneurons.stages]\nloaded = hpn_loaded:Loaded\n")
    return folder


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_ranks_in_a_sif(where: str, sif: Path, store: Store, acquisition: Path, tmp_path: Path) -> None:
    key = ingest_job(store, acquisition)
    launch(where, in_sif(sif, tmp_path, acquisition), "hpn-stage", "run", job_uri(store, key))
    manifest = load_manifest(store, key)
    assert manifest is not None
    assert manifest.provenance["workers"] == 2
    assert manifest.provenance["image"]["name"] == "imaging"
    assert manifest.outputs["tiles"].digest == expected_tiles(acquisition, tmp_path / "expected")


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("whose", ["own", "host"])
def test_the_mpi_that_ranks_load(whose: str, where: str, sif: Path, plugin: Path, store: Store, tmp_path: Path) -> None:
    """The image's own, or the host's if it is bound in; with results of 4 MB going between the ranks."""
    host = tmp_path / "host-mpi"
    shutil.copytree(HOST_MPI, host, ignore=lambda folder, names: [n for n in names if n.startswith("python")])
    key = loaded_job(store, plugin)
    environment = {"PYTHONPATH": str(plugin), "HPN_STAGES": "loaded"}
    if whose == "host":
        environment["HPN_HOST_MPI"] = str(host)
    launch(where, in_sif(sif, tmp_path, **environment), "hpn-stage", "run", job_uri(store, key))
    rows: list[list[Any]] = store.get_json(f"artifacts/{key}/table/table.json")["rows"]
    folder = "/opt/hpn/lib" if whose == "own" else str(host)
    assert {tuple(libraries) for _, _, libraries in rows} == {(f"{folder}/libmpi.so.12",)}
    assert {ranks for _, ranks, _ in rows} == {3}
    assert {rank for rank, _, _ in rows} <= {1, 2}


def loaded_job(store: Store, plugin: Path) -> str:
    """Register the plug-in's job, in a process that has the plug-in."""
    code = (
        "import sys; from happyneurons.jobs.spec import make_spec, save_spec; from happyneurons.stages import "
        "load_stage; from happyneurons.store.documents import Store; spec = make_spec(load_stage('loaded'), "
        "inputs={}, params={}); save_spec(Store(sys.argv[1]), spec); print(spec.key)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store.uri], env={**os.environ, "PYTHONPATH": str(plugin)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_sif_belongs_to_a_family(sif: Path, tmp_path: Path) -> None:
    """Every stage of the family has a link to the one file."""
    assert sif.is_symlink()
    assert sif.resolve() == sif.with_name("montage.sif").resolve() == sif.with_name("imaging.sif").resolve()
    done = subprocess.run([*in_sif(sif), "hpn-stage", "describe"], capture_output=True, text=True, cwd=ROOT)
    assert {"ingest", "montage", "volume"} <= set(described(done.stdout)), done.stderr
    assert "segment" not in described(done.stdout)
