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
    relabel_max_voxels: int = Field(
        2**25,
        ge=0,
        description="Larger parts are scored block by block, which keeps the truth's labels as they are and fills "
        "from no further than 32 voxels beyond a block",
    )
    block_voxels: int = Field(256, ge=32, le=1024, description="Edge of those blocks, voxels")


class Evaluate(Stage[EvaluateParams]):
    name, version = "evaluate", "1"
    summary = "VOI, adapted Rand error and coverage; montage and alignment errors in px"
    Params = EvaluateParams
    inputs = {
        "segmentation": InputSpec("segmentation", "what to score", optional=True),
        "truth": InputSpec(
            "segmentation",
            "ground truth; default: the labels of the acquisition, in whose coordinates it then has to be",
            optional=True,
        ),
        "montage": InputSpec("section_stack", "montaged sections of the acquisition", optional=True),
        "aligned": InputSpec(
            "section_stack", "aligned sections of that montage, the frame of the segmentation", optional=True
        ),
    }
    outputs = {REPORT: OutputSpec("report", "report.json: all figures")}

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
        from happyneurons.stages.evaluate.subject import Subject

        subject = Subject.of(context)
        if not (subject.scores_labels or subject.scores_montage or subject.scores_alignment):
            raise UserError(
                "evaluate: nothing to compare; give segmentation and truth, or params.acquisition with montage "
                "(and aligned)"
            )
        if subject.scores_labels and context.params.acquisition is not None and not subject.through_tissue:
            raise UserError(
                "evaluate: with params.acquisition, give the aligned sections that were segmented as aligned"
            )
        if context.optional_input("segmentation") is not None and not subject.scores_labels:
            raise UserError("evaluate: no ground truth for the segmentation; give the input truth")
        if subject.scores_labels:
            subject.check_labels()

    def rounds(self, context: Context[EvaluateParams]) -> Sequence[Round]:
        from happyneurons.stages.evaluate.rounds import Alignment, Labels, Montage, Summary
        from happyneurons.stages.evaluate.subject import Subject

        subject = Subject.of(context)
        rounds: list[Round] = []
        if subject.scores_montage:
            rounds.append(Montage())
        if subject.scores_alignment:
            rounds.append(Alignment())
        if subject.scores_labels:
            rounds.append(Labels())
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
        metrics["segments"] = (labels["raw"] or {}).get("segments")
        metrics["truth_objects"] = labels["truth_objects"]
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
