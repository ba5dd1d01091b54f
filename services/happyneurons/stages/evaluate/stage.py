"""Evaluate: a segmentation, a montage and an alignment against what is known to be true."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from happyneurons.errors import UserError
from happyneurons.jobs.stage import Context, InputSpec, Output, OutputSpec, Round, Stage, StageParams, StageResult
from happyneurons.store.documents import Store, local_path

REPORT = "report"


class EvaluateParams(StageParams):
    acquisition: str | None = Field(
        None,
        description="Folder of a simulated acquisition (path or file:// URI). With it montage and alignment are "
        "measured, and truth labels are carried into the aligned frame; without it the truth lies in the "
        "segmentation's own frame",
        json_schema_extra={"format": "uri-reference"},
    )
    fill: Literal["nearest", "none"] = Field(
        "nearest",
        description="nearest: score also with unsegmented voxels given to the nearest segment (figures fill_…); "
        "none: only voxels that are segmented, with the coverage",
    )
    bounds_xyz: tuple[tuple[int, int, int], tuple[int, int, int]] | None = Field(
        None,
        description="Part of the segmentation to score: minimum and maximum (exclusive), voxels; default: all of it",
    )
    inner_margin_xyz: tuple[int, int, int] = Field(
        (0, 0, 0), description="Voxels left out at each face (x, y, z), where a segmentation lacks context"
    )
    relabel_truth: bool = Field(
        True,
        description="Bodies that enter the scored part twice count as two objects (26-connected parts of the truth)",
    )
    one_piece_max_voxels: int = Field(
        2**25,
        ge=0,
        description="Parts up to this size are scored in one piece, larger ones block by block: by the same rules, "
        "but for the reach of fill",
    )
    block_voxels: int = Field(256, ge=32, le=1024, description="Edge of those blocks, voxels")
    fill_reach_voxels: int = Field(
        32,
        ge=1,
        le=512,
        description="Block by block, fill: nearest gives a voxel to the nearest segment if that is at most this far "
        "away (voxels); what is farther stays unsegmented (figure fill_coverage). In one piece nothing is too far",
    )
    merger_nodes: int = Field(
        50,
        ge=1,
        description="Run length: a segment with at least this many nodes of two or more skeletons is a merger",
    )
    skeletons_per_task: int = Field(100, ge=1, le=100_000, description="Skeletons that one task reads")
    swc_unit_nm: float = Field(1000.0, gt=0, description="Unit of SWC files in nm; 1000 for those in µm")
    mask_labels: Literal["classes", "objects"] = Field(
        "classes",
        description="What the labels of mask and mask_truth are: classes, equal numbers meaning the same, or objects, "
        "which are matched",
    )
    mask_match_iou: float = Field(
        0.5,
        ge=0.5,
        lt=1,
        description="A true object is found if one of the mask has this IoU with it, or more (of 0.5: more)",
    )
    worst: int = Field(20, ge=0, le=1000, description="Splits and mergers that report.json lists, the costliest first")


class Evaluate(Stage[EvaluateParams]):
    name, version = "evaluate", "2"
    summary = "VOI, adapted Rand error, expected run length; montage and alignment errors in px"
    Params = EvaluateParams
    inputs = {
        "segmentation": InputSpec("segmentation", "what to score", optional=True),
        "truth": InputSpec(
            "segmentation",
            "ground truth; default: the labels of the acquisition, in whose coordinates it then has to be",
            optional=True,
        ),
        "skeletons": InputSpec(
            "skeleton_layer",
            "true skeletons for the expected run length, in nm of the truth's coordinates: of the stage skeletonize, "
            "another precomputed layer, or swc://FOLDER",
            optional=True,
        ),
        "montage": InputSpec("section_stack", "montaged sections of the acquisition", optional=True),
        "mask": InputSpec(
            ("mask", "segmentation", "image_volume"), "a mask, or its objects, to score by Dice and IoU", optional=True
        ),
        "mask_truth": InputSpec(
            ("mask", "segmentation", "image_volume"), "what is true of it; any resolution", optional=True
        ),
        "aligned": InputSpec(
            "section_stack", "aligned sections of that montage, the frame of the segmentation", optional=True
        ),
    }
    outputs = {
        REPORT: OutputSpec("report", "report.json: all figures; objects.csv, segments.csv, skeletons.csv: one by one")
    }

    def fingerprint(self, params: EvaluateParams) -> str | None:
        folder = None if params.acquisition is None else local_path(params.acquisition)
        if folder is None:
            return None
        digest = hashlib.sha256()
        for file in sorted([*folder.glob("acquisition.json"), *folder.glob("truth/*")]):
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
            if file.suffix == ".json":
                digest.update(file.read_bytes())
        return digest.hexdigest()

    def check(self, context: Context[EvaluateParams]) -> None:
        from happyneurons.stages.evaluate.masks import check_masks, scores_masks
        from happyneurons.stages.evaluate.subject import Subject

        subject = Subject.of(context)
        if scores_masks(context):
            check_masks(context)
        elif context.optional_input("mask_truth") is not None:
            raise UserError("evaluate: mask_truth says nothing without a mask; give the input mask")
        elif not (subject.scores_segments or subject.scores_montage or subject.scores_alignment):
            raise UserError(
                "evaluate: nothing to compare; give segmentation and truth (or skeletons), or params.acquisition with "
                "montage (and aligned)"
            )
        if subject.scores_segments and context.params.acquisition is not None and not subject.through_tissue:
            raise UserError(
                "evaluate: with params.acquisition, give the aligned sections that were segmented as aligned"
            )
        if context.optional_input("segmentation") is not None and not subject.scores_segments:
            raise UserError("evaluate: no ground truth for the segmentation; give the input truth or skeletons")
        if context.optional_input("skeletons") is not None and context.optional_input("segmentation") is None:
            raise UserError("evaluate: skeletons say nothing without a segmentation; give the input segmentation")
        if subject.scores_segments:
            subject.check_labels()

    def rounds(self, context: Context[EvaluateParams]) -> Sequence[Round]:
        from happyneurons.stages.evaluate.erl import Crossings, Nodes, Runs
        from happyneurons.stages.evaluate.masks import Masks, scores_masks
        from happyneurons.stages.evaluate.parts import JoinedObjects, Joins, Parts
        from happyneurons.stages.evaluate.rounds import Alignment, Labels, Montage, Summary
        from happyneurons.stages.evaluate.subject import Subject
        from happyneurons.stages.evaluate.tables import Sums

        subject = Subject.of(context)
        rounds: list[Round] = [Masks()] if scores_masks(context) else []
        if subject.scores_montage:
            rounds.append(Montage())
        if subject.scores_alignment:
            rounds.append(Alignment())
        if subject.part_grid is not None:
            rounds += [Parts(subject.part_grid), Joins(subject.part_grid), JoinedObjects(subject.part_grid)]
        if subject.scores_skeletons:
            rounds.append(Nodes(subject))
        if subject.scores_segments:
            rounds.append(Labels())
        if subject.scores_skeletons:
            rounds += [Crossings(), Runs()]
        if subject.scores_labels:
            rounds.append(Sums())
        return [*rounds, Summary()]

    def finish(self, context: Context[EvaluateParams]) -> StageResult:
        metrics: dict[str, float] = {}
        for _, data in context.results("summary"):
            metrics.update(data["metrics"])
        return StageResult(outputs={REPORT: Output("report", properties=metrics)}, metrics=metrics)


def report_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report that go into the manifest; those that could not be had are left out."""
    metrics: dict[str, float | None] = {}
    if labels := report.get("segmentation"):
        for prefix, part in (("", "raw"), ("fill_", "fill")):
            for name in ("voi_split", "voi_merge", "voi", "adapted_rand_error", "rand_precision", "rand_recall"):
                metrics[prefix + name] = (labels.get(part) or {}).get(name)
        metrics["coverage"] = labels["coverage"]
        metrics["fill_coverage"] = labels.get("fill_coverage")
        metrics["segments"] = (labels["raw"] or {}).get("segments")
        metrics["truth_objects"] = labels["truth_objects"]
    if skeletons := report.get("skeletons"):
        for prefix, part in (("", "raw"), ("fill_", "fill")):
            for name in (
                "erl_nm", "erl_voxels", "erl_max_nm", "erl_max_voxels", "erl_by_segment_nm", "erl_by_segment_voxels",
            ):  # fmt: skip
                metrics[prefix + name] = skeletons.get(part, {}).get(name)
            for kind in ("correct", "merged", "split", "omitted"):
                metrics[f"{prefix}path_{kind}_fraction"] = skeletons.get(part, {}).get(f"{kind}_fraction")
            metrics[f"{prefix}skeleton_mergers"] = skeletons.get(part, {}).get("merger_count")
        metrics["skeletons"] = skeletons["skeletons"]
        metrics["skeleton_path_nm"] = skeletons["raw"]["path_nm"]
    if mask := report.get("mask"):
        metrics |= {f"mask_{name}": value for name, value in mask["voxels"].items()}
        metrics |= {f"mask_object_{name}": value for name, value in mask.get("objects", {}).items()}
        for label, figures in mask.get("classes", {}).items():
            metrics |= {f"mask_{name}_{label}": value for name, value in figures.items()}
    names = {"montage": ("seam", "global"), "alignment": ("adjacent", "absolute", "absolute_affine")}
    for part, kinds in names.items():
        short = "align" if part == "alignment" else part
        for kind in kinds if part in report else ():
            for quantile in ("median", "p95"):
                metrics[f"{short}_{kind}_{quantile}_px"] = report[part][kind].get(quantile)
        if part in report:
            metrics[f"{short}_sections"] = len(report[part]["sections"])
            metrics[f"{short}_failed_sections"] = len(report[part]["failed_sections"])
    return {name: float(value) for name, value in metrics.items() if value is not None}


def open_report(uri: str) -> Any:
    """`report.json` of a report artifact's folder."""
    return Store(uri).get_json("report.json")
