"""The rounds of preview: `draw` makes single pictures, `sheets` overviews, the index and the notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from happyneurons.errors import HappyError, TaskError
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.store.artifacts import Artifact
from happyneurons.store.volumes import open_volume

if TYPE_CHECKING:
    from happyneurons.stages.preview.stage import PreviewParams

PICTURES = "pictures"
_SECTION = re.compile(r"^sections/(\d+)\.json$")
LABELS = ("mask", "segmentation")


def _image_uri(artifact: Artifact) -> str:
    return f"{artifact.data_uri}/image" if artifact.kind == "section_stack" else artifact.data_uri


def _place(artifact: Artifact) -> str:
    """Where an artifact lies inside its store: the same wherever the store is, so that results are, too."""
    _, jobs, rest = artifact.uri.rpartition("/jobs/")
    return f"jobs/{rest}" if jobs else artifact.uri


def _sections(artifact: Artifact, params: PreviewParams) -> list[int]:
    """Section numbers of an artifact to draw."""
    if artifact.kind == "tile_set":
        matches = (_SECTION.match(path) for path in artifact.store().list("sections"))
        there = sorted(int(m[1]) for m in matches if m)
    else:
        volume = open_volume(_image_uri(artifact))
        there = list(range(volume.start_zyx[0], volume.stop_zyx[0]))
    if params.sections:
        return [z for z in sorted(set(params.sections)) if z in set(there)]
    # The middles of equal parts: the first and the last section are seldom typical.
    picks = {there[int((i + 0.5) * len(there) / params.samples)] for i in range(params.samples)} if there else set()
    return sorted(picks)


class Draw(Round):
    """Task: one picture."""

    name = "draw"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        params: PreviewParams = context.params
        for number, artifact in enumerate(context.inputs["results"]):
            stem = f"{number:02d}_{artifact.kind}"
            if artifact.kind == "mesh_layer":
                yield Task(key=f"{stem}_neurons", payload={"input": number, "view": "neurons", "index": 0})
                continue
            for z in _sections(artifact, params):
                yield Task(key=f"{stem}_xy_{z:06d}", payload={"input": number, "view": "xy", "index": z})
            if params.cuts and artifact.kind != "tile_set":
                volume = open_volume(_image_uri(artifact))
                for view, axis in (("xz", 1), ("yz", 2)):
                    middle = (volume.start_zyx[axis] + volume.stop_zyx[axis]) // 2
                    yield Task(
                        key=f"{stem}_{view}_{middle:06d}", payload={"input": number, "view": view, "index": middle}
                    )

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.preview.png import png

        number, view, index = (task.payload[name] for name in ("input", "view", "index"))
        artifact = context.inputs["results"][number]
        try:
            picture, title = _draw(context, number, view, index)
        except HappyError as error:
            raise TaskError(f"picture {task.key} of {artifact.uri}: {error}") from error
        data = png(picture)
        context.output_store(PICTURES).put(f"{task.key}.png", data)
        entry = {
            "file": f"{task.key}.png", "title": title, "kind": artifact.kind, "view": view, "index": index,
            "artifact": _place(artifact), "input": number, "width": picture.shape[1], "height": picture.shape[0],
        }  # fmt: skip
        return TaskResult(data=entry, bytes=len(data))


def _draw(context: Context[Any], number: int, view: Any, index: int) -> tuple[np.ndarray, str]:
    """(picture, title) of one view of an input."""
    from happyneurons.stages.preview.colors import colored, overlay
    from happyneurons.stages.preview.neurons import neurons_picture
    from happyneurons.stages.preview.planes import as_grey, stretch
    from happyneurons.stages.preview.tiles import tile_grid

    params: PreviewParams = context.params
    artifact = context.inputs["results"][number]
    name = artifact.kind.replace("_", " ")
    if artifact.kind == "mesh_layer":
        picture, ids = neurons_picture(artifact, params.neurons, params.max_px, params.max_px * 3 // 4)
        return picture, f"the {len(ids)} largest neurons"
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

    full = open_volume(_image_uri(frame))
    volume = finest_needed(_image_uri(shown), max_px)
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


class Sheets(Round):
    """Task: the whole; it handles pictures only, which are small."""

    name = "sheets"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.preview.notebook import notebook
        from happyneurons.stages.preview.png import png, read_png, sheet

        params: PreviewParams = context.params
        store = context.output_store(PICTURES)
        entries = [dict(data) for _, data in context.results(Draw.name)]
        sheets = []
        for number, artifact in enumerate(context.inputs["results"]):
            own = [e for e in entries if e["input"] == number]
            if len(own) < 2:
                continue
            columns = min(len(own), 3)
            pictures = [read_png(store.get(e["file"])) for e in own]
            overview = sheet(
                pictures, [e["title"] for e in own], columns=columns, cell_px=max(64, params.max_px // columns)
            )
            name = f"{number:02d}_{artifact.kind}_sheet.png"
            store.put(name, png(overview))
            sheets.append({
                "file": name, "title": artifact.kind.replace("_", " "), "kind": artifact.kind, "view": "sheet",
                "index": 0, "artifact": _place(artifact), "input": number,
                "width": overview.shape[1], "height": overview.shape[0],
            })  # fmt: skip
        store.put_json("index.json", {"pictures": sorted(sheets + entries, key=lambda e: (e["input"], e["file"]))})
        store.put_json("preview.ipynb", notebook("HAPPYNeurons: pictures"))
        return TaskResult(data={"sheets": [s["file"] for s in sheets]})
