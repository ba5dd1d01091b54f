"""Running one stage in this process: for tests, notebooks and debugging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from happyneurons.errors import EXIT_OK, EXIT_USAGE, JobFailedError, UserError
from happyneurons.jobs.attempts import attempt_end, attempt_numbers, settle
from happyneurons.jobs.spec import make_spec, save_spec
from happyneurons.stages import load_stage
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.worker.run import RunOptions, run_job_here


def run_stage(
    store: Store,
    stage: str,
    *,
    inputs: Mapping[str, str | Sequence[str]] | None = None,
    params: Mapping[str, Any] | None = None,
    allow_failed_tasks: int = 0,
    options: RunOptions | None = None,
) -> Manifest:
    """Run a stage to its end and return its manifest; a finished job is not run again.

    inputs: artifact URIs by input name. Raises UserError, JobFailedError.
    """
    spec = make_spec(load_stage(stage), inputs=inputs or {}, params=params or {}, allow_failed_tasks=allow_failed_tasks)
    save_spec(store, spec)
    code = run_job_here(store, spec.key, options)
    manifest = settle(store, spec.key)
    if code == EXIT_OK and manifest is not None:
        return manifest
    numbers = attempt_numbers(store, spec.key)
    end = attempt_end(store, spec.key, numbers[-1]) if numbers else None
    message = f"stage {stage}: {end['message'] if end else 'no attempt was made'}"
    if code == EXIT_USAGE:
        raise UserError(message)
    raise JobFailedError(message)
