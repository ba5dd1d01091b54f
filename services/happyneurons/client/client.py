"""A client of the orchestrator (PipelineService). Needs gRPC only: no stage, no store, no numpy.

Every call raises the errors of :mod:`happyneurons.errors`; calls that found the server away are
tried again, and streams go on where they broke.
"""

from __future__ import annotations

import getpass
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from happyneurons.errors import UserError
from happyneurons.rpc.access import Access
from happyneurons.rpc.client import call, resume, stream
from happyneurons.rpc.client import connect as open_channel
from happyneurons.v1 import acquisition_pb2, jobs_pb2, pipelines_pb2, stages_pb2
from happyneurons.v1 import acquisition_service_pb2 as acquisition_pb
from happyneurons.v1 import pipeline_service_pb2 as pb
from happyneurons.v1.acquisition_service_pb2_grpc import AcquisitionServiceStub
from happyneurons.v1.pipeline_service_pb2_grpc import PipelineServiceStub

if TYPE_CHECKING:
    from happyneurons.client.pipeline import Pipeline
    from happyneurons.client.runs import Run

PAGE = 100
STREAM_DEADLINE_S = 3600.0

SectionLike = acquisition_pb2.Section | Mapping[str, Any] | Path | str
"""A section to report; see :func:`happyneurons.client.sections.section_message`."""


def connect(
    address: str, *, ca: str = "", cert: str = "", key: str = "", token: str = "", token_file: str = "",
    server_name: str = "",
) -> Client:  # fmt: skip
    """A client of the orchestrator at `host:port`. It connects with the first call.

    ca, cert, key, token_file: files, for a server with TLS and access control (docs/security.md); without
    any of them the environment counts (HPN_TLS_CA, HPN_TLS_CERT, HPN_TLS_KEY, HPN_TOKEN_FILE).
    """
    access = Access(ca=ca, cert=cert, key=key, server_name=server_name, token_file=token_file, token=token)
    return Client(address, access if access.secured else None)


class Client:
    """Calls of one orchestrator. Thread-safe; close it, or use it as a context."""

    def __init__(self, address: str, access: Access | None = None) -> None:
        """access: how to get in; by default what the environment says."""
        self.address = address
        self._peer = f"the orchestrator at {address}"
        self._channel = open_channel(address, access)
        self._stub = PipelineServiceStub(self._channel)
        self._sections = AcquisitionServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # --- pipelines and runs ----------------------------------------------------------------------

    def validate(
        self, pipeline: Pipeline | Path | str, parameters: Mapping[str, Any] | None = None
    ) -> list[pipelines_pb2.PipelineViolation]:
        """Mistakes of a pipeline, each with its line; empty if it is good. Starts nothing."""
        request = pb.ValidatePipelineRequest(pipeline=pipeline_message(pipeline, parameters))
        return list(self._call(self._stub.ValidatePipeline, request).violations)

    def submit(
        self,
        pipeline: Pipeline | Path | str | pipelines_pb2.PipelineSpec,
        parameters: Mapping[str, Any] | None = None,
        *,
        request_id: str = "",
        default_site: str = "",
        project: str = "",
    ) -> Run:
        """Start a run of a pipeline: one built in Python, a file's path, or YAML text.

        request_id: the same for every repetition of one wish (default: a new one). project: whose run it
        is (default: the caller's only project, or `default`). Raises UserError with every mistake of the
        pipeline; nothing was started then.
        """
        request = pb.SubmitRunRequest(
            request_id=request_id or uuid.uuid4().hex,
            pipeline=pipeline_message(pipeline, parameters),
            default_site=default_site,
            project=project,
        )
        return self._wrap(self._call(self._stub.SubmitRun, request).run)

    def run(self, run_id: str) -> Run:
        """A run as it stands. Raises NotFoundError."""
        return self._wrap(self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id)).run)

    def runs(
        self, states: Iterable[str] = (), limit: int | None = None, *, project: str = ""
    ) -> Iterator[pipelines_pb2.Run]:  # fmt: skip
        """Runs, latest first, without their jobs. states: such as `running`; all by default. project: only its runs."""
        numbers = [_number(pipelines_pb2.RunState, "RUN_STATE_", state) for state in states]
        token, given = "", 0
        while True:
            request = pb.ListRunsRequest(
                page_size=min(PAGE, limit or PAGE), page_token=token, states=numbers, project=project
            )
            answer = self._call(self._stub.ListRuns, request)
            for run in answer.runs:
                if given == limit:
                    return
                given += 1
                yield run
            token = answer.next_page_token
            if not token:
                return

    def watch(self, run_id: str, after_event: int = 0, *, progress: bool = True) -> Iterator[pipelines_pb2.RunEvent]:
        """Events of a run until it is final; broken connections and restarted servers are survived."""

        def begin(last: int | None) -> Iterator[pb.WatchRunResponse]:
            after = after_event if last is None else last
            request = pb.WatchRunRequest(run_id=run_id, after_event=after, progress=progress)
            return stream(self._stub.WatchRun, request, peer=self._peer)

        for answer in resume(begin, lambda a: int(a.event.number)):
            yield answer.event

    def cancel(self, run_id: str, reason: str = "") -> Run:
        """Stop a run and its jobs; what is finished stays."""
        return self._wrap(self._call(self._stub.CancelRun, pb.CancelRunRequest(run_id=run_id, reason=reason)).run)

    def retry(self, run_id: str, jobs: Iterable[str] = (), *, retry_quarantined: bool = False) -> Run:
        """Attempt again what failed or was cancelled (or only some jobs, with what follows from them)."""
        request = pb.RetryRunRequest(run_id=run_id, jobs=list(jobs), retry_quarantined=retry_quarantined)
        return self._wrap(self._call(self._stub.RetryRun, request).run)

    def approve(self, run_id: str, gate: str, comment: str = "") -> Run:
        """Let a run pass a gate."""
        return self._decide(run_id, gate, pb.GATE_DECISION_APPROVE, comment)

    def reject(self, run_id: str, gate: str, comment: str = "") -> Run:
        """Do not let a run pass a gate; what follows is skipped."""
        return self._decide(run_id, gate, pb.GATE_DECISION_REJECT, comment)

    def explain(self, run_id: str, job: str) -> pipelines_pb2.JobExplanation:
        """Why a job was computed, reused, or is not running."""
        return self._call(self._stub.ExplainJob, pb.ExplainJobRequest(run_id=run_id, job=job)).explanation

    def logs(
        self, run_id: str, job: str, *, attempt: int = 0, follow: bool = False
    ) -> Iterator[jobs_pb2.LogChunk]:  # fmt: skip
        """The log of a job's attempt (0: the latest); with `follow` until the attempt ends."""

        def begin(last: str | None) -> Iterator[pb.TailJobLogsResponse]:
            request = pb.TailJobLogsRequest(
                run_id=run_id, job=job, attempt=attempt, follow=follow, resume_token=last or ""
            )
            return stream(self._stub.TailJobLogs, request, peer=self._peer)

        for answer in resume(begin, lambda a: str(a.chunk.resume_token)):
            yield answer.chunk

    # --- sections of open runs --------------------------------------------------------------------

    def report_section(
        self, run_id: str, section: SectionLike, *, imaged_again: bool = False, last: bool = False
    ) -> acquisition_pb.ReportSectionResponse:
        """Tell an open run of a section; an equal report again changes nothing.

        imaged_again: its tiles replace those reported before. last: no more sections will come. Raises
        UserError, NotFoundError, ConflictError (reported with other tiles), PreconditionError (it takes none).
        """
        from happyneurons.client.sections import section_message

        request = acquisition_pb.ReportSectionRequest(
            run_id=run_id, section=section_message(section), imaged_again=imaged_again, last=last
        )
        answer: acquisition_pb.ReportSectionResponse = self._call(self._sections.ReportSection, request)
        return answer

    def report_sections(
        self, run_id: str, sections: Iterable[SectionLike], *, last: bool = False
    ) -> acquisition_pb.StreamSectionsResponse:
        """Tell an open run of many sections in one stream. Raises as `report_section`; what came before is kept."""
        from happyneurons.client.sections import section_message

        def requests() -> Iterator[acquisition_pb.StreamSectionsRequest]:
            for section in sections:
                yield acquisition_pb.StreamSectionsRequest(run_id=run_id, section=section_message(section))
            if last:
                yield acquisition_pb.StreamSectionsRequest(run_id=run_id, last=True)

        answer: acquisition_pb.StreamSectionsResponse = call(
            self._sections.StreamSections, requests(), timeout_s=STREAM_DEADLINE_S, peer=self._peer
        )
        return answer

    def end_acquisition(self, run_id: str) -> acquisition_pb.ReportSectionResponse:
        """Tell an open run that no more sections will come; may be said again."""
        request = acquisition_pb.ReportSectionRequest(run_id=run_id, last=True)
        answer: acquisition_pb.ReportSectionResponse = self._call(self._sections.ReportSection, request)
        return answer

    # --- what there is ---------------------------------------------------------------------------

    def stages(self) -> list[stages_pb2.StageDescription]:
        """The stages that pipelines can use."""
        return list(self._call(self._stub.ListStages, pb.ListStagesRequest()).stages)

    def describe_stage(self, name: str) -> stages_pb2.StageDescription:
        """One stage with its parameters. Raises NotFoundError."""
        return self._call(self._stub.DescribeStage, pb.DescribeStageRequest(stage=name)).stage

    def sites(self) -> list[pipelines_pb2.Site]:
        """The sites that jobs can be sent to."""
        return list(self._call(self._stub.ListSites, pb.ListSitesRequest()).sites)

    # --- parts -----------------------------------------------------------------------------------

    def _call(self, method: Any, request: Any) -> Any:
        return call(method, request, peer=self._peer)

    def _decide(self, run_id: str, gate: str, decision: pb.GateDecision.ValueType, comment: str) -> Run:
        request = pb.DecideGateRequest(
            run_id=run_id, gate=gate, decision=decision, decided_by=_user(), comment=comment
        )  # fmt: skip
        return self._wrap(self._call(self._stub.DecideGate, request).run)

    def _wrap(self, message: pipelines_pb2.Run) -> Run:
        from happyneurons.client.runs import Run

        return Run(self, message)


def pipeline_message(
    pipeline: Pipeline | Path | str | pipelines_pb2.PipelineSpec, parameters: Mapping[str, Any] | None = None
) -> pipelines_pb2.PipelineSpec:
    """A pipeline as it travels. A file's `${here}` is its folder. Raises UserError if it cannot be read.

    parameters: values of the pipeline's parameters, as Python values.
    """
    if isinstance(pipeline, pipelines_pb2.PipelineSpec):
        return pipeline
    values = {name: json.dumps(value, default=str) for name, value in (parameters or {}).items()}
    if isinstance(pipeline, str) and "\n" in pipeline:
        return pipelines_pb2.PipelineSpec(yaml=pipeline, parameters=values)
    if not isinstance(pipeline, (str, Path)):
        return pipelines_pb2.PipelineSpec(yaml=pipeline.to_yaml(), parameters=values, source_name=pipeline.name)
    path = Path(pipeline)
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"pipeline {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"pipeline {path}: not a text file") from None
    return pipelines_pb2.PipelineSpec(
        yaml=text, parameters=values, source_name=str(pipeline), base_uri=str(path.resolve().parent)
    )


def _number(enum: Any, prefix: str, name: str) -> Any:
    try:
        return enum.Value(f"{prefix}{name.upper()}")
    except ValueError:
        known = ", ".join(n.removeprefix(prefix).lower() for n in enum.keys()[1:])
        raise UserError(f"no state {name!r}; there are {known}") from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry, as in many containers
        return ""
