"""Results as arrays and values: `hpn.open(URI)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, load_artifact

DOCUMENTS = {"report": "report.json", "table": "table.json", "model": "model.json", "pictures": "index.json"}
VOLUMES = ("image_volume", "segmentation", "mask")


def open_result(uri: str, mip: int = 0) -> Any:
    """Open an artifact, or external data, by URI.

    image_volume, segmentation, mask → :class:`VolumeResult`; section_stack → :class:`StackResult`;
    report, table, model, pictures → their document as a dict; mesh_layer, skeleton_layer →
    CloudVolume's reader (`.get(…)`); tile_set, subvolumes → the artifact itself.
    Raises UserError if there is no such artifact.
    """
    artifact = load_artifact(uri)
    if artifact.kind == "section_stack":
        return StackResult(artifact, mip)
    if artifact.kind in VOLUMES:
        return VolumeResult(artifact, artifact.data_uri, mip)
    if artifact.kind in DOCUMENTS and not artifact.data_uri.startswith("ckpt://"):
        return artifact.store().get_json(DOCUMENTS[artifact.kind])
    if artifact.kind in ("mesh_layer", "skeleton_layer"):
        from happyneurons.store.layers import open_meshes, open_skeletons

        return open_meshes(artifact.data_uri) if artifact.kind == "mesh_layer" else open_skeletons(artifact.data_uri)
    return artifact


class VolumeResult:
    """A volume read like an array: `v[z0:z1, y0:y1, x0:x1]`, in voxels of its own coordinates.

    Axes are (z, y, x). Coordinates may start at an offset (`start_zyx`), so indices are positions,
    never counted from the end. Only what is asked for is read.
    """

    def __init__(self, artifact: Artifact, data_uri: str, mip: int = 0) -> None:
        from happyneurons.store.volumes import open_volume

        self.artifact = artifact
        self._volume = open_volume(data_uri, mip)
        self.dtype = self._volume.dtype
        self.start_zyx, self.stop_zyx = self._volume.start_zyx, self._volume.stop_zyx
        self.voxel_size_nm_xyz = self._volume.voxel_size_nm_xyz

    def __repr__(self) -> str:
        return f"<{self.artifact.kind} {self.dtype} {self.start_zyx}..{self.stop_zyx} (zyx) of {self.artifact.uri}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size (z, y, x) in voxels."""
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> NDArray[Any]:
        """(z, y, x) array of a box, which must lie inside the volume."""
        inside = zip(self.start_zyx, start_zyx, stop_zyx, self.stop_zyx, strict=True)
        if not all(a <= low < high <= b for a, low, high, b in inside):
            raise UserError(
                f"{self.artifact.uri}: box {tuple(start_zyx)}..{tuple(stop_zyx)} (zyx) is not inside "
                f"{self.start_zyx}..{self.stop_zyx}"
            )
        return self._volume.read(start_zyx, stop_zyx)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        parts = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts[at : at + 1] = [slice(None)] * (4 - len(parts))
        parts += [slice(None)] * (3 - len(parts))
        if len(parts) != 3:
            raise IndexError(f"expected [z, y, x], got {len(parts)} indices")
        start, stop, steps, drop = [], [], [], []
        for axis, part in enumerate(parts):
            if isinstance(part, slice):
                start.append(self.start_zyx[axis] if part.start is None else int(part.start))
                stop.append(self.stop_zyx[axis] if part.stop is None else int(part.stop))
                steps.append(slice(None, None, part.step))
            else:
                start.append(int(part))
                stop.append(int(part) + 1)
                steps.append(slice(None))
                drop.append(axis)
        block = self.read(start, stop)[tuple(steps)]
        return block.squeeze(tuple(drop)) if drop else block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:, :, :]
        return whole if dtype is None else whole.astype(dtype)


class StackResult(VolumeResult):
    """A section stack: its images as a volume (voxel z is section z), and how they came about."""

    def __init__(self, artifact: Artifact, mip: int = 0) -> None:
        super().__init__(artifact, f"{artifact.data_uri}/image", mip)
        self._transforms: Any = None

    def section(self, z: int) -> Any:
        """The section's document: status and figures."""
        return self.artifact.store().get_json(f"sections/{z:06d}.json")

    @property
    def transforms(self) -> Any:
        """MontageTransforms or AlignTransforms of :mod:`happyneurons.imaging.transforms`."""
        if self._transforms is None:
            from happyneurons.imaging.transforms import AlignTransforms, MontageTransforms

            # A montage was made from tiles; one joined from several (stack) names no single source.
            source = self.artifact.properties.get("source")
            moved = source is not None and load_artifact(source).kind == "section_stack"
            self._transforms = (AlignTransforms if moved else MontageTransforms)(self.artifact)
        return self._transforms

    def map(self, z: int, *where: ArrayLike) -> NDArray[np.float64] | None:
        """Where points (n, 2) of px (x, y) went: `map(z, (row, col), xy)` from a tile for a montage, `map(z, xy)`
        from the input stack for an aligned stack. None where the tile or section has no place."""
        result: NDArray[np.float64] | None = self.transforms.map(z, *where)
        return result

    def inverse(self, z: int, xy: ArrayLike) -> Any:
        """The other way; see :mod:`happyneurons.imaging.transforms`."""
        return self.transforms.inverse(z, xy)
