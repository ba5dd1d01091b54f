"""A run as an object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from happyneurons.client.plain import short
from happyneurons.client.tables import SweepTable, sweep_tables
from happyneurons.errors import JobFailedError, UserError
from happyneurons.v1 import acquisition_service_pb2, pipelines_pb2

if TYPE_CHECKING:
    from happyneurons.client.client import Client, SectionLike

FINAL = frozenset({"succeeded", "failed", "cancelled"})


class Run:
    """A run as it stood when it was last asked for; `refresh` asks again. `proto` is the whole message."""

    def __init__(self, client: Client, proto: pipelines_pb2.Run) -> None:
        self._client, self.proto = client, proto

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.proto.name}: {self.state}>"

    @property
    def id(self) -> str:
        return self.proto.id

    @property
    def address(self) -> str:
        """The orchestrator that it was asked of, host:port."""
        return self._client.address

    @property
    def state(self) -> str:
        """running, waiting, succeeded, failed or cancelled."""
        return short(self.proto, "state")

    @property
    def message(self) -> str:
        """What it waits for, or why it failed."""
        return self.proto.message

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def jobs(self) -> Mapping[str, pipelines_pb2.RunJob]:
        """Its jobs by name."""
        return {job.name: job for job in self.proto.jobs}

    @property
    def gates(self) -> Mapping[str, pipelines_pb2.Gate]:
        """Its gates by name."""
        return {gate.name: gate for gate in self.proto.gates}

    def refresh(self) -> Run:
        """Ask how it stands now."""
        self.proto = self._client.run(self.id).proto
        return self

    def watch(self, *, progress: bool = True) -> Iterator[pipelines_pb2.RunEvent]:
        """Its events from the first one until it is final."""
        return self._client.watch(self.id, progress=progress)

    def wait(self, on_event: Callable[[pipelines_pb2.RunEvent], None] | None = None) -> Run:
        """Until it has succeeded. Raises JobFailedError if it ends otherwise.

        At a gate it waits until somebody decides (`approve` from another thread, or `hpn approve`).
        """
        for event in self._client.watch(self.id, progress=on_event is not None):
            if on_event is not None:
                on_event(event)
        self.refresh()
        if self.state != "succeeded":
            raise JobFailedError(f"run {self.id} {self.state}: {self.message}")
        return self

    def report_section(
        self, section: SectionLike, *, imaged_again: bool = False, last: bool = False
    ) -> acquisition_service_pb2.ReportSectionResponse:
        """Tell an open run of a section; see `Client.report_section`."""
        return self._client.report_section(self.id, section, imaged_again=imaged_again, last=last)

    def report_sections(
        self, sections: Iterable[SectionLike], *, last: bool = False
    ) -> acquisition_service_pb2.StreamSectionsResponse:
        """Tell an open run of many sections."""
        return self._client.report_sections(self.id, sections, last=last)

    def end_acquisition(self) -> None:
        """Tell an open run that no more sections will come."""
        self._client.end_acquisition(self.id)

    def approve(self, gate: str, comment: str = "") -> Run:
        self.proto = self._client.approve(self.id, gate, comment).proto
        return self

    def reject(self, gate: str, comment: str = "") -> Run:
        self.proto = self._client.reject(self.id, gate, comment).proto
        return self

    def cancel(self, reason: str = "") -> Run:
        self.proto = self._client.cancel(self.id, reason).proto
        return self

    def retry(self, *jobs: str, retry_quarantined: bool = False) -> Run:
        self.proto = self._client.retry(self.id, jobs, retry_quarantined=retry_quarantined).proto
        return self

    def sweep_tables(self) -> list[SweepTable]:
        """Run times and metrics of its swept jobs, a table for each; see :mod:`happyneurons.client.tables`."""
        return sweep_tables(self.proto)

    def output(self, name: str) -> str:
        """URI of an output, `JOB.OUTPUT` (`JOB` alone if it has one output only). Raises UserError."""
        job_name, _, output = name.partition(".")
        job = self.jobs.get(job_name)
        if job is None:
            raise UserError(f"run {self.id}: no job {job_name!r}; there are {', '.join(self.jobs)}")
        outputs = job.job.outputs
        if not outputs:
            raise UserError(f"run {self.id}: job {job_name} is {short(job.job, 'state')}: it has no outputs (yet)")
        if not output and len(outputs) == 1:
            output = next(iter(outputs))
        if output not in outputs:
            raise UserError(f"job {job_name}: no output {output!r}; there are {', '.join(sorted(outputs))}")
        return outputs[output].uri

    def open(self, name: str) -> Any:
        """An output as arrays or values; see :func:`happyneurons.open`.

        Raises UserError where only the client is installed (happyneurons-client).
        """
        try:
            from happyneurons.client.results import open_result
        except ModuleNotFoundError as error:
            raise UserError(
                f"results are read by the whole package, this is the client alone: pip install happyneurons ({error})"
            ) from None
        return open_result(self.output(name))
