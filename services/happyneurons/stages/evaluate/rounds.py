"""The rounds of an evaluation. Samples and tables lie beside the report they end up in:

montage/{z:06d}.npz     seam, residual (px), unplaced (n, 2) tiles as (row, col)
alignment/{z:06d}.npz   xy: where the sample points came to lie in the aligned section
labels/{block}.npz      sparse tables (truth, segment): raw and filled
report.json             everything

What comes of the tables: happyneurons.stages.evaluate.tables; of skeletons: .erl; objects of a large truth: .parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np

from happyneurons.errors import NotFoundError, UserError
from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.geometry import alignment_errors, figures, montage_errors
from happyneurons.metrics.pairs import PairTable
from happyneurons.metrics.segmentation import coverage, fill_nearest, scores, truth_table
from happyneurons.stages.evaluate import erl, masks
from happyneurons.stages.evaluate.stage import REPORT, report_metrics
from happyneurons.stages.evaluate.subject import Subject
from happyneurons.stages.evaluate.tables import Tables, objects_report, skeletons_csv, whole_table
from happyneurons.stages.evaluate.tissue import TrueSection
from happyneurons.store.triples import Triple


def _sections(context: Context[Any]) -> Iterable[Task]:
    z0, z1 = Subject.of(context).document.z_range
    for z in range(z0, z1):
        yield Task(key=f"{z:06d}", payload={"z": z})


class Montage(Round):
    """Task: a section; measures seams and the places of its tiles."""

    name = "montage"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _sections(context)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, z = Subject.of(context), int(task.payload["z"])
        section = subject.acquisition.section_warp(z)
        if section is None:  # the microscope left it out
            return TaskResult(data={"acquired": False})
        true = {}
        for row, col in product(range(subject.document.rows), range(subject.document.cols)):
            warp = subject.acquisition.tile_warp(z, row, col)
            if warp is not None:
                true[row, col] = TrueSection(warp, section)
        width, height = subject.tile_size_xy
        errors = montage_errors(
            {tile: subject.montage.warp(z, tile) for tile in true},
            true,
            (width, height),
            spacing_px=max(8.0, float(np.sqrt(width * height / 2500))),
        )
        context.output_store(REPORT).put_arrays(
            f"montage/{task.key}.npz",
            seam=errors.seam,
            residual=errors.residual,
            unplaced=np.asarray(errors.unplaced, np.int64).reshape(-1, 2),
        )
        return TaskResult(data={"acquired": True, "unplaced": len(errors.unplaced)})


class Alignment(Round):
    """Task: a section; where points of the tissue, the same ones for all sections, came to lie."""

    name = "alignment"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        return _sections(context)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject, z = Subject.of(context), int(task.payload["z"])
        if subject.acquisition.section_warp(z) is None:
            return TaskResult(data={"acquired": False})
        xy = subject.tissue.aligned(z, _sample_points(context))
        context.output_store(REPORT).put_arrays(f"alignment/{task.key}.npz", xy=xy)
        return TaskResult(data={"acquired": True, "points": int(np.isfinite(xy[:, 0]).sum())})


def _sample_points(context: Context[Any]) -> np.ndarray:
    def make() -> np.ndarray:
        subject = Subject.of(context)
        for z in range(*subject.document.z_range):
            points = subject.tissue.sample_points(z)
            if points is not None:
                return points
        raise UserError("evaluate: no section of the acquisition is in the montage; is it the right acquisition?")

    points: np.ndarray = context.once("sample points", make)
    return points


class Labels(Round):
    """Task: a block of the segmentation; counts which segments lie on which truth, and those at skeletons' nodes."""

    name = "labels"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        subject = Subject.of(context)
        # Without labels only the blocks with nodes have to be read.
        wanted = None if subject.scores_labels else erl.blocks_with_nodes(context)
        for number, block in enumerate(subject.grid):
            if wanted is None or number in wanted:
                low, high = list(block.start_zyx), list(block.stop_zyx)
                key = "_".join(str(v) for v in (*low, *high))
                yield Task(key=key, payload={"number": number, "start_zyx": low, "stop_zyx": high})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject = Subject.of(context)
        (z0, y0, x0), (z1, y1, x1) = task.payload["start_zyx"], task.payload["stop_zyx"]
        start, stop = (z0, y0, x0), (z1, y1, x1)
        segments = _segments(subject, start, stop)
        data = {}
        if subject.scores_labels:
            truth = subject.truth.read(start, stop)
            raw = PairTable.of(truth.objects, segments["raw"], start)
            fill = truth_table(segments["fill"], truth.objects) if "fill" in segments else None
            objects, first = np.unique(raw.first, return_index=True)
            labels = truth.labels[tuple((raw.place_zyx[first] - start).T)]
            Tables(raw, fill, objects, labels).write(context.output_store(REPORT), f"labels/{task.key}.npz")
            data["scored"] = int(raw.counts.sum())
        if subject.scores_skeletons:
            data["nodes"] = erl.look_up(context, task, start, segments)
        return TaskResult(data=data, voxels=int(np.prod(np.subtract(stop, start))))


def _segments(subject: Subject, start: Triple, stop: Triple) -> dict[str, np.ndarray]:
    """raw, and fill if that is asked for: (z, y, x) segment ids of a block."""
    if subject.params.fill == "none":
        return {"raw": subject.segmentation.read(start, stop)}
    reach = None if subject.in_one_piece else subject.params.fill_reach_voxels
    low = np.maximum(np.subtract(start, reach or 0), subject.box[0]).tolist()
    high = np.minimum(np.add(stop, reach or 0), subject.box[1]).tolist()
    around = subject.segmentation.read(low, high)
    inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, low, strict=True))
    return {"raw": around[inside], "fill": fill_nearest(around, reach)[inside]}


class Summary(Round):
    """One task: puts the report together."""

    name = "summary"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield Task(key="all")

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        subject = Subject.of(context)
        report: dict[str, Any] = {}
        if subject.scores_labels:
            report["segmentation"] = _labels_report(context)
        if subject.scores_skeletons:
            report["skeletons"] = erl.erl_report(context)
            skeletons_csv(context, erl.skeleton_rows(context, "raw", "nm"))
        if subject.scores_montage:
            report["montage"] = _montage_report(context)
        if subject.scores_alignment:
            report["alignment"] = _alignment_report(context)
        if masks.scores_masks(context):
            report["mask"] = masks.masks_report(context)
        context.output_store(REPORT).put_json("report.json", report)
        return TaskResult(data={"metrics": report_metrics(report)})


def _labels_report(context: Context[Any]) -> dict[str, Any]:
    subject = Subject.of(context)
    tables = whole_table(context)
    raw = tables.raw.contingency()
    if not raw.counts.sum():
        raise UserError("evaluate: there is no truth where the segmentation is; do both lie in the same coordinates?")
    start, stop = subject.box
    report: dict[str, Any] = {
        "frame": "tissue" if subject.through_tissue else "volume",
        "bounds": {"minimum_xyz": start[::-1], "maximum_xyz": stop[::-1]},
        "truth_relabelled": subject.relabels,
        "truth_voxels": int(raw.counts.sum()),
        "truth_objects": len(np.unique(raw.first)),
        "coverage": coverage(raw),
        "raw": _scores(raw),
        "unscored_blocks": list(context.quarantined(Labels.name)),
        **objects_report(context, tables),
    }
    if tables.fill is not None:
        report["fill"] = _scores(tables.fill)
        report["fill_coverage"] = coverage(tables.fill)
        report["fill_reach_voxels"] = None if subject.in_one_piece else subject.params.fill_reach_voxels
    return report


def _scores(table: Contingency) -> dict[str, float] | None:
    """None where no voxel is labelled in both."""
    result = scores(table)
    return result.as_dict() if result.voxels else None


def _montage_report(context: Context[Any]) -> dict[str, Any]:
    store = context.output_store(REPORT)
    seams, residuals, sections, failed, unplaced = [np.zeros(0)], [np.zeros(0)], [], [], []
    for key, data in context.results(Montage.name):
        if not data["acquired"]:
            continue
        arrays = store.get_arrays(f"montage/{key}.npz")
        unplaced += [[int(key), *tile] for tile in arrays["unplaced"].tolist()]
        seams.append(arrays["seam"])
        residuals.append(arrays["residual"])
        if not len(arrays["residual"]):
            failed.append(int(key))
            continue
        sections.append({"z": int(key), "seam": figures(arrays["seam"]), "global": figures(arrays["residual"])})
    return {
        "seam": figures(np.concatenate(seams)),
        "global": figures(np.concatenate(residuals)),
        "failed_sections": failed,
        "unplaced_tiles_z_row_col": unplaced,
        "sections": sections,
    }


def _alignment_report(context: Context[Any]) -> dict[str, Any]:
    store = context.output_store(REPORT)
    places, failed = {}, []
    for key, data in context.results(Alignment.name):
        if not data["acquired"]:
            continue
        try:
            xy = store.get_arrays(f"alignment/{key}.npz")["xy"]
        except NotFoundError:
            continue
        if np.isfinite(xy).any():
            places[int(key)] = xy
        else:
            failed.append(int(key))
    errors = alignment_errors(_sample_points(context), places)
    return {
        "adjacent": figures(np.concatenate([np.zeros(0), *errors.adjacent.values()])),
        "absolute": figures(errors.absolute),
        "absolute_affine": figures(errors.absolute_affine),
        "failed_sections": failed,
        "sections": [{"z": z, "adjacent": figures(errors.adjacent[z]) if z in errors.adjacent else {}} for z in places],
    }
