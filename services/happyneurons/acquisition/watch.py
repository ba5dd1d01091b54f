"""Watches a folder that a microscope fills, and feeds an open run with what is finished.

A section goes through these steps, each of which may fail and be repeated without harm: its folder says
that it is finished (`watch_layouts`); its tiles are read to their ends (`tiles`); they are moved to where
compute nodes see them (`transfer`, `globus`); it is reported (`watch_report`). A section that fails is
told with the reason and tried again when it changes; it never holds up others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from happyneurons.acquisition.state import WatchState
from happyneurons.acquisition.tiles import TileFile, verify_tile
from happyneurons.acquisition.transfer import Cargo, Mover
from happyneurons.acquisition.watch_layouts import Layout, PlannedTile, SectionPlan, file_stamp
from happyneurons.acquisition.watch_report import Reporter
from happyneurons.errors import JobFailedError, TaskError, UserError
from happyneurons.v1 import acquisition_pb2

LOOK_AGAIN = 200
"""Finished sections that are looked at again in one scan."""

STATUS_EVERY_S = 30.0
NAP_S = 0.1  # how long a signal may wait for an answer


@dataclass(frozen=True)
class Event:
    """Something to show. kind: reported | problem | refused | note | status | end."""

    kind: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Options:
    """until_complete: end the acquisition when all its sections are reported. once: stop when nothing is left
    to do for what is there now. imaged_again: sections that the run knows with other tiles are replaced."""

    until_complete: bool = False
    once: bool = False
    imaged_again: bool = False
    poll_s: float = 1.0


class Watcher:
    """One folder, one run. `run` returns when it is done or `stop` is called (from a signal handler, say)."""

    def __init__(
        self, layout: Layout, mover: Mover, reporter: Reporter, state: WatchState, options: Options,
        show: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self._layout, self._mover, self._reporter, self._state = layout, mover, reporter, state
        self._options, self._show = options, show
        self._stopped = False
        self._under_way = mover.sections()
        self._changed: set[int] = set()
        self._problems: dict[int, tuple[str, str]] = {}  # section → (signature with tiles, reason)
        self._unusable = ""  # what is wrong with the folder's metadata
        self._turn = 0
        self._complete: set[int] = set()
        self._began = self._shown = time.monotonic()
        self._news = False
        self.reported_now = 0

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """Raises UserError if the run takes no sections, JobFailedError if `once` leaves some unreported."""
        while not self._stopped:
            worked = self.step()
            if self._options.until_complete and self._all_reported() and self._reporter.end():
                self._show(Event("end", f"all {len(self._state.reported)} sections are reported; the acquisition ends"))
                break
            if self._options.once and not worked and self._idle():
                break
            if not worked:
                self._nap()
            self._status()
        self._status(at_end=True)
        if self._stopped:
            end = f"`hpn acquire end {self._reporter.run_id}` ends it"
            self._show(Event("note", f"stopped; the acquisition goes on: the same command watches on, {end}"))
        elif self._options.once and (self._problems or self._unusable):
            raise JobFailedError(self._unusable or f"not reported: {self._problem_list()}")

    def step(self) -> bool:
        """Look once, and do what there is to do; True if there was anything."""
        worked = self._advance()
        for z in self._candidates():
            if self._stopped:
                break
            worked = True
            self._verify(z)
            self._advance()
            self._status()
        return worked

    def missing(self) -> list[int]:
        """Sections that are not finished although later ones are, or that nobody photographed."""
        expected = self._layout.expected
        done = self._complete | self._state.reported.keys()
        if not done:
            return []
        first = expected.start if expected is not None else min(done)
        return [z for z in range(first, max(done)) if z not in done]

    # --- parts -----------------------------------------------------------------------------------

    def _candidates(self) -> list[int]:
        """Finished sections that are new or have changed."""
        try:
            self._layout.scan(self._state.reported.keys() - self._changed)
        except (UserError, OSError) as error:
            if str(error) != self._unusable:
                self._unusable = str(error)
                self._show(Event("note", f"{error}; looking again"))
            return []
        self._unusable = ""
        present = list(self._layout.present())
        for gone in self._problems.keys() - set(present):
            del self._problems[gone]
        known = [z for z in present if z in self._state.reported and z not in self._changed]
        count = len(known) if self._options.once else min(LOOK_AGAIN, len(known))
        for i in range(count):
            z = known[(self._turn + i) % len(known)]
            if self._layout.signature(z) not in ("", self._state.reported[z][0]):
                self._changed.add(z)
        self._turn += count
        candidates = []
        for z in present:
            if z in self._under_way or (z in self._state.reported and z not in self._changed):
                continue
            if not self._layout.complete(z):
                continue
            self._complete.add(z)
            problem = self._problems.get(z)
            if problem is None or problem[0] != self._layout.signature(z, tiles=True):
                candidates.append(z)
        return candidates

    def _verify(self, z: int) -> None:
        looked_at = self._layout.signature(z, tiles=True)
        try:
            signature = self._layout.signature(z)
            cargo = self._load(self._layout.plan(z), signature)
            if self._layout.signature(z, tiles=True) != looked_at:
                return  # it is being photographed again: look again
        except (TaskError, UserError, OSError) as error:
            self._problem(z, str(error), looked_at)
            return
        self._problems.pop(z, None)
        if self._state.reported.get(z, ("", ""))[1] == cargo.digest:
            self._changed.discard(z)  # touched, but the same
            self._state.note_reported(cargo)
            return
        self._under_way.add(z)
        self._mover.begin(cargo)

    def _load(self, plan: SectionPlan, signature: str) -> Cargo:
        section = acquisition_pb2.Section(
            z=plan.z, pixel_size_nm=plan.pixel_size_nm, thickness_nm=plan.thickness_nm, acquire_time=_time(plan)
        )
        files, size_bytes, form = [], 0, None
        for tile in plan.tiles:
            stamp = file_stamp(tile.path)
            found = verify_tile(tile.path, tile.size, plan.dtype)
            if form is not None and (found.width, found.height, found.dtype) != form:
                raise TaskError(
                    f"{tile.path} has {found.width} x {found.height} px of {found.dtype}, the section's other tiles"
                    f" {form[0]} x {form[1]} of {form[2]}"
                )
            form = (found.width, found.height, found.dtype) if tile.size is None else None
            x_nm, y_nm = _position(plan, tile, found)
            uri = self._mover.uri(plan.z, tile.path, found.sha256)
            section.tiles.add(
                uri=uri, row=tile.row, column=tile.col, x_nm=x_nm, y_nm=y_nm,
                width_px=found.width, height_px=found.height, sha256=found.sha256,
            )  # fmt: skip
            files.append((tile.path, stamp))
            size_bytes += found.size_bytes
        return Cargo(section, tuple(files), signature, plan.completed_at, size_bytes)

    def _advance(self) -> bool:
        """Take in what has arrived, and report."""
        arrivals = self._mover.poll()
        for arrival in arrivals:
            z = arrival.cargo.z
            if arrival.problem:
                self._under_way.discard(z)
                self._problem(z, arrival.problem, self._after(arrival.cargo))
            else:
                self._under_way.add(z)
                self._reporter.add(arrival.cargo, self._mover.in_place)
        answers = self._reporter.flush(lambda: self._stopped, self._options.imaged_again)
        for answer in answers:
            cargo, z = answer.cargo, answer.cargo.z
            self._under_way.discard(z)
            self._changed.discard(z)
            if answer.refused is not None:
                self._problem(z, answer.refused, self._after(cargo), refused=True)
                continue
            self._complete.add(z)
            self.reported_now += 1
            self._news = True
            lag_s = max(0.0, time.time() - cargo.completed_at)
            again = " again" if answer.imaged_again else ""
            tiles = len(cargo.section.tiles)
            text = f"section {z} reported{again}: {tiles} tiles, {cargo.size_bytes / 1e6:.1f} MB, {lag_s:.1f} s old"
            data = {"z": z, "tiles": tiles, "bytes": cargo.size_bytes, "lag_s": round(lag_s, 3)}
            self._show(Event("reported", text, {**data, "imaged_again": answer.imaged_again}))
        return bool(arrivals or answers)

    def _after(self, cargo: Cargo) -> str:
        """What its files must differ from to be looked at again; what changed on its way is, at once."""
        return self._layout.signature(cargo.z, tiles=True) if cargo.changed_file() is None else ""

    def _problem(self, z: int, reason: str, signature: str, refused: bool = False) -> None:
        self._problems[z] = (signature, reason)
        self._news = True
        kind, what = ("refused", "is refused") if refused else ("problem", "cannot be used (yet)")
        self._show(Event(kind, f"section {z} {what}: {reason}", {"z": z, "reason": reason}))

    def _all_reported(self) -> bool:
        expected = self._layout.expected
        return (
            expected is not None and self._nothing_under_way() and not self._changed
            and all(z in self._state.reported and z not in self._problems for z in expected)
        )  # fmt: skip

    def _nothing_under_way(self) -> bool:
        return not (self._under_way or self._reporter.waiting)

    def _idle(self) -> bool:
        return self._nothing_under_way() and not self._layout.settling

    def _nap(self) -> None:
        ends = time.monotonic() + self._options.poll_s
        while not self._stopped and (left := ends - time.monotonic()) > 0:
            time.sleep(min(left, NAP_S))

    def _status(self, at_end: bool = False) -> None:
        now = time.monotonic()
        if not at_end and (not self._news or now - self._shown < STATUS_EVERY_S):
            return
        self._shown, self._news = now, False
        missing, expected = self.missing(), self._layout.expected
        rate = self.reported_now / max(now - self._began, 1e-9)
        of = f" of {len(expected)}" if expected is not None else ""
        parts = [f"{len(self._state.reported)}{of} sections reported ({rate:.2f} sections/s)"]
        waiting = len(self._under_way)
        parts += [f"{waiting} on their way"] if waiting else []
        parts += [f"not reported: {self._problem_list()}"] if self._problems else []
        parts += [f"missing: {ranges(missing)}"] if missing else []
        data = {
            "reported": len(self._state.reported), "expected": None if expected is None else len(expected),
            "sections_per_s": round(rate, 4), "under_way": waiting, "missing": missing,
            "problems": {str(z): reason for z, (_, reason) in sorted(self._problems.items())},
        }  # fmt: skip
        self._show(Event("status", "; ".join(parts), data))

    def _problem_list(self) -> str:
        return "; ".join(f"section {z} ({reason})" for z, (_, reason) in sorted(self._problems.items())[:3]) + (
            f" and {len(self._problems) - 3} more" if len(self._problems) > 3 else ""
        )


def ranges(numbers: list[int]) -> str:
    """Ascending numbers as text: 3, 5-9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts[:20]) + (", …" if len(parts) > 20 else "")


def _position(plan: SectionPlan, tile: PlannedTile, found: TileFile) -> tuple[float, float]:
    if tile.x_nm is not None and tile.y_nm is not None:
        return tile.x_nm, tile.y_nm
    step = (1 - plan.overlap) * plan.pixel_size_nm
    return tile.col * found.width * step, tile.row * found.height * step


def _time(plan: SectionPlan) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(plan.acquired_at)
    return stamp
