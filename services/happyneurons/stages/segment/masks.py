"""What a mask means, and which voxels show no tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from happyneurons.imaging.layers import Size


class MaskRule(BaseModel):
    """Which voxels a mask means, and what for. google/ffn: MaskChannelConfig."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    values: tuple[int, ...] = Field((), description="The mask's values that are meant; empty: see minimum, maximum")
    minimum: float | None = Field(None, description="Least value that is meant; with neither bound: all but 0")
    maximum: float | None = Field(None, description="Highest value that is meant")
    invert: bool = Field(False, description="Everything else is meant: for masks that say where to segment (tissue)")
    seeds_only: bool = Field(False, description="No seeds there, but segments may grow into it; else it is excluded")
    voxel_size_nm_xyz: Size | None = Field(
        None, description="The mask's voxel size, nm, where its file does not tell it or is wrong"
    )

    def __call__(self, values: np.ndarray) -> NDArray[np.bool_]:
        """Where the values are meant, in their shape."""
        if self.values:
            # Of the same signedness: numpy compares int64 with uint64 as float64.
            found = np.isin(values, np.array(self.values, np.uint64 if values.dtype.kind == "u" else np.int64))
        elif self.minimum is None and self.maximum is None:
            found = values != 0
        else:
            found = np.ones(values.shape, bool)
            if self.minimum is not None:
                found &= values >= self.minimum
            if self.maximum is not None:
                found &= values <= self.maximum
        return found ^ self.invert


def outside(image: np.ndarray, grey: int) -> np.ndarray:
    """Where (z, y, x) no section shows anything: areas of one grey value, 7 x 7 px or more in a section.

    Single black voxels of the tissue do not count. A network that is trained on tissue takes large black
    areas for one object and joins to it whatever touches the border.
    """
    from scipy import ndimage

    flat = image == grey
    if not flat.any():
        return flat
    return np.asarray(ndimage.binary_opening(np.pad(flat, ((0, 0), (3, 3), (3, 3)), mode="edge"), np.ones((1, 7, 7))))[
        :, 3:-3, 3:-3
    ]
