"""What the sites file says of a site on Kubernetes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class KubernetesAccess(BaseModel):
    """Where Jobs are made, and of what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(description="Image of a job, such as registry/happyneurons/{stage}:0.1.0; {stage} is replaced")
    namespace: str = Field("", description="Namespace of the Jobs [the orchestrator's own, or the context's]")
    template: Path | None = Field(
        None,
        description="Pod template (YAML): volumes, security, where to run, …; its first container is the job's",
    )
    node_cores: int = Field(0, ge=0, description="Cores of a node: no job can have more, and `auto` fills them [cores]")
    gpu_resource: str = Field("", description="Resource that GPUs are asked for by, such as nvidia.com/gpu [no GPUs]")
    keep_finished_s: int = Field(3600, ge=60, description="How long finished Jobs stay to be looked at")
    kubeconfig: Path | None = Field(
        None, description="File of access from outside [the pod's account, or ~/.kube/config]"
    )
    context: str = Field("", description="Context of the kubeconfig [its current one]")

    @field_validator("image")
    @classmethod
    def _of_a_stage(cls, value: str) -> str:
        try:
            value.format(stage="montage")
        except (KeyError, IndexError, ValueError):
            raise ValueError("only {stage} can be replaced in it") from None
        return value
