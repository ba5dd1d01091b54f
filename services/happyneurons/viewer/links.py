"""Neuroglancer states: which layers, in nm, where to look, which segments to show.

Format: google/neuroglancer, the JSON behind `#!` in its links.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, Bounds
from happyneurons.viewer.points import points_layer

DEMO = "https://neuroglancer-demo.appspot.com/"
SHOWN_SEGMENTS = 20
PANEL_PX = 400  # the view is scaled such that the volume fills a panel of this size
OBLIQUE = [-0.28, -0.33, -0.11, 0.89]  # a quaternion: seen from one side and above, so that 3D looks it
VOLUMES = ("section_stack", "image_volume", "mask", "segmentation")
ADDRESS = Callable[[str], str]
"""Name of an artifact → URL under which its folder is served."""


def neuroglancer_state(
    artifacts: Mapping[str, Artifact],
    address: ADDRESS,
    *,
    selected: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    layout: str = "4panel",
) -> dict[str, Any]:
    """State that shows artifacts as layers, in the order given; images first is best.

    Mesh and skeleton layers and lists of segment properties join the segmentation that they were made of,
    or the only one there is; tables with positions become points (see :mod:`happyneurons.viewer.points`).
    selected: segments shown in 3D, in all layers or by layer name; by default the largest that have a
    mesh or a skeleton.
    Raises UserError if there is nothing that Neuroglancer can show.
    """

    def chosen(name: str, parts: Iterable[Artifact]) -> Sequence[int]:
        own = selected.get(name) if isinstance(selected, Mapping) else selected
        return _largest(parts) if own is None else own

    layers: list[dict[str, Any]] = []
    taken: set[str] = set()
    for name, artifact in artifacts.items():
        url = f"precomputed://{address(name)}"
        if artifact.kind in ("section_stack", "image_volume"):
            stack = artifact.kind == "section_stack"
            layers.append(_image_layer(name, f"{url}/image" if stack else url))
            if stack and artifact.properties.get("mask"):
                layers.append({**_label_layer(f"{name} mask", [f"{url}/mask"], []), "visible": False})
        elif artifact.kind == "mask":
            # Its classes are few and mostly large: seen through, and out of the way of segments.
            alone = not any(a.kind == "segmentation" for a in artifacts.values())
            layers.append({**_label_layer(name, [url], []), "notSelectedAlpha": 0.35, "visible": alone})
        elif artifact.kind == "segmentation":
            parts = {n: a for n, a in artifacts.items() if _made_of(a, artifact, artifacts)}
            taken |= set(parts)
            sources = [url, *(f"precomputed://{address(n)}{_folder(a)}" for n, a in parts.items())]
            layers.append(_label_layer(name, sources, chosen(name, parts.values())))
    for name, artifact in artifacts.items():
        if artifact.kind in ("mesh_layer", "skeleton_layer") and name not in taken:
            layers.append(_label_layer(name, [f"precomputed://{address(name)}"], chosen(name, [artifact])))
    space = _space(artifacts)
    for name, artifact in artifacts.items():
        if artifact.kind == "table":
            size_nm = [edge * 1e9 for edge, _ in space["dimensions"].values()] if space else (1.0, 1.0, 1.0)
            points = points_layer(name, artifact, size_nm)
            if points is not None:
                layers.append(points)
    if not layers:
        raise UserError(
            f"nothing to show in Neuroglancer: {', '.join(a.kind for a in artifacts.values()) or 'no artifacts'}"
        )
    return {
        **space,
        "layers": layers,
        "layout": layout,
        "showSlices": False,
        "selectedLayer": {"visible": False},
    }


def link(state: Mapping[str, Any], base: str = DEMO) -> str:
    """A link to a Neuroglancer page that opens a state."""
    return f"{base.rstrip('/')}/#!{quote(json.dumps(state, separators=(',', ':')))}"


def has_data(artifact: Artifact) -> bool:
    """Whether Neuroglancer reads files of an artifact: points of tables are in the state."""
    return artifact.kind != "table" or "segment_properties" in artifact.properties


def _folder(part: Artifact) -> str:
    """Where in its folder a source of a segmentation layer lies."""
    return f"/{part.properties['segment_properties']}" if part.kind == "table" else ""


def _made_of(part: Artifact, segmentation: Artifact, artifacts: Mapping[str, Artifact]) -> bool:
    """Whether a mesh or skeleton layer, or a list of segment properties, belongs to a segmentation."""
    if part.kind not in ("mesh_layer", "skeleton_layer", "table") or not has_data(part):
        return False
    source = part.properties.get("source")
    segmentations = [a for a in artifacts.values() if a.kind == "segmentation"]
    known = any(source == a.uri for a in segmentations)
    return source == segmentation.uri if known else len(segmentations) == 1


def _largest(parts: Iterable[Artifact]) -> list[int]:
    """Largest segments that are in all the layers, in the first one's order; meshes come before skeletons.

    Neuroglancer asks for each selected segment in each layer, and waits in vain for what is not there.
    """
    layers = sorted((a for a in parts if a.kind != "table"), key=lambda a: a.kind)
    lists = [a.properties.get("largest_segments") or [] for a in layers]
    if not lists:
        return []
    common = [int(s) for s in lists[0] if all(s in other for other in lists[1:])]
    return (common or [int(s) for s in lists[0]])[:SHOWN_SEGMENTS]


def _image_layer(name: str, source: str) -> dict[str, Any]:
    return {
        "type": "image",
        "name": name,
        "source": source,
        "shaderControls": {"normalized": {"range": [0, 255]}},
    }


def _label_layer(name: str, sources: Sequence[str], selected: Sequence[int]) -> dict[str, Any]:
    from happyneurons.stages.preview.colors import color_of

    colors = color_of(np.array(selected, dtype=np.uint64).reshape(-1))
    return {
        "type": "segmentation",
        "name": name,
        "source": list(sources),
        "segments": [str(s) for s in selected],
        # The colours of our pictures.
        "segmentColors": {
            str(s): "#{:02x}{:02x}{:02x}".format(*c) for s, c in zip(selected, colors.tolist(), strict=True)
        },
        "selectedAlpha": 0.4,
        "notSelectedAlpha": 0.15,
    }


def _space(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Dimensions, position and scales, from the first artifact that has a voxel size."""
    placed = [a for a in artifacts.values() if a.voxel_size_nm_xyz is not None and a.bounds is not None]
    placed.sort(key=lambda a: a.kind not in VOLUMES)
    if not placed:
        return {}
    size, bounds = placed[0].voxel_size_nm_xyz, placed[0].bounds
    assert size is not None
    assert isinstance(bounds, Bounds)
    low, high = np.array(bounds.minimum_xyz), np.array(bounds.maximum_xyz)
    # Scales are in units of the smallest voxel edge, as Neuroglancer takes them.
    extent = float(((high - low) * size).max()) / min(size)
    return {
        "dimensions": {axis: [float(nm) * 1e-9, "m"] for axis, nm in zip("xyz", size, strict=True)},
        "position": [float(v) for v in (low + high) / 2],
        "crossSectionScale": extent / PANEL_PX,
        "projectionScale": extent * 1.6,
        "projectionOrientation": OBLIQUE,
    }
