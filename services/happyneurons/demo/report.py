"""What the demo found: `report.json`, the pictures, and the lines that sum it up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from happyneurons.client import Run
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import local_path

# Over segmented voxels of true bodies; fill_…: over all of them, unsegmented ones given to the nearest segment.
SEGMENTATION_FIGURES = (
    "voi_split", "voi_merge", "adapted_rand_error", "coverage",
    "fill_voi_split", "fill_voi_merge", "fill_adapted_rand_error", "truth_objects",
)  # fmt: skip


def make_report(run: Run, store_uri: str, prepared: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """Figures of a finished demo run.

    wall_s: seconds of the run by stage and altogether; montage and alignment errors against the truth
    in px; scores of the segmentation; counts of meshes and skeletons; where everything lies.
    """
    metrics = {name: dict(job.job.metrics) for name, job in run.jobs.items()}
    times = {
        name: round(job.job.end_time.ToMilliseconds() / 1e3 - job.job.start_time.ToMilliseconds() / 1e3, 2)
        for name, job in run.jobs.items()
        if job.job.HasField("start_time")
    }
    evaluate = metrics["evaluate"]
    return {
        "run": run.id,
        "store": store_uri,
        "wall_s": {**times, **prepared["wall_s"], "run": round(wall_s, 2)},
        "reused": sorted(name for name, job in run.jobs.items() if job.job.reused),
        "phantom": {"objects": prepared["objects"]},
        "montage": {k.removeprefix("montage_"): v for k, v in evaluate.items() if k.startswith("montage_")},
        "alignment": {k.removeprefix("align_"): v for k, v in evaluate.items() if k.startswith("align_")},
        "segmentation": {k: evaluate[k] for k in SEGMENTATION_FIGURES if k in evaluate},
        "objects": metrics["reconcile"].get("segments"),
        "meshes": metrics["mesh"].get("meshes"),
        "skeletons": metrics["skeletonize"].get("skeletons"),
        "outputs": {
            f"{name}.{output}": artifact.uri
            for name, job in run.jobs.items()
            for output, artifact in job.job.outputs.items()
        },
    }


def copy_pictures(run: Run, folder: Path) -> list[Path]:
    """Pictures of the run's preview job, beside the report."""
    artifact = load_artifact(run.output("preview.pictures"))
    source = local_path(artifact.data_uri)
    assert source is not None, "the demo's store is a local folder"
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for picture in sorted(source.rglob("*.png")):
        target = folder / "-".join(picture.relative_to(source).parts)
        shutil.copyfile(picture, target)
        copied.append(target)
    return copied


def write_report(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines."""
    montage, align, seg = report["montage"], report["alignment"], report["segmentation"]
    lines = {
        "montage": f"{montage['seam_median_px']:.2f} px at the seams (95 %: {montage['seam_p95_px']:.2f} px)",
        "alignment": f"{align['adjacent_median_px']:.2f} px between neighbours, "
        f"{align['absolute_median_px']:.2f} px from the true place (medians)",
        "segmentation": f"adapted Rand error {seg['adapted_rand_error']:.3f}, "
        f"VOI {seg['voi_split']:.3f} split + {seg['voi_merge']:.3f} merge (bits), coverage {seg['coverage']:.2f}",
        "filled": f"adapted Rand error {seg['fill_adapted_rand_error']:.3f} "
        "with unsegmented voxels given to the nearest segment",
        "objects": f"{report['objects']:.0f} segments of {seg['truth_objects']:.0f} bodies, fragments included; "
        f"{report['meshes']:.0f} meshes, {report['skeletons']:.0f} skeletons",
        "time": f"{report['wall_s']['run']:.0f} s",
    }
    return [f"{name:<13} {text}" for name, text in lines.items()]
