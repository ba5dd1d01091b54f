"""Parameters of stages that run a flood-filling network: options of inference, of the network, and the backend."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from happyneurons.ffn.backends import AUTO, backend_names, known_backend
from happyneurons.ffn.options import InferenceOptions


class NetworkParams(InferenceOptions):
    """Light on purpose: stages make them part of their own parameters."""

    backend: str = Field(
        AUTO,
        description="What computes the network; auto: TensorFlow where there is a GPU, else our own Winograd kernels "
        "if they were built with the package",
        json_schema_extra={"enum": list(backend_names())},
    )
    fov_xyz: tuple[int, int, int] | None = Field(
        None, description="Field of view, voxels, odd; default: the model's own (33 for TensorFlow checkpoints)"
    )
    deltas_xyz: tuple[int, int, int] | None = Field(
        None, description="Step of the field of view, voxels; default: the model's own (8 for TensorFlow checkpoints)"
    )
    image_mean: float | None = Field(
        None, description="Grey value that becomes 0; default: the model's own (128 for TensorFlow checkpoints)"
    )
    image_stddev: float | None = Field(
        None, gt=0, description="Grey values that become 1; default: the model's own (33 for TensorFlow checkpoints)"
    )

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str) -> str:
        return known_backend(value)

    def overrides(self) -> dict[str, Any]:
        """Fields of the network's architecture that are given here, in zyx order."""
        given = {
            "fov_zyx": self.fov_xyz and self.fov_xyz[::-1],
            "deltas_zyx": self.deltas_xyz and self.deltas_xyz[::-1],
            "image_mean": self.image_mean,
            "image_stddev": self.image_stddev,
        }
        return {name: value for name, value in given.items() if value is not None}

    def inference_options(self) -> InferenceOptions:
        return InferenceOptions(**{name: getattr(self, name) for name in InferenceOptions.model_fields})
