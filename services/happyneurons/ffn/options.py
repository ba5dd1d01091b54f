"""Options of segmenting with a flood-filling network; names and meaning are google/ffn's.

Light on purpose: `stages/segment/stage.py` makes them its parameters.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class InferenceOptions(BaseModel):
    """Probabilities lie in (0, 1); distances and sizes are in voxels of the segmented mip level."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    init_activation: float = Field(0.95, gt=0, lt=1, description="Probability that the seed voxel is set to")
    pad_value: float = Field(
        0.05, gt=0, lt=1, description="Probability that unexplored voxels are shown to the network as"
    )
    move_threshold: float = Field(
        0.9, gt=0, lt=1, description="Probability that a voxel must reach for the field of view to move there"
    )
    segment_threshold: float = Field(
        0.6, gt=0, lt=1, description="Probability from which a voxel belongs to the segment"
    )
    min_segment_size: int = Field(1000, ge=1, description="Segments with fewer voxels are given up")
    min_boundary_dist_xyz: tuple[int, int, int] = Field(
        (1, 1, 1), description="Least distance of a seed from voxels that are already segmented"
    )
    disco_seed_threshold: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="If more than this fraction of a prediction reaches move_threshold, voxels that were already "
        "rejected (probability under 0.5) cannot be taken back; negative: they always can",
    )
    skip_explored_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Fast mode: where less than this fraction of the centre of the field of view is unexplored or "
        "undecided (|logit| <= 1), the network is not run again, the search goes on from the mask as it is. 0: exact",
    )
    revisit_open_fraction: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Fast mode: once the search of an object is over, the network is run after all where it was left "
        "out and the object borders on unseen voxels: on at least this fraction of a face of the field of view",
    )
    fast_segment_threshold: float = Field(
        0.64,
        gt=0,
        lt=1,
        description="Fast mode: probability from which a voxel belongs to the segment, if higher than "
        "segment_threshold. Most voxels are then predicted once, not a dozen times, and at the edges of objects less "
        "surely",
    )
    keep_connected: bool = Field(
        False,
        description="Keep only what is joined to the seed by voxels of the segment (google/ffn: false); cuts off what "
        "the mask jumped over to",
    )
    seed_order: Literal["position", "depth"] = Field(
        "position", description="Seeds in the order of their coordinates (google/ffn), or farthest from edges first"
    )
    seed_min_edge_distance: float = Field(
        0.0, ge=0, description="Seeds nearer to an edge of the image than this are left out (google/ffn: 0)"
    )

    @property
    def min_boundary_dist_zyx(self) -> tuple[int, int, int]:
        x, y, z = self.min_boundary_dist_xyz
        return (z, y, x)
