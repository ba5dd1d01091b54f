"""The canvas that several stacks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, Bounds


@dataclass(frozen=True)
class Canvas:
    """Large enough for every section of every stack."""

    bounds: Bounds
    origin_px: tuple[int, int] | None
    """Stage px (x, y) of its pixel (0, 0); None where the stacks do not say theirs."""
    shifts_xy: tuple[tuple[int, int], ...]
    """For each stack: px of its volume + shift = px of the canvas."""
    voxel_size_nm_xyz: tuple[float, float, float]
    mask: bool
    """Whether any of the stacks has a mask."""

    @classmethod
    def around(cls, stacks: Sequence[Artifact]) -> Canvas:
        """The canvas of some stacks. Raises UserError if they do not fit together."""
        sizes = {a.voxel_size_nm_xyz for a in stacks}
        size = next(iter(sizes))
        if len(sizes) > 1 or size is None:
            raise UserError(f"input stacks: they differ in voxel size: {sorted(map(str, sizes))} nm")
        origins = [a.properties.get("origin_px") for a in stacks]
        if any(o is None for o in origins) and any(o is not None for o in origins):
            raise UserError(
                "input stacks: some say where they lie on the stage (origin_px) and some do not: "
                "montage all of them with the same origin"
            )
        known = [(int(o[0]), int(o[1])) for o in origins if o is not None]
        origin = (min(x for x, _ in known), min(y for _, y in known)) if known else None
        shifts = tuple((x - origin[0], y - origin[1]) for x, y in known) if origin else ((0, 0),) * len(stacks)
        low, high = [], []
        for artifact, (dx, dy) in zip(stacks, shifts, strict=True):
            if artifact.bounds is None:
                raise UserError(f"input stacks: {artifact.uri} has no bounds")
            (x0, y0, z0), (x1, y1, z1) = artifact.bounds.minimum_xyz, artifact.bounds.maximum_xyz
            low.append((x0 + dx, y0 + dy, z0))
            high.append((x1 + dx, y1 + dy, z1))
        left, top, first = (min(corner[i] for corner in low) for i in range(3))
        right, bottom, last = (max(corner[i] for corner in high) for i in range(3))
        bounds = Bounds(minimum_xyz=(left, top, first), maximum_xyz=(right, bottom, last))
        return cls(bounds, origin, shifts, size, any(bool(a.properties.get("mask")) for a in stacks))


def blocks(bounds: Bounds, size_px: int) -> Iterator[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of the canvas in blocks that start at its corner."""
    (left, top, _), (right, bottom, _) = bounds.minimum_xyz, bounds.maximum_xyz
    for y in range(top, bottom, size_px):
        for x in range(left, right, size_px):
            yield y, x, min(y + size_px, bottom), min(x + size_px, right)
