"""The context a stage sees; every rank builds its own from the job's spec."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from happyneurons.errors import StoreError, UserError
from happyneurons.jobs.attempts import drain_path
from happyneurons.jobs.journal import finished_results, read_journal
from happyneurons.jobs.spec import JobSpec
from happyneurons.jobs.stage import Stage, StageParams
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store

LOOK_S = 4.0
"""How often a task that asks whether to stop makes us look into the store."""


class JobContext:
    """Implements :class:`happyneurons.jobs.stage.Context` for one rank.

    attempt: number of the attempt that this rank works for; None: nobody will ask it to stop.
    """

    def __init__(
        self, store: Store, spec: JobSpec, stage: type[Stage[Any]], threads: int, attempt: int | None = None
    ) -> None:
        self.store = store
        self.job_key = spec.key
        self.params: StageParams = stage.Params.model_validate(spec.params)
        self.inputs: Mapping[str, Sequence[Artifact]] = _load_inputs(spec)
        self.threads = threads
        self.scratch = Path(tempfile.mkdtemp(prefix=f"hpn-{spec.key[:8]}-"))
        self.log = logging.getLogger(f"happyneurons.stage.{spec.stage}")
        self._cache: dict[str, Any] = {}
        self._drain_path = None if attempt is None else drain_path(spec.key, attempt)
        self._stopping, self._look_at = False, 0.0

    def close(self) -> None:
        self._cache.clear()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def input(self, name: str) -> Artifact:
        found = self.inputs.get(name, ())
        if len(found) != 1:
            raise UserError(f"input {name!r}: expected one artifact, there are {len(found)}")
        return found[0]

    def optional_input(self, name: str) -> Artifact | None:
        return self.input(name) if self.inputs.get(name) else None

    def output_uri(self, output: str) -> str:
        return self.store.url(f"artifacts/{self.job_key}/{output}")

    def output_store(self, output: str) -> Store:
        store: Store = self.once(f"store of {output}", lambda: Store(self.output_uri(output)))
        return store

    def results(self, round_name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return finished_results(read_journal(self.store, self.job_key, round_name))

    def quarantined(self, round_name: str) -> Sequence[str]:
        entries = read_journal(self.store, self.job_key, round_name)
        return sorted(key for key, entry in entries.items() if entry.quarantined)

    def stopping(self) -> bool:
        # Through the store: ranks of an MPI job hear no signal, and rank 0 cannot reach them amid a task.
        if not self._stopping and self._drain_path is not None and time.monotonic() >= self._look_at:
            with contextlib.suppress(StoreError):
                self._stopping = self.store.exists(self._drain_path)
            self._look_at = time.monotonic() + LOOK_S
        return self._stopping

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]


def _load_inputs(spec: JobSpec) -> dict[str, list[Artifact]]:
    inputs: dict[str, list[Artifact]] = {}
    for name, refs in spec.inputs.items():
        inputs[name] = []
        for ref in refs:
            artifact = load_artifact(ref.uri)
            if artifact.digest != ref.digest:
                raise UserError(f"input {name}: {ref.uri} has changed since the job was made; submit it again")
            inputs[name].append(artifact)
    return inputs
