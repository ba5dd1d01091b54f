"""How a stage's work is laid on a site's nodes, where the pipeline does not say.

Pipelines say what is to be computed; how many ranks and threads a node takes is a fact of the site.
So a site (its folder, or its entry in the sites file) may give resources per stage, and they count
for every field that the pipeline leaves out. The same pipeline file then runs with one rank on a
laptop and with 64 ranks on a 64-core node. Resources are not part of a job's key: the mapping never
changes a result::

    resources:
      default: {ranks: auto}                               # fill a node, one thread a rank
      segment: {gpus_per_rank: 1, ranks: auto, threads_per_rank: auto}
      montage: {ranks: 15}                                 # memory decides here
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from happyneurons.executors.base import Capacity, Executor, PoolStatus, ProcessReport, Submission
from happyneurons.jobs.spec import Resources

DEFAULT = "default"


class StageResources(BaseModel):
    """A site's resources for a stage. What is not given is left to the pipeline, then to Resources."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ranks: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] | None = Field(
        None, description="Ranks that work; auto: what fills one node, its coordinating rank counted"
    )
    threads_per_rank: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = Field(
        None, description="Threads a rank may use; auto: the node's cores shared among its processes"
    )
    memory_gb: float | None = Field(None, gt=0)
    gpus_per_rank: float | None = Field(None, ge=0, le=16)
    walltime_min: float | None = Field(None, gt=0)


SiteResources = Mapping[str, StageResources]
"""Stage name, or `default` for all others → its resources."""


@dataclass(frozen=True)
class NodeSize:
    """What a job finds on one node."""

    cores: int
    gpus: int = 0


def merge_resources(*layers: SiteResources) -> dict[str, StageResources]:
    """Layers of a site's resources as one; later ones override single fields of earlier ones."""
    merged: dict[str, StageResources] = {}
    for name in {name for layer in layers for name in layer}:
        fields = [layer[name].model_dump(exclude_unset=True) for layer in layers if name in layer]
        merged[name] = StageResources.model_validate({key: value for part in fields for key, value in part.items()})
    return merged


def map_resources(stage: str, asked: Resources, site: SiteResources, node: NodeSize) -> Resources:
    """What a job is submitted with: the pipeline's own words, then the stage's at the site, then its default's.

    `asked.model_fields_set` tells what the pipeline said.
    """
    said = asked.model_dump(include=asked.model_fields_set)
    layers = [site[name].model_dump(exclude_none=True) for name in (DEFAULT, stage) if name in site]
    fields = {key: value for layer in (*layers, said) for key, value in layer.items()}
    if fields.get("ranks") == "auto":
        fields["ranks"] = _ranks(fields, node)
    if fields.get("threads_per_rank") == "auto":
        fields["threads_per_rank"] = max(1, node.cores // _processes(int(fields.get("ranks", 1))))
    return Resources.model_validate(fields)


def _ranks(fields: Mapping[str, float | str], node: NodeSize) -> int:
    """Ranks that work on one node: one for each share of a GPU, else what cores there are."""
    gpus = float(fields.get("gpus_per_rank", 0))
    if gpus:
        return max(1, int(node.gpus / gpus))
    threads = fields.get("threads_per_rank", 1)
    processes = node.cores // (1 if threads == "auto" else int(threads))
    return processes - 1 if processes > 2 else 1  # two processes would be one that works and one that coordinates


def _processes(ranks: int) -> int:
    return ranks if ranks == 1 else ranks + 1


class MappedExecutor:
    """An executor whose jobs get the site's resources where the pipeline says nothing."""

    def __init__(self, inner: Executor, site: SiteResources, node: NodeSize) -> None:
        self.inner, self.site, self.node = inner, site, node
        self.kind, self.image_digest = inner.kind, inner.image_digest

    def resources(self, stage: str, asked: Resources) -> Resources:
        return map_resources(stage, asked, self.site, self.node)

    def refuse(self, stage: str, resources: Resources) -> str | None:
        return self.inner.refuse(stage, self.resources(stage, resources))

    def submit(self, submission: Submission) -> str:
        mapped = self.resources(submission.stage, submission.resources)
        return self.inner.submit(replace(submission, resources=mapped))

    def poll(self, handles: Iterable[str]) -> Mapping[str, ProcessReport]:
        return self.inner.poll(handles)

    def cancel(self, handle: str) -> None:
        self.inner.cancel(handle)

    def explain(self, handle: str) -> str:
        return self.inner.explain(handle)

    def capacity(self) -> Capacity:
        return self.inner.capacity()

    def pool_status(self) -> PoolStatus | None:
        return self.inner.pool_status()

    def lead(self, leads: bool) -> None:
        self.inner.lead(leads)

    def close(self) -> None:
        self.inner.close()
