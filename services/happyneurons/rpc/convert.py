"""Jobs, artifacts and stages as messages, for both servers and for executors that speak gRPC.

Lives here, not in `jobs`: `jobs` and `store` must not know the wire format.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from happyneurons.jobs.describe import describe_stage
from happyneurons.jobs.spec import Resources
from happyneurons.jobs.stage import Stage
from happyneurons.store.artifacts import Artifact
from happyneurons.v1 import artifacts_pb2, jobs_pb2, stages_pb2

FAILURE_KINDS = {
    "user": jobs_pb2.FAILURE_KIND_USER,
    "task": jobs_pb2.FAILURE_KIND_TASK,
    "infrastructure": jobs_pb2.FAILURE_KIND_INFRASTRUCTURE,
}
QUARANTINED_SHOWN = 100


def timestamp(seconds: float) -> Timestamp | None:
    """A moment in seconds since 1970; None for 0 (it has not come yet)."""
    if not seconds:
        return None
    message = Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def duration(seconds: float | None) -> Duration | None:
    """A length of time; None for one that is not known."""
    if seconds is None:
        return None
    message = Duration()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """JSON-able values as a Struct (integers become doubles)."""
    return json_format.ParseDict(json.loads(json.dumps(dict(values))), struct_pb2.Struct())


def from_struct(message: struct_pb2.Struct) -> dict[str, Any]:
    """Values of a Struct; doubles without a fraction become integers again."""
    values: dict[str, Any] = _whole_numbers(json_format.MessageToDict(message))
    return values


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _whole_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(v) for v in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


def artifact_message(artifact: Artifact) -> artifacts_pb2.Artifact:
    """An artifact as a message."""
    message = artifacts_pb2.Artifact(
        kind=artifact.kind, uri=artifact.uri, data_uri=artifact.data_uri, digest=artifact.digest,
        properties=struct(artifact.properties),
    )  # fmt: skip
    if artifact.voxel_size_nm_xyz is not None:
        x_nm, y_nm, z_nm = artifact.voxel_size_nm_xyz
        message.voxel_size.CopyFrom(artifacts_pb2.VoxelSize(x_nm=x_nm, y_nm=y_nm, z_nm=z_nm))
    if artifact.bounds is not None:
        a, b = artifact.bounds.minimum_xyz, artifact.bounds.maximum_xyz
        message.bounds.CopyFrom(
            artifacts_pb2.Bounds(
                minimum_x=a[0], minimum_y=a[1], minimum_z=a[2], maximum_x=b[0], maximum_y=b[1], maximum_z=b[2]
            )
        )
    return message


def resources_message(resources: Resources) -> jobs_pb2.Resources:
    """What a job asks for, as a message."""
    return jobs_pb2.Resources(
        ranks=resources.ranks,
        threads_per_rank=resources.threads_per_rank,
        memory_gb=resources.memory_gb or 0,
        gpus_per_rank=resources.gpus_per_rank,
        walltime=None if resources.walltime_min is None else duration(resources.walltime_min * 60),
    )


def resources_from_message(message: jobs_pb2.Resources) -> Resources:
    """The other way; zeros are what was not given. Raises pydantic.ValidationError."""
    return Resources(
        ranks=message.ranks or 1,
        threads_per_rank=message.threads_per_rank or 1,
        memory_gb=message.memory_gb or None,
        gpus_per_rank=message.gpus_per_rank,
        walltime_min=message.walltime.ToMilliseconds() / 60_000 if message.HasField("walltime") else None,
    )


def job_spec_message(
    stage: str,
    inputs: Mapping[str, Sequence[str]],
    params: Mapping[str, Any],
    resources: Resources,
    allow_failed_tasks: int = 0,
) -> jobs_pb2.JobSpec:
    """A job as it is asked for, as a message."""
    return jobs_pb2.JobSpec(
        stage=stage,
        inputs={name: artifacts_pb2.ArtifactUris(uris=uris) for name, uris in inputs.items()},
        params=struct(params),
        resources=resources_message(resources),
        allow_failed_tasks=allow_failed_tasks,
    )


def progress_message(progress: Mapping[str, Any]) -> jobs_pb2.TaskProgress:
    """An attempt's `progress.json` (see happyneurons.worker.progress) as a message."""
    return jobs_pb2.TaskProgress(
        round=progress["round"],
        round_index=progress["round_index"],
        rounds=progress["rounds"],
        tasks_total=progress["tasks_total"],
        tasks_done=progress["tasks_done"],
        tasks_resumed=progress["resumed_tasks"],
        tasks_computed=progress["computed_tasks"],
        tasks_quarantined=progress["quarantined"],
        voxels=progress["voxels"],
        bytes=progress["bytes"],
        eta=duration(progress.get("eta_s")),
        workers=progress["workers"],
    )


def failure_message(kind: str, message: str, job_uri: str, quarantined: Sequence[str] = ()) -> jobs_pb2.Failure:
    """Why a job ended without a result. `kind`: user, task or infrastructure."""
    reproduce = ""
    if quarantined:
        reproduce = f"hpn-stage run {shlex.quote(job_uri)} --task {shlex.quote(quarantined[0])}"
    return jobs_pb2.Failure(
        kind=FAILURE_KINDS.get(kind, jobs_pb2.FAILURE_KIND_UNSPECIFIED),
        message=message,
        quarantined_tasks=list(quarantined)[:QUARANTINED_SHOWN],
        reproduce_command=reproduce,
    )


def stage_message(stage: type[Stage[Any]]) -> stages_pb2.StageDescription:
    """A stage's description as a message."""
    document = describe_stage(stage)
    return stages_pb2.StageDescription(
        name=document["name"],
        version=document["version"],
        summary=document["summary"],
        inputs=[stages_pb2.StageInput(name=name, **spec) for name, spec in document["inputs"].items()],
        outputs=[stages_pb2.StageOutput(name=name, **spec) for name, spec in document["outputs"].items()],
        params_json_schema=json.dumps(document["params"]),
    )
