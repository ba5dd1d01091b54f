"""AcquisitionService: sections on their way from a microscope into an open run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from happyneurons.errors import PreconditionError, UserError
from happyneurons.orchestrator.driver import RunDriver
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.service import driver_for_caller
from happyneurons.orchestrator.state import RUN_FINAL
from happyneurons.store.documents import SCHEMES
from happyneurons.store.roots import SECRET, Roots, secret_in
from happyneurons.v1 import acquisition_pb2, acquisition_service_pb2_grpc
from happyneurons.v1 import acquisition_service_pb2 as pb

SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
MOST_TILES = 1_000_000
HIGHEST_Z = 2**31 - 1
VIOLATIONS_SHOWN = 20

Request = pb.ReportSectionRequest | pb.StreamSectionsRequest


class AcquisitionServicer(acquisition_service_pb2_grpc.AcquisitionServiceServicer):
    """`check_drives` raises PreconditionError where nobody drives runs."""

    def __init__(self, orchestrator: Orchestrator, check_drives: Callable[[], None]) -> None:
        self._orchestrator, self._check_drives = orchestrator, check_drives
        self._roots = orchestrator.bounds.roots

    def ReportSection(
        self, request: pb.ReportSectionRequest, context: grpc.ServicerContext
    ) -> pb.ReportSectionResponse:  # fmt: skip
        driver, version, known = self._take(request)
        assert driver.intake is not None
        return pb.ReportSectionResponse(
            sections_reported=driver.intake.reports.count(), version=version, known=known
        )  # fmt: skip

    def StreamSections(
        self, request_iterator: Iterator[pb.StreamSectionsRequest], context: grpc.ServicerContext
    ) -> pb.StreamSectionsResponse:
        answer = pb.StreamSectionsResponse()
        for request in request_iterator:
            driver, version, known = self._take(request)
            answer.accepted += bool(version) and not known
            answer.known += known
            assert driver.intake is not None
            answer.sections_reported = driver.intake.reports.count()
        return answer

    def _take(self, request: Request) -> tuple[RunDriver, int, bool]:
        """Keep what a request reports; returns the version and whether it was known."""
        self._check_drives()
        driver = driver_for_caller(self._orchestrator, request.run_id)
        if driver.intake is None:
            raise PreconditionError(
                f"run {request.run_id} takes no sections: its pipeline has no `acquisition:` (docs/acquisition.md)"
            )
        if not request.HasField("section") and not request.last:
            raise UserError("give a section, or last", [("section", "a section, or last = true")])
        phase, refusal = driver.status.phase, ""
        if driver.status.acquisition is not None and driver.status.acquisition.ended:
            refusal = f"run {request.run_id}: its acquisition has ended"
        elif phase in RUN_FINAL or driver.status.cancel_requested:
            refusal = f"run {request.run_id} is {phase.value if phase in RUN_FINAL else 'being cancelled'}"
        version, known = 0, False
        if request.HasField("section"):
            section = section_document(request.section, self._roots)
            version, known = driver.intake.reports.report(section, request.imaged_again, refusal)
        if request.last:
            driver.intake.reports.end(refusal)
        assert driver.status.acquisition is not None
        # Not for each of a thousand reports: it looks at all runs. Another one that leads knows of none of them.
        if driver.intake.ready(driver.status.acquisition) or self._orchestrator.stands_by:
            self._orchestrator.adopt(request.run_id)
        return driver, version, known


def section_document(section: acquisition_pb2.Section, roots: Roots | None = None) -> dict[str, Any]:
    """A reported section as it is kept, its tiles by row and column. Raises UserError with all mistakes.

    roots: where tiles may be; None: anywhere.
    """
    violations = [*_mistakes(section), *_places(section.tiles, roots)]
    if violations:
        text = "; ".join(f"{path}: {expected}" for path, expected in violations[:VIOLATIONS_SHOWN])
        raise UserError(f"section {section.z}: {text}", violations[:VIOLATIONS_SHOWN])
    return {
        "z": section.z,
        "pixel_size_nm": section.pixel_size_nm,
        "thickness_nm": section.thickness_nm,
        "acquired": section.acquire_time.ToMicroseconds() / 1e6 if section.HasField("acquire_time") else 0.0,
        "tiles": [
            {
                "uri": t.uri, "row": t.row, "column": t.column, "x_nm": t.x_nm, "y_nm": t.y_nm,
                "width_px": t.width_px, "height_px": t.height_px, "sha256": t.sha256.lower(),
            }
            for t in sorted(section.tiles, key=lambda t: (t.row, t.column))
        ],
    }  # fmt: skip


def _mistakes(section: acquisition_pb2.Section) -> Iterator[tuple[str, str]]:
    """`(field, what was expected)` of everything that is wrong with a section."""
    if not 0 <= section.z <= HIGHEST_Z:
        yield "section.z", "a section number, 0 or more"
    if not (math.isfinite(section.pixel_size_nm) and section.pixel_size_nm > 0):
        yield "section.pixel_size_nm", "nanometres, more than 0"
    if not (math.isfinite(section.thickness_nm) and section.thickness_nm >= 0):
        yield "section.thickness_nm", "nanometres, more than 0 (or 0 if the pipeline says it)"
    if not section.tiles:
        yield "section.tiles", "at least one tile"
    if len(section.tiles) > MOST_TILES:
        yield "section.tiles", f"at most {MOST_TILES} tiles"
    yield from _tile_mistakes(section.tiles)


def _places(tiles: Iterable[acquisition_pb2.Tile], roots: Roots | None) -> Iterator[tuple[str, str]]:
    for number, tile in enumerate(tiles):
        problem = roots.problem(tile.uri) if roots else (SECRET if secret_in(tile.uri) else None)
        if problem:
            yield f"section.tiles[{number}].uri", problem


def _tile_mistakes(tiles: Iterable[acquisition_pb2.Tile]) -> Iterator[tuple[str, str]]:
    places: dict[tuple[int, int], int] = {}
    for number, tile in enumerate(tiles):
        path, place = f"section.tiles[{number}]", (tile.row, tile.column)
        if min(place) < 0:
            yield f"{path}.row", "row and column 0 or more"
        elif place in places:
            yield f"{path}.row", f"a row and column of its own: tile {places[place]} has {tile.row}, {tile.column}, too"
        places.setdefault(place, number)
        if not (math.isfinite(tile.x_nm) and math.isfinite(tile.y_nm)):
            yield f"{path}.x_nm", "a finite position"
        if min(tile.width_px, tile.height_px) < 1:
            yield f"{path}.width_px", "width and height of 1 pixel or more"
        scheme, separator, rest = tile.uri.partition("://")
        readable = scheme in SCHEMES and scheme != "memory" and rest.strip("/") if separator else tile.uri[:1] == "/"
        if not readable:
            yield f"{path}.uri", "an absolute path, file://…, s3://…, gs://… or az://…"
        if tile.sha256 and not SHA256.match(tile.sha256):
            yield f"{path}.sha256", "64 hexadecimal digits, or nothing"
