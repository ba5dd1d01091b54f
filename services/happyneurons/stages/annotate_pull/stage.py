"""annotate-pull: what people drew in WEBKNOSSOS, as labels to train on, points and skeletons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from happyneurons.jobs.stage import (
    Context,
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.stages.annotate_pull.params import AnnotatePullParams
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    from happyneurons.formats.base import VolumeInfo, Writer
    from happyneurons.stages.annotate_pull.annotation import Annotation


def _annotation(context: Context[AnnotatePullParams]) -> Annotation:
    from happyneurons.stages.annotate_pull.annotation import Annotation

    return Annotation.of(context)


def _labels(context: Context[AnnotatePullParams]) -> VolumeInfo | None:
    return _annotation(context).labels


def _writer(context: Context[AnnotatePullParams], info: VolumeInfo) -> Writer:
    from happyneurons.formats.base import WriteOptions
    from happyneurons.formats.registry import make_writer

    options = WriteOptions(context.params.chunk_px, threads=context.threads)
    writer: Writer = context.once(
        "writer", lambda: make_writer(context.output_uri("labels"), "precomputed", [info], options)
    )
    return writer


class Labels(Round):
    """Task: a box of whole chunks."""

    name = "labels"

    def prepare(self, context: Context[AnnotatePullParams]) -> None:
        info = _labels(context)
        if info is not None:
            _writer(context, info).prepare()

    def plan(self, context: Context[AnnotatePullParams]) -> Iterable[Task]:
        from happyneurons.formats.blocks import boxes, task_shape

        info = _labels(context)
        if info is None:
            return
        writer = _writer(context, info)
        shape = task_shape(writer.unit_zyx(0), info.shape_zyx, 8, context.params.task_mb * 1_000_000, False)
        for start, stop in boxes(info.start_zyx, info.stop_zyx, writer.grid_zyx(0), shape):
            name = "_".join(f"{a}-{b}" for a, b in zip(start, stop, strict=True))
            yield Task(name.replace("--", "-m"), {"box": [list(start), list(stop)]})

    def run(self, task: Task, context: Context[AnnotatePullParams]) -> TaskResult:
        import crc32c

        info = _labels(context)
        assert info is not None, "no tasks are planned then"
        (z0, y0, x0), (z1, y1, x1) = task.payload["box"]
        block = _annotation(context).read_labels((z0, y0, x0), (z1, y1, x1))
        _writer(context, info).write(0, (z0, y0, x0), block)
        data = {"largest": int(block.max()), "labelled": int((block > 0).sum()), "crc32c": crc32c.crc32c(block.data)}
        return TaskResult(data, voxels=block.size, bytes=block.nbytes)


class Drawings(Round):
    """Task: the table of points; the skeletons."""

    name = "drawings"

    def plan(self, context: Context[AnnotatePullParams]) -> Iterable[Task]:
        for kind in ("points", "skeletons"):
            if kind in _annotation(context).take:
                yield Task(kind)

    def run(self, task: Task, context: Context[AnnotatePullParams]) -> TaskResult:
        from happyneurons.annotations import drawings

        found, store = _annotation(context), context.output_store(task.key)
        if task.key == "points":
            rows = drawings.point_rows(found.file.nml, found.trees, found.shift_xyz)
            store.put_json("table.json", {"columns": list(drawings.COLUMNS), "rows": rows})
            return TaskResult({"points": len(rows)})
        traced, length = [tree for tree in found.trees if len(tree.edges)], 0.0
        for tree in traced:
            places = drawings.places_nm(tree, found.voxel_size_nm_xyz, found.shift_xyz)
            store.put(str(tree.id), drawings.skeleton_bytes(places, tree.edges))
            length += drawings.cable_nm(places, tree.edges)
        store.put_json("segment_properties/info", drawings.segment_properties(traced))
        store.put_json("info", drawings.SKELETON_INFO)
        return TaskResult({"skeletons": len(traced), "path_um": round(length / 1000, 3)})


class AnnotatePull(Stage[AnnotatePullParams]):
    name, version = "annotate-pull", "1"
    summary = "A WEBKNOSSOS annotation as labels to train on, points and skeletons"
    Params = AnnotatePullParams
    inputs = {
        "dataset": InputSpec(
            "volume_files", "what annotate-push made: the annotation must be of it, and gets its place", optional=True
        ),
        "fallback": InputSpec("segmentation", "what shows where nobody painted: what was pushed", optional=True),
    }
    outputs = {
        "labels": OutputSpec("segmentation", "painted labels, exact, for ffn-train and mask-train", True),
        "points": OutputSpec("table", "nodes of all trees, in voxels: seeds of segment", True),
        "skeletons": OutputSpec("skeleton_layer", "trees with edges, in nm: truth of evaluate's run length", True),
    }

    def fingerprint(self, params: AnnotatePullParams) -> str | None:
        from happyneurons.annotations.archive import content_digest

        return content_digest(params.source)

    def check(self, context: Context[AnnotatePullParams]) -> None:
        _annotation(context)

    def rounds(self, context: Context[AnnotatePullParams]) -> Sequence[Round]:
        return [Labels(), Drawings()]

    def finish(self, context: Context[AnnotatePullParams]) -> StageResult:
        found = _annotation(context)
        drawn = dict(context.results(Drawings.name))
        outputs: dict[str, Output] = {}
        metrics: dict[str, float] = {}
        properties = {"source": context.params.source, "dataset": found.file.nml.dataset}
        size = found.voxel_size_nm_xyz
        if found.labels is not None:
            info = found.labels
            bounds = Bounds(minimum_xyz=info.start_zyx[::-1], maximum_xyz=info.stop_zyx[::-1])
            outputs["labels"] = Output("segmentation", info.voxel_size_nm_xyz, bounds, properties)
            blocks = [data for _, data in context.results(Labels.name)]
            metrics["labelled_voxels"] = float(sum(int(d["labelled"]) for d in blocks))
            metrics["largest_label"] = float(max(int(d["largest"]) for d in blocks))
            metrics["changed_blocks"] = float(0 if found.volume is None else len(found.volume.blocks))
        if "points" in drawn:
            outputs["points"] = Output("table", size, None, {**properties, **drawn["points"]})
            metrics["points"] = float(drawn["points"]["points"])
        if "skeletons" in drawn:
            outputs["skeletons"] = Output("skeleton_layer", size, None, {**properties, **drawn["skeletons"]})
            metrics.update({name: float(value) for name, value in drawn["skeletons"].items()})
        return StageResult(outputs, metrics)
