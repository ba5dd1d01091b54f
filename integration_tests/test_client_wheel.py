"""The client alone (happyneurons-client), built and installed by itself, at a real orchestrator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.store.documents import Store

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys
import happyneurons as hpn
from happyneurons.errors import UserError

with hpn.connect(sys.argv[1]) as client:
    p = hpn.Pipeline("by_the_client", client=client)
    p.convert(source=sys.argv[2], format="ome-zarr", voxel_size_nm_xyz=[4, 4, 40])
    run = client.submit(p).wait()
    assert run.state == "succeeded", run.message
    (name,) = run.jobs
    assert run.output(f"{name}.files")
    try:
        run.open(f"{name}.files")
    except UserError as error:
        assert "pip install happyneurons" in str(error), error
    else:
        raise AssertionError("results cannot be read without the whole package")
    try:
        client.submit("name: wrong\\njobs: {a: {stage: nothing}}\\n")
    except UserError as error:
        assert "nothing" in str(error), error
loaded = {"numpy", "pydantic", "cloudvolume", "cv2", "mpi4py"} & set(sys.modules)
assert not loaded, loaded
print("done", run.id)
"""


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with nothing but the client and what it depends on."""
    folder = tmp_path_factory.mktemp("client")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    made = subprocess.run([ROOT / "scripts/client-wheel", folder], check=True, stdout=subprocess.PIPE, text=True)
    wheel, python = made.stdout.strip(), folder / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = [uv, "pip", "install", "-q", "--python", python] if uv else [python, "-m", "pip", "install", "-q"]
    subprocess.run([*install, wheel], check=True)
    return python


def test_a_run_from_submission_to_its_end(client_python: Path, store: Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "em.h5", "w") as file:
        file["em"] = np.random.default_rng(0).integers(0, 255, (8, 20, 20), np.uint8)
    with OrchestratorServer(store, "127.0.0.1:0") as server:
        done = subprocess.run(
            [client_python, "-c", SCRIPT, server.address, f"{tmp_path}/em.h5?em"], check=False, timeout=120,
            capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done ")
