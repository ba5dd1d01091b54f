"""The manifest of a finished job, with everything needed to trace it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from happyneurons.jobs.attempts import Attempt
from happyneurons.jobs.journal import results_digest
from happyneurons.jobs.spec import JobSpec
from happyneurons.jobs.stage import Stage, StageResult
from happyneurons.store.artifacts import Artifact, Manifest, artifact_uri
from happyneurons.store.documents import canonical_json
from happyneurons.worker.progress import Progress

TRACED_PACKAGES = (
    "happyneurons", "numpy", "scipy", "opencv-python-headless", "tensorflow-cpu", "tensorflow", "cloud-volume",
    "igneous-pipeline", "kimimaro", "zmesh", "mpi4py", "h5py", "tifffile", "connected-components-3d",
)  # fmt: skip


def make_manifest(
    attempt: Attempt,
    spec: JobSpec,
    stage: Stage[Any],
    rounds: Sequence[str],
    result: StageResult,
    progress: Progress,
    quarantined: Sequence[str],
) -> Manifest:
    """Manifest to publish. Digests depend on the job and its tasks' results, not on time or place."""
    content = results_digest(rounds, attempt.store, attempt.key)
    outputs = {}
    for name, output in result.outputs.items():
        if output.kind != stage.outputs[name].kind:
            raise TypeError(f"stage {stage.name}: output {name} is declared as {stage.outputs[name].kind}")
        digest = hashlib.sha256(canonical_json([spec.key, name, output.kind, content, sorted(quarantined)]))
        outputs[name] = Artifact(
            kind=output.kind,
            uri=artifact_uri(attempt.store, spec.key, name),
            data_uri=attempt.store.url(f"artifacts/{spec.key}/{name}"),
            digest=digest.hexdigest(),
            voxel_size_nm_xyz=output.voxel_size_nm_xyz,
            bounds=output.bounds,
            properties=dict(output.properties),
        )
    return Manifest(
        job_key=spec.key,
        stage=spec.stage,
        stage_version=spec.stage_version,
        params=spec.params,
        inputs={name: [r.model_dump() for r in refs] for name, refs in spec.inputs.items()},
        outputs=outputs,
        metrics={name: float(value) for name, value in result.metrics.items()},
        provenance={
            "attempt": attempt.number,
            "image_digest": spec.image_digest,
            "image": own_image(),
            "fingerprint": spec.fingerprint,
            "host": socket.gethostname(),
            "machine": platform.machine(),
            "python": sys.version.split()[0],
            "packages": package_versions(),
            "workers": progress.workers,
            "started": progress.started,
            "finished": time.time(),
            "tasks_computed": progress.computed_tasks,
            "tasks_resumed": progress.resumed_tasks,
            "tasks_quarantined": list(quarantined),
            "task_seconds": round(progress.task_seconds, 3),
            "voxels": progress.voxels,
            "bytes": progress.bytes,
            "telemetry": progress.telemetry(),
        },
    )


def own_image() -> dict[str, str]:
    """Name, version and commit of the image that this process runs in; empty outside of our images."""
    names = ("name", "version", "revision")
    return {name: value for name in names if (value := os.environ.get(f"HPN_IMAGE_{name.upper()}"))}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {}
    for name in TRACED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
