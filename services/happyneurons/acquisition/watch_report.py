"""Reports to the orchestrator, kept until it has taken them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from happyneurons.acquisition.state import WatchState
from happyneurons.acquisition.transfer import Backoff, Cargo
from happyneurons.errors import ConflictError, HappyError, NotFoundError, PreconditionError, UserError
from happyneurons.rpc.client import call, connect
from happyneurons.v1 import acquisition_service_pb2 as pb
from happyneurons.v1.acquisition_service_pb2_grpc import AcquisitionServiceStub

# Whatever the section: there is no use in going on.
_HOPELESS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)


@dataclass(frozen=True)
class Answer:
    """What became of a report. refused: why it was not made, or the run does not take it; None if it did."""

    cargo: Cargo
    refused: str | None
    imaged_again: bool


class Reporter:
    """Reports sections of one run, in the order in which they come. Nothing is lost while the server is away:
    reports wait, and are tried again; `tell` says so once."""

    def __init__(
        self, address: str, run_id: str, state: WatchState, tell: Callable[[str], None], backoff: Backoff | None = None
    ) -> None:
        self.run_id, self._state, self._tell = run_id, state, tell
        self._peer = f"the orchestrator at {address}"
        self._channel = connect(address)
        self._stub = AcquisitionServiceStub(self._channel)
        self._backoff = backoff or Backoff()
        self._queue: deque[tuple[Cargo, bool]] = deque()

    def close(self) -> None:
        self._channel.close()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def add(self, cargo: Cargo, in_place: bool = False) -> None:
        """in_place: what is reported are the cargo's own files, so they must not have changed meanwhile."""
        self._queue.append((cargo, in_place))

    def flush(self, stop: Callable[[], bool] = lambda: False, replace: bool = False) -> list[Answer]:
        """Report what waits, as far as the server answers. replace: also what the run knows with other tiles.
        Raises HappyError if the run takes nothing (any more)."""
        answers: list[Answer] = []
        while self._queue and self._backoff.due and not stop():
            cargo, in_place = self._queue[0]
            known = self._state.reported.get(cargo.z)
            again, refused = known is not None and known[1] != cargo.digest, None
            if in_place and (changed := cargo.changed_file()) is not None:
                refused = f"{changed} changed before it was reported"
            elif known is None or again:
                try:
                    if not self._try(self._request(cargo, again or replace)):
                        break
                except ConflictError as error:
                    refused = f"{error}; if this folder is the right one, report it with --imaged-again"
                except UserError as error:
                    if isinstance(error, PreconditionError) or _code(error) in _HOPELESS:
                        raise
                    refused = "; ".join([str(error), *(f"{path}: {text}" for path, text in error.violations)])
            self._queue.popleft()
            if refused is None:
                self._state.note_reported(cargo)
            answers.append(Answer(cargo, refused, again))
        return answers

    def end(self) -> bool:
        """Say that no further sections will come; False if the server does not answer now."""
        return self._backoff.due and self._try(pb.ReportSectionRequest(run_id=self.run_id, last=True))

    def _request(self, cargo: Cargo, again: bool) -> pb.ReportSectionRequest:
        return pb.ReportSectionRequest(run_id=self.run_id, section=cargo.section, imaged_again=again)

    def _try(self, request: pb.ReportSectionRequest) -> bool:
        try:
            call(self._stub.ReportSection, request, peer=self._peer)
        except NotFoundError as error:
            raise PreconditionError(f"{self._peer} has no run {self.run_id}: {error}") from error
        except HappyError as error:
            if isinstance(error, UserError) and _code(error) is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            if not self._backoff.failing:
                self._tell(f"{error}; reports wait here, and are tried again")
            self._backoff.failed()
            return False
        if self._backoff.succeeded():
            self._tell(f"{self._peer} answers again")
        return True


def _code(error: HappyError) -> grpc.StatusCode | None:
    """gRPC's code, if a call raised the error."""
    code: Any = getattr(error.__cause__, "code", None)  # errors of calls are calls, too; the type does not say so
    return code() if callable(code) else None
