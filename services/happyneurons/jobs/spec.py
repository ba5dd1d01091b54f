"""Job specs and keys.

A job's key is the hash of everything that decides its result, and of nothing else: stage name
and version, all parameters, the digests of its inputs, what it reads outside the store, the
image, and how many failed tasks it may publish with. Resources, names and sites are not part of
it. Two requests with the same key are the same job.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Stage, parse_params
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store, canonical_json


class Resources(BaseModel):
    """What a job asks of a site. Not part of its key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ranks: int = Field(1, ge=1, le=1_000_000, description="MPI ranks that work (with 2 or more, one more coordinates)")
    threads_per_rank: int = Field(1, ge=1, le=1024, description="Threads a rank may use")
    memory_gb: float | None = Field(None, gt=0, description="Memory of all ranks together, in GB")
    gpus_per_rank: float = Field(0, ge=0, le=16, description="GPUs a rank uses; fractions share one")
    walltime_min: float | None = Field(None, gt=0, description="The job drains before this time, in minutes, is over")

    @property
    def cores(self) -> int:
        return self.ranks * self.threads_per_rank


class InputRef(BaseModel):
    model_config = ConfigDict(frozen=True)
    uri: str
    digest: str


class JobSpec(BaseModel):
    """`jobs/KEY/spec.json`."""

    model_config = ConfigDict(frozen=True)
    schema_version: Literal[1] = 1
    key: str
    stage: str
    stage_version: str
    params: dict[str, Any]
    inputs: dict[str, tuple[InputRef, ...]]
    fingerprint: str | None = None
    image_digest: str = ""
    allow_failed_tasks: int = Field(0, ge=0)

    def identity(self) -> dict[str, Any]:
        """What the key is the hash of."""
        return {
            "stage": self.stage,
            "stage_version": self.stage_version,
            "params": self.params,
            "inputs": {name: [r.digest for r in refs] for name, refs in sorted(self.inputs.items())},
            "fingerprint": self.fingerprint,
            "image_digest": self.image_digest,
            "allow_failed_tasks": self.allow_failed_tasks,
        }


def spec_path(key: str) -> str:
    return f"jobs/{key}/spec.json"


def job_uri(store: Store, key: str) -> str:
    """`STORE/jobs/KEY`: what `hpn-stage run` takes."""
    return store.url(f"jobs/{key}")


def parse_job_uri(uri: str) -> tuple[Store, str]:
    root, separator, key = uri.rstrip("/").rpartition("/jobs/")
    if not separator or "/" in key:
        raise UserError(f"job {uri}: expected STORE/jobs/KEY")
    return Store(root), key


def load_spec(store: Store, key: str) -> JobSpec:
    document = store.find_json(spec_path(key))
    if document is None:
        raise UserError(f"job {job_uri(store, key)}: no such job in this store")
    return JobSpec.model_validate(document)


def make_spec(
    stage: type[Stage[Any]],
    *,
    inputs: Mapping[str, str | Sequence[str]],
    params: Mapping[str, Any],
    allow_failed_tasks: int = 0,
    image_digest: str | None = None,
) -> JobSpec:
    """Check a request and give it its key. Raises UserError naming every wrong field."""
    parsed = parse_params(stage, params)
    artifacts = resolve_inputs(stage, inputs)
    refs = {
        name: tuple(InputRef(uri=a.uri, digest=a.digest) for a in found) for name, found in artifacts.items() if found
    }
    draft = JobSpec(
        key="",
        stage=stage.name,
        stage_version=stage.version,
        params=parsed.model_dump(mode="json"),
        inputs=refs,
        fingerprint=stage().fingerprint(parsed),
        image_digest=os.environ.get("HPN_IMAGE_DIGEST", "") if image_digest is None else image_digest,
        allow_failed_tasks=allow_failed_tasks,
    )
    key = hashlib.sha256(canonical_json(draft.identity())).hexdigest()[:40]
    return draft.model_copy(update={"key": key})


def resolve_inputs(stage: type[Stage[Any]], inputs: Mapping[str, str | Sequence[str]]) -> dict[str, list[Artifact]]:
    """Artifacts of a request's input URIs, their kinds checked against the stage's declaration."""
    violations: list[tuple[str, str]] = []
    for name in inputs:
        if name not in stage.inputs:
            known = ", ".join(sorted(stage.inputs)) or "none"
            violations.append((f"inputs.{name}", f"no such input; {stage.name} has {known}"))
    found: dict[str, list[Artifact]] = {}
    for name, spec in stage.inputs.items():
        value = inputs.get(name, [])
        uris = [value] if isinstance(value, str) else list(value)
        if not uris and not spec.optional:
            violations.append((f"inputs.{name}", f"missing; give a {' or '.join(spec.kinds)}: {spec.description}"))
        if len(uris) > 1 and not spec.many:
            violations.append((f"inputs.{name}", f"takes one artifact, {len(uris)} were given"))
        found[name] = []
        for uri in uris:
            try:
                artifact = load_artifact(uri)
            except UserError as error:
                violations.append((f"inputs.{name}", str(error)))
                continue
            if artifact.kind == "segmentation" and "mask" in spec.kinds and "segmentation" not in spec.kinds:
                artifact = artifact.model_copy(update={"kind": "mask"})  # labels may serve as a mask
            if artifact.kind not in spec.kinds:
                violations.append(
                    (f"inputs.{name}", f"expected a {' or '.join(spec.kinds)}, {uri} is a {artifact.kind}")
                )
            found[name].append(artifact)
    if violations:
        text = "; ".join(f"{path}: {expected}" for path, expected in violations)
        raise UserError(f"stage {stage.name}: {text}", violations)
    return found


def save_spec(store: Store, spec: JobSpec) -> None:
    """Register the job. The first writer's input URIs stay; equal keys mean equal content."""
    store.create_json(spec_path(spec.key), spec.model_dump(mode="json"))


def differences(a: JobSpec, b: JobSpec) -> list[str]:
    """Why two jobs of a stage have different keys, one line each (for `hpn explain`)."""
    old, new = a.identity(), b.identity()
    lines = []
    for name in sorted(set(old["params"]) | set(new["params"])):
        before, after = old["params"].get(name), new["params"].get(name)
        if before != after:
            lines.append(f"params.{name}: {before!r} → {after!r}")
    for name in sorted(set(old["inputs"]) | set(new["inputs"])):
        if old["inputs"].get(name) != new["inputs"].get(name):
            lines.append(f"inputs.{name}: another artifact")
    for field in ("stage_version", "fingerprint", "image_digest", "allow_failed_tasks"):
        if old[field] != new[field]:
            lines.append(f"{field}: {old[field]!r} → {new[field]!r}")
    return lines
