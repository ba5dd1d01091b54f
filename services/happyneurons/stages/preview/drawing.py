"""Single pictures of artifacts of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import TaskError
from happyneurons.jobs.stage import Context
from happyneurons.store.artifacts import Artifact
from happyneurons.store.volumes import open_volume

if TYPE_CHECKING:
    from happyneurons.stages.preview.stage import PreviewParams

LABELS = ("mask", "segmentation")
PLANES = ("tile_set", "section_stack", "image_volume", *LABELS)
"""Kinds that are drawn section by section."""


def image_uri(artifact: Artifact) -> str:
    """The volume of an artifact that has one."""
    return f"{artifact.data_uri}/image" if artifact.kind == "section_stack" else artifact.data_uri


def draw(context: Context[Any], number: int, view: Any, index: int, part: str) -> tuple[np.ndarray, str]:
    """(picture, title) of one view of an input. part: name of what is drawn of it, where it has several."""
    from happyneurons.stages.preview.colors import colored, overlay
    from happyneurons.stages.preview.planes import as_grey, stretch
    from happyneurons.stages.preview.tiles import tile_grid

    params: PreviewParams = context.params
    artifact = context.inputs["results"][number]
    name = artifact.kind.replace("_", " ")
    if artifact.kind not in PLANES:
        return _whole(artifact, view, part, params)
    status = (
        artifact.store().find_json(f"sections/{index:06d}.json") if _by_section(artifact) and view == "xy" else None
    )
    where = f"section {index}" if view == "xy" else f"{view} cut at {'y' if view == 'xz' else 'x'} = {index}"
    title = f"{name}, {where}" + (f" ({status['status']})" if status else "")
    if artifact.kind == "tile_set":
        return tile_grid(status or {}, params.max_px), title.replace("tile set", "raw tiles")
    cut = _cut(artifact, artifact, view, index, params.max_px)
    assert cut is not None  # every volume covers itself
    if artifact.kind not in LABELS:
        return as_grey(cut), title
    behind = _image_behind(context, number, view, index)
    if behind is None:
        return colored(cut), title
    factors = [have / got for have, got in zip(cut.shape, behind.shape, strict=True)]
    return overlay(stretch(as_grey(behind), factors), cut, params.color_alpha), title


def _cut(shown: Artifact, frame: Artifact, view: Any, index: int, max_px: int) -> np.ndarray | None:
    """What `shown` has in a cut through the box of `frame`; None if it does not cover it."""
    from happyneurons.stages.preview.planes import AXES, at_level, finest_needed, plane

    full = open_volume(image_uri(frame))
    volume = finest_needed(image_uri(shown), max_px)
    start, stop = list(full.start_zyx), list(full.stop_zyx)
    box = at_level(full, volume, start, stop)
    normal = AXES[view][0]
    start[normal], stop[normal] = index, index + 1
    here = at_level(full, volume, start, stop)
    if box is None or here is None:
        return None
    return plane(volume, view, here[0][normal], max_px, labels=shown.kind in LABELS, box=box)


def _image_behind(context: Context[Any], number: int, view: Any, index: int) -> np.ndarray | None:
    """The cut through the last image before a segmentation in the list that covers it."""
    frame = context.inputs["results"][number]
    for artifact in reversed(context.inputs["results"][:number]):
        if artifact.kind in ("section_stack", "image_volume"):
            cut = _cut(artifact, frame, view, index, context.params.max_px)
            if cut is not None:
                return cut
    return None


def _by_section(artifact: Artifact) -> bool:
    return artifact.kind in ("tile_set", "section_stack")


def _whole(artifact: Artifact, view: str, part: str, params: PreviewParams) -> tuple[np.ndarray, str]:
    """(picture, title) of an artifact that is no volume."""
    from happyneurons.stages.preview.charts import curves, figures, table_picture
    from happyneurons.stages.preview.colors import colored
    from happyneurons.stages.preview.neurons import neurons_picture
    from happyneurons.stages.preview.png import fit, read_png
    from happyneurons.stages.preview.skeletons import skeletons_picture

    width, height = params.max_px, params.max_px * 3 // 4
    if view == "neurons":
        picture, ids = neurons_picture(artifact, params.neurons, width, height)
        return picture, f"the {len(ids)} largest neurons"
    if view == "skeletons":
        picture, ids = skeletons_picture(artifact, params.neurons, width, height)
        return picture, f"the {len(ids)} largest skeletons"
    store = artifact.store()
    if view == "table":
        document = store.get_json("table.json")
        rows = document["rows"]
        return table_picture(document["columns"], rows), f"table of {len(rows)} rows"
    if view == "figures":
        found = list(figures(store.get_json("report.json")))
        return table_picture(["figure", "value"], found), f"report, {len(found)} figures"
    if view == "curves":
        drawn = curves(store.get_json("history.json"), min(width, 900), min(height, 420))
        if drawn is None:
            raise TaskError("history.json has no figures")
        return drawn, "training"
    if view == "sample":
        return fit(read_png(store.get(part)), width), f"training, {part.removesuffix('.png').replace('/', ' ')}"
    labels = store.get_arrays(f"{part}.npz")["segmentation"]
    z = labels.shape[0] // 2
    return fit(colored(labels[z]), width), f"subvolume {part} (z, y, x), its section {z}"
