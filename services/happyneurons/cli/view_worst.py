"""`hpn view --worst N`: what was evaluated, and a link to each of its worst splits and mergers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact, load_artifact, manifest_of

if TYPE_CHECKING:
    from happyneurons.viewer import Viewer


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's report, and the layers of what it compared: segmentation, and truth if it is in that frame."""

    report: Artifact
    segmentation: str
    truth: str | None


def report_of_run(found: Mapping[str, tuple[str, str]], only: tuple[str, ...]) -> str:
    """URI of the last report among a run's outputs (`JOB.OUTPUT` → (kind, URI)), of `only` jobs if any has one."""
    reports = {name: uri for name, (kind, uri) in found.items() if kind == "report"}
    named = {
        name: uri for name, uri in reports.items() if name.partition(".")[0] in {o.partition(".")[0] for o in only}
    }
    if not reports:
        raise UserError("--worst: the run has no report (yet); `hpn status RUN` says what it has")
    return list((named or reports).values())[-1]


def add_evaluated(artifacts: dict[str, Artifact], report: Artifact) -> Evaluated:
    """Add what a report compared to the layers, unless it is among them."""
    inputs = {name: found[0]["uri"] for name, found in manifest_of(report.uri).inputs.items() if found}
    if "segmentation" not in inputs:
        raise UserError(f"{report.uri}: no segmentation was evaluated, so there are no splits and mergers")

    def layer(name: str) -> str:
        for known, artifact in artifacts.items():
            if artifact.uri == inputs[name]:
                return known
        # Its own name may be another layer's.
        free = name if name not in artifacts else f"{name} of {report.digest[:8]}"
        artifacts[free] = load_artifact(inputs[name])
        return free

    segmentation = layer("segmentation")
    # Carried through the microscope, the truth lies in other coordinates than what is shown.
    same_frame = "truth" in inputs and "aligned" not in inputs
    return Evaluated(report, segmentation, layer("truth") if same_frame else None)


def mistake_links(viewer: Viewer, evaluated: Evaluated, count: int) -> list[dict[str, Any]]:
    """Each of the worst mistakes, with `text`, `url` on this machine and `demo_url`."""
    from happyneurons.viewer import link
    from happyneurons.viewer.mistakes import mistake_state, worst_mistakes

    found = []
    for mistake in worst_mistakes(evaluated.report, count):
        state = mistake_state(
            viewer.artifacts, viewer.data_url, mistake, evaluated.segmentation, evaluated.truth
        )  # fmt: skip
        links = {"url": viewer.server.page_url(state), "demo_url": link(state)}
        found.append({"text": str(mistake), **asdict(mistake), **links})
    return found
