"""A stand-in for the orchestrator's AcquisitionService, so that a watcher's tests need no run.

It keeps the contract of acquisition_service.proto: equal reports change nothing, other tiles of a known
section are refused unless imaged_again is set, `last` ends the acquisition. The real service is fed by
tests/acquisition/test_watch_run.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from happyneurons.errors import ConflictError, HappyError, NotFoundError, PreconditionError
from happyneurons.rpc.server import RpcServer, Service
from happyneurons.v1 import acquisition_pb2
from happyneurons.v1 import acquisition_service_pb2 as pb
from happyneurons.v1.acquisition_service_pb2_grpc import (
    AcquisitionServiceServicer,
    add_AcquisitionServiceServicer_to_server,
)

RUN = "run-1"


@dataclass
class RunStandIn(AcquisitionServiceServicer):
    """versions: every report that changed something, by section. requests: how many came in all.
    error: raised once for each of `errors` reports to come."""

    versions: dict[int, list[acquisition_pb2.Section]] = field(default_factory=dict)
    requests: int = 0
    ended: bool = False
    errors: list[HappyError] = field(default_factory=list)
    address: str = ""
    _lock: Any = field(default_factory=threading.Lock)

    def ReportSection(self, request: pb.ReportSectionRequest, context: Any) -> pb.ReportSectionResponse:
        with self._lock:
            self.requests += 1
            if self.errors:
                raise self.errors.pop(0)
            if request.run_id != RUN:
                raise NotFoundError(f"no run {request.run_id}")
            if request.HasField("section"):
                self._take(request.section, request.imaged_again)
            self.ended |= request.last
            return pb.ReportSectionResponse(sections_reported=len(self.versions))

    def _take(self, section: acquisition_pb2.Section, imaged_again: bool) -> None:
        known = self.versions.setdefault(int(section.z), [])
        if known and known[-1].tiles == section.tiles:
            return
        if self.ended:
            raise PreconditionError(f"run {RUN} takes no sections any more")
        if known and not imaged_again:
            raise ConflictError(f"section {section.z} was reported with other tiles")
        known.append(section)


@contextmanager
def serving(run: RunStandIn, address: str = "127.0.0.1:0") -> Iterator[RunStandIn]:
    """Serves the stand-in; at an address that it had before, too."""
    service = Service(
        "happyneurons.v1.AcquisitionService", lambda server: add_AcquisitionServiceServicer_to_server(run, server)
    )
    server = RpcServer([service], address)
    server.start()
    run.address = f"127.0.0.1:{server.port}"
    try:
        yield run
    finally:
        server.stop()
