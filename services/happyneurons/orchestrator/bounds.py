"""What pipelines may ask and read, checked before anything is stored, opened or started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from happyneurons.errors import UserError
from happyneurons.jobs.locations import misplaced
from happyneurons.orchestrator.batches import BATCH
from happyneurons.orchestrator.graph import Pipeline, reference
from happyneurons.orchestrator.pipeline import MOST_JOBS
from happyneurons.stages import load_stage
from happyneurons.store.documents import Store
from happyneurons.store.roots import SECRET, Roots, secret_in

MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Bounds:
    """By default those of a server without access control: as large as a message may be, read anywhere."""

    roots: Roots | None = None
    """None: anywhere."""
    stages: frozenset[str] = frozenset()
    """Empty: all that are installed."""
    bytes: int = MOST_BYTES
    """Of the YAML text and of all parameters, each."""
    jobs: int = MOST_JOBS

    def without_size(self) -> Bounds:
        return replace(self, bytes=MOST_BYTES, jobs=MOST_JOBS)

    def check_text(self, spec: Mapping[str, Any]) -> None:
        """Raises UserError for what is too large to be parsed, or holds a secret and must not be kept."""
        found = []
        parameters = dict(spec["parameters"])
        if len(spec["yaml"].encode()) > self.bytes:
            found.append(("pipeline.yaml", f"expected at most {self.bytes} bytes"))
        if sum(len(name) + len(text) for name, text in parameters.items()) > self.bytes:
            found.append(("pipeline.parameters", f"expected at most {self.bytes} characters"))
        if not found:
            texts = {"pipeline.yaml": spec["yaml"], "pipeline.base_uri": spec["base_uri"]}
            texts["pipeline.source_name"] = spec["source_name"]
            texts |= {f"pipeline.parameters.{name}": f"{name} {text}" for name, text in parameters.items()}
            found = [(path, f"expected {SECRET}") for path, text in texts.items() if secret_in(text)]
        if found:
            raise UserError("; ".join(f"{path}: {text}" for path, text in found), found)

    def refused(self, pipeline: Pipeline, store: Store) -> Iterator[tuple[str, str, str]]:
        """`(job, field path, what was expected)` of stages that are not allowed and data outside of the roots."""
        batch = f"${{{BATCH}}}"

        def opened(text: str) -> str | None:
            if reference(text):
                return None
            return text.replace(batch, store.url("batches/batch.json"))

        for job in [*pipeline.templates.values(), *pipeline.jobs.values()]:
            if self.stages and job.stage not in self.stages:
                yield job.name, "stage", f"this server runs {', '.join(sorted(self.stages))} only"
            for path, text in misplaced(load_stage(job.stage), job.inputs, job.params, self.roots, opened):
                yield job.name, path, text
