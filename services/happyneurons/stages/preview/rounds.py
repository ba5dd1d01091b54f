"""The rounds of preview: `draw` makes single pictures, `sheets` overviews, the index and the notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from happyneurons.errors import HappyError, TaskError
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.preview.drawing import PLANES, draw, image_uri
from happyneurons.store.artifacts import Artifact
from happyneurons.store.volumes import open_volume

if TYPE_CHECKING:
    from happyneurons.stages.preview.stage import PreviewParams

T = TypeVar("T")

PICTURES = "pictures"
_SECTION = re.compile(r"^sections/(\d+)\.json$")
_BOX = re.compile(r"^(-?\d+_-?\d+_-?\d+)\.npz$")
WHOLE = {"mesh_layer": "neurons", "skeleton_layer": "skeletons", "table": "table", "report": "figures"}
"""Kinds that one picture shows, and the name of that view."""


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
        volume = open_volume(image_uri(artifact))
        there = list(range(volume.start_zyx[0], volume.stop_zyx[0]))
    if params.sections:
        return [z for z in sorted(set(params.sections)) if z in set(there)]
    return _spread(there, params.samples)


def _spread(there: Sequence[T], count: int) -> list[T]:
    """The middles of equal parts: the first and the last one are seldom typical."""
    picks = sorted({int((i + 0.5) * len(there) / count) for i in range(count)}) if there else []
    return [there[i] for i in picks]


def _other_views(artifact: Artifact, params: PreviewParams) -> dict[str, list[str]]:
    """Views of an artifact that are no planes of a volume → names of what each shows ("": all of it)."""
    if artifact.kind in WHOLE:
        return {WHOLE[artifact.kind]: [""]}
    if artifact.kind == "subvolumes":
        boxes = sorted(m[1] for m in (_BOX.match(path) for path in artifact.store().list("")) if m)
        return {"box": _spread(boxes, params.samples)}
    if artifact.kind == "model" and not artifact.data_uri.startswith("ckpt://"):
        there = list(artifact.store().list(""))
        samples = sorted(path for path in there if path.startswith("samples/") and path.endswith(".png"))
        return {"curves": [""] if "history.json" in there else [], "sample": samples[-1:]}
    return {}


class Draw(Round):
    """Task: one picture."""

    name = "draw"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        params: PreviewParams = context.params
        for number, artifact in enumerate(context.inputs["results"]):
            stem = f"{number:02d}_{artifact.kind}"
            for view, names in _other_views(artifact, params).items():
                for name in names:
                    ending = f"_{name}".replace("/", "_") if name else ""
                    payload = {"input": number, "view": view, "index": 0, "name": name}
                    yield Task(key=f"{stem}_{view}{ending}", payload=payload)
            if artifact.kind not in PLANES:
                continue
            for z in _sections(artifact, params):
                yield Task(key=f"{stem}_xy_{z:06d}", payload={"input": number, "view": "xy", "index": z})
            if params.cuts and artifact.kind != "tile_set":
                volume = open_volume(image_uri(artifact))
                for view, axis in (("xz", 1), ("yz", 2)):
                    middle = (volume.start_zyx[axis] + volume.stop_zyx[axis]) // 2
                    yield Task(
                        key=f"{stem}_{view}_{middle:06d}", payload={"input": number, "view": view, "index": middle}
                    )

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.preview.png import png

        number, view, index = (task.payload[name] for name in ("input", "view", "index"))
        name = task.payload.get("name", "")
        artifact = context.inputs["results"][number]
        try:
            picture, title = draw(context, number, view, index, name)
        except HappyError as error:
            raise TaskError(f"picture {task.key} of {artifact.uri}: {error}") from error
        data = png(picture)
        context.output_store(PICTURES).put(f"{task.key}.png", data)
        entry = {
            "file": f"{task.key}.png", "title": title, "kind": artifact.kind, "view": view, "index": index,
            "artifact": _place(artifact), "input": number, "width": picture.shape[1], "height": picture.shape[0],
        }  # fmt: skip
        return TaskResult(data=entry, bytes=len(data))


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
