"""google/ffn's own code as the peer of benchmarks/ffn.py.

A checkout of github.com/google/ffn is copied and made to run with a current TensorFlow: its protos are compiled anew
(it ships modules of an old compiler), eager execution is switched off before it builds its graph, a variable that its
runner only sets where there is a checkpoint gets a value, and it does not save a probability map that was not made.
What is timed is as it is. The Python that runs it
needs, beside our `dev` environment: tf_slim, connectomics, edt, jax.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRAPPER = """
import json, os, resource, sys, time
sys.path.insert(0, os.getcwd())
import tensorflow.compat.v1 as tf
tf.disable_eager_execution()
tf.config.threading.set_intra_op_parallelism_threads(int(os.environ["PEER_THREADS"]))
tf.config.threading.set_inter_op_parallelism_threads(1)
from absl import app
import run_inference
from ffn.inference import inference
original = inference.Canvas.segment_all
def timed(self, *args, **kwargs):
    wall, cpu = time.perf_counter(), time.process_time()
    original(self, *args, **kwargs)
    with open("figures.json", "w") as file:
        json.dump({"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}, file)
inference.Canvas.segment_all = timed
app.run(run_inference.main)
"""

REQUEST = """
image {{ hdf5: "{em}:em" }}
image_mean: 128
image_stddev: 33
seed_policy: "PolicyPeaks"
model_checkpoint_path: "{checkpoint}"
model_name: "convstack_3d.ConvStack3DFFNModel"
model_args: "{{\\"depth\\": 12, \\"fov_size\\": [33, 33, 33], \\"deltas\\": [8, 8, 8]}}"
segmentation_output_dir: "{out}"
inference_options {{
  init_activation: 0.95 pad_value: 0.05 move_threshold: 0.9 segment_threshold: 0.6 min_segment_size: 1000
  min_boundary_dist {{ x: 1 y: 1 z: 1 }}
}}
"""


def run_google_ffn(
    checkout: Path, python: str, em: Path, checkpoint: Path, size: int, threads: int, segmentation: Path
) -> dict[str, Any]:
    """Segment `em[0:size]³`; writes `segmentation` (npz, array `segmentation`), returns seconds and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        copy, out = Path(folder) / "ffn", Path(folder) / "out"
        shutil.copytree(checkout, copy, ignore=_data_of(checkout))
        _compile_protos(copy / "ffn")
        runner = copy / "ffn" / "inference" / "runner.py"
        text = runner.read_text()
        text = re.sub(r"\n(\s+)(if gfile\.exists\(cpoint_path\):)", r"\n\1partial_segment_iters = 0\n\1\2", text)
        text = re.sub(r"\n(\s+)(prob = unalign_image)", r"\n\1if canvas.seg_prob is None: return\n\1\2", text)
        runner.write_text(text)
        (copy / "wrapper.py").write_text(WRAPPER)
        request = REQUEST.format(em=em, checkpoint=checkpoint, out=out)
        box = f"start {{ x:0 y:0 z:0 }} size {{ x:{size} y:{size} z:{size} }}"
        subprocess.run(
            [python, "wrapper.py", f"--inference_request={request}", f"--bounding_box={box}", "--norequire_gpu"],
            cwd=copy, check=True, stdout=sys.stderr, env={**os.environ, "PEER_THREADS": str(threads)},
        )  # fmt: skip
        shutil.copy(next(out.rglob("seg-0_0_0.npz")), segmentation)
        figures: dict[str, Any] = json.loads((copy / "figures.json").read_text())
    figures = {name: round(value, 1) for name, value in figures.items()}
    return {**figures, "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)}


def _data_of(checkout: Path) -> Callable[[str, list[str]], list[str]]:
    """What of a checkout is not code: folders at its top (`models` is the name of a package further down, too)."""
    return lambda folder, _: [".git", "third_party", "results", "models"] if Path(folder) == checkout else []


def _compile_protos(package: Path) -> None:
    protos = sorted(str(p.relative_to(package)) for p in package.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", *protos]
    subprocess.run(command, cwd=package, check=True)
    for module in package.rglob("*_pb2.py"):  # they name one another as if this folder were the root
        text = re.sub(r"^from (utils|inference) import", r"from ffn.\1 import", module.read_text(), flags=re.M)
        module.write_text(text)
