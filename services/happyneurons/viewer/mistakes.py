"""The worst splits and mergers of an evaluation, each as a view of the place where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.artifacts import Artifact
from happyneurons.viewer.links import ADDRESS, PANEL_PX, neuroglancer_state


@dataclass(frozen=True)
class Mistake:
    """A split (one true object, several segments) or a merger (one segment, several true objects).

    voi_bits: its part in the variation of information. position_xyz: voxel of the segmentation in its
    second largest piece. segments, labels: ids of the segmentation, and of the truth, the largest first.
    """

    kind: str
    voi_bits: float
    voxels: int
    position_xyz: tuple[int, int, int]
    segments: Sequence[int]
    labels: Sequence[int]

    def __str__(self) -> str:
        many = f"{len(self.segments)} segments" if self.kind == "split" else f"{len(self.labels)} objects"
        what = f"object {self.labels[0]}" if self.kind == "split" else f"segment {self.segments[0]}"
        place = ", ".join(str(v) for v in self.position_xyz)
        return f"{self.kind}: {what}, {many}, {self.voxels} voxels, {self.voi_bits:.4g} bit, at {place}"


def worst_mistakes(report: Artifact, count: int) -> list[Mistake]:
    """The `count` costliest splits and as many mergers, all by cost. Raises UserError if it lists none."""
    try:
        found = report.store().get_json("report.json").get("segmentation")
    except NotFoundError:
        found = None
    if not found or "worst_splits" not in found:
        raise UserError(f"{report.uri}: not the report of an evaluation of a segmentation with its truth")
    listed = [*_read(found, "split", count), *_read(found, "merger", count)]
    return sorted(listed, key=lambda m: -m.voi_bits)


def _read(found: Mapping[str, Any], kind: str, count: int) -> Iterator[Mistake]:
    for row in found[f"worst_{kind}s"][:count]:
        pieces = row["pieces"]
        segments = [p["segment"] for p in pieces] if kind == "split" else [row["segment"]]
        labels = [row["label"]] if kind == "split" else list(dict.fromkeys(p["label"] for p in pieces))
        x, y, z = row["position_xyz"]
        yield Mistake(kind, row[f"voi_{kind.removesuffix('r')}"], row["voxels"], (x, y, z), segments, labels)


def mistake_state(
    artifacts: Mapping[str, Artifact], address: ADDRESS, mistake: Mistake, segmentation: str, truth: str | None
) -> dict[str, Any]:
    """Neuroglancer state that shows a mistake: its place, its segments and its true objects.

    artifacts: layer name → artifact; segmentation, truth: names of those two layers.
    """
    selected = {segmentation: mistake.segments}
    if truth is not None:
        selected[truth] = mistake.labels
    state = neuroglancer_state(artifacts, address, selected=selected)
    size_nm = artifacts[segmentation].voxel_size_nm_xyz or (1.0, 1.0, 1.0)
    # The view counts in voxels of its first layer, which may be another's.
    view_nm = [state["dimensions"][axis][0] * 1e9 for axis in "xyz"] if "dimensions" in state else size_nm
    state["position"] = [(p + 0.5) * a / b for p, a, b in zip(mistake.position_xyz, size_nm, view_nm, strict=True)]
    across = 4 * mistake.voxels ** (1 / 3)
    state["crossSectionScale"] = min(state.get("crossSectionScale", 1.0), max(0.25, across / PANEL_PX))
    return state
