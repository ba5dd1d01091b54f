"""Metrics of how good results are: what montage, alignment, training and evaluation say in their manifests.

Counts (sections, pairs, tiles by verdict) are added up over jobs, so their rates are error rates over any time. Scores
are those of the job that finished last: two scores cannot be added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.runlog import Event
from happyneurons.rpc.metric_families import counter, gauge

METERS_PER_NM = 1e-9


@dataclass(frozen=True)
class Count:
    """Figures of a stage's manifests that are one counter with the label `verdict`."""

    stage: str
    prefix: str
    name: str
    text: str
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Figures of a stage's manifests that are one gauge. figures: in the manifest → values of the labels."""

    stage: str
    name: str
    text: str
    labels: tuple[str, ...]
    figures: Mapping[str, tuple[str, ...]]
    factor: float = 1.0


SECTION_VERDICTS = ("ok", "flagged", "failed", "missing", "blank")

COUNTS = (
    Count(
        "ingest", "tiles_", "happyneurons_ingest_tiles", "Tiles that ingest checked",
        ("ok", "missing", "truncated", "wrong_size", "wrong_type", "duplicate", "blank"),
    ),
    Count("montage", "sections_", "happyneurons_montage_sections", "Sections that montage judged", SECTION_VERDICTS),
    Count("align", "sections_", "happyneurons_align_sections", "Sections that align judged", SECTION_VERDICTS),
    Count("align", "pairs_", "happyneurons_align_pairs", "Pairs of sections that align matched", ("ok", "failed")),
)  # fmt: skip

ERROR_OF = ("montage_seam", "montage_global", "align_adjacent", "align_absolute")

SCORES = (
    Score(
        "montage", "happyneurons_montage_seam_error_pixels",
        "Distance of the same tissue in two tiles, of the montage that finished last", ("statistic",),
        {"seam_median_px": ("median",), "seam_p95_px": ("p95",), "seam_p95_worst_px": ("p95_worst_section",)},
    ),
    Score(
        "montage", "happyneurons_montage_confidence_ratio", "Median confidence of sections of the last montage", (),
        {"confidence": ()},
    ),
    Score(
        "evaluate", "happyneurons_evaluation_error_pixels",
        "Distance from the truth, of the evaluation that finished last", ("of", "statistic"),
        {f"{of}_{s}_px": (of, s) for of in ERROR_OF for s in ("median", "p95")},
    ),
    Score(
        "evaluate", "happyneurons_evaluation_voi", "Variation of information of the last evaluation, bit", ("part",),
        {"voi_split": ("split",), "voi_merge": ("merge",)},
    ),
    Score(
        "evaluate", "happyneurons_evaluation_adapted_rand_error_ratio", "Adapted Rand error of the last evaluation",
        (), {"adapted_rand_error": ()},
    ),
    Score(
        "evaluate", "happyneurons_evaluation_coverage_ratio", "Share of objects' voxels that is segmented", (),
        {"coverage": ()},
    ),
    Score(
        "evaluate", "happyneurons_evaluation_expected_run_length_meters", "Expected run length", (),
        {"erl_nm": ()}, METERS_PER_NM,
    ),
    Score(
        "ffn-train", "happyneurons_model_accuracy_ratio", "Scores of the model that was trained last", ("score",),
        {name: (name,) for name in ("f1", "precision", "recall", "accuracy", "initial_f1")},
    ),
    *(
        Score(
            stage, "happyneurons_segmentation_coverage_ratio", "Share of the last volume's voxels that is segmented",
            ("stage",), {"coverage": (stage,)},
        )
        for stage in ("segment", "reconcile", "agglomerate", "consensus")
    ),
)  # fmt: skip


class QualityMetrics:
    """Folded from the events that tell of jobs' ends."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[str, ...]]] = {c.name: Counter() for c in COUNTS}
        self._scores: dict[str, dict[tuple[str, ...], float]] = {s.name: {} for s in SCORES}
        self._latest: dict[tuple[str, tuple[str, ...]], float] = {}
        self._stages: set[str] = set()

    def see(self, driver: RunDriver) -> None:
        """Stages in use: their counters are shown with zeros from the first job on."""
        self._stages.update(job.job.stage for job in driver.status.jobs.values())

    def count(self, driver: RunDriver, event: Event, since: float) -> None:
        """Take over an event. since: what happened before was counted by another process."""
        if event.type != "job_succeeded" or event.subject not in driver.status.jobs:
            return
        stage, metrics = driver.status.jobs[event.subject].job.stage, event.data["metrics"]
        if event.time >= since and not event.data.get("reused"):
            for kind in COUNTS:
                if kind.stage == stage:
                    for verdict in kind.verdicts:
                        self._counts[kind.name][(verdict,)] += int(metrics.get(kind.prefix + verdict, 0))
        for score in SCORES:
            if score.stage == stage:
                self._take(score, metrics, event.time)

    def _take(self, score: Score, metrics: Mapping[str, float], at: float) -> None:
        for name, labels in score.figures.items():
            value = metrics.get(name)
            if value is not None and at >= self._latest.get((score.name, labels), 0.0):
                self._latest[score.name, labels] = at
                self._scores[score.name][labels] = value * score.factor

    def families(self) -> Iterator[Metric]:
        for kind in COUNTS:
            shown = kind.verdicts if kind.stage in self._stages else ()
            values = {(v,): float(self._counts[kind.name][(v,)]) for v in shown}
            yield counter(kind.name, kind.text, ["verdict"], values)
        told = set()
        for score in SCORES:
            if score.name not in told:
                told.add(score.name)
                yield gauge(score.name, score.text, list(score.labels), self._scores[score.name])
