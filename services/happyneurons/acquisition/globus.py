"""Moves tiles by Globus Transfer, in batches of sections.

The id of a submission is on disk before the transfer is asked for. Globus takes a submission id once, so
whoever asks again with it (after a crash, or because the answer was lost) gets the same task, never a
second transfer. Files travel with their checksums verified; a source that changed since it was verified
is noticed afterwards, and its section looked at again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from happyneurons.acquisition.state import Shipment, WatchState
from happyneurons.acquisition.transfer import LONGEST_PAUSE_S, Arrival, Backoff, Cargo, moved_name
from happyneurons.errors import UserError
from happyneurons.store.documents import normalize_uri

if TYPE_CHECKING:
    import globus_sdk

ATTEMPTS = 3
"""Transfers of a section, alone, before it is put aside until it changes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A folder of a Globus collection."""

    endpoint: str
    path: str

    @classmethod
    def parse(cls, text: str, option: str) -> Place:
        """From `ENDPOINT:PATH`. Raises UserError."""
        endpoint, _, path = text.partition(":")
        if not endpoint or not path.startswith(("/", "~")):
            raise UserError(f"{option} {text}: write ENDPOINT:/PATH, the collection's id and a folder in it")
        return cls(endpoint, path.rstrip("/"))


@dataclass(frozen=True)
class Route:
    """`folder` here is `source` for Globus; what lies below `target` is seen by sites below the URI `tiles_at`."""

    folder: Path
    source: Place
    target: Place
    tiles_at: str


class _Later(Exception):
    """Globus did not do it; it was said why. `refused`: it will not, either, if asked in the same words."""

    def __init__(self, refused: bool = False) -> None:
        super().__init__()
        self.refused = refused


class GlobusMover:
    """Sections gather while a transfer is under way; the next one takes up to `batch` of them.

    connect: makes a client; called again after the login failed, so that a renewed one is taken up.
    tell: told once what hinders, and that it is over. Whatever is on its way is kept in `state`.
    """

    in_place = False

    def __init__(
        self, connect: Callable[[], globus_sdk.TransferClient], route: Route, state: WatchState,
        tell: Callable[[str], None], *, batch: int = 100, at_once: int = 2, task_poll_s: float = 5.0,
        backoff_s: float = 1.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Raises UserError if there is no login, or Globus does not take it."""
        self._connect, self._route, self._state, self._tell = connect, route, state, tell
        self._batch, self._at_once, self._task_poll_s, self._clock = batch, at_once, task_poll_s, clock
        self._tiles_at = normalize_uri(route.tiles_at)
        self._queue: deque[Cargo] = deque()
        self._alone: deque[Cargo] = deque()
        self._failures: dict[str, int] = {}
        self._faults: dict[str, str] = {}
        # What an earlier watcher sent off, then what this one does.
        self._shipments = list(state.shipments.values())
        self._look_at: dict[str, float] = {}
        self._hindered, self._alone_pause, self._said = Backoff(backoff_s, clock), Backoff(backoff_s, clock), ""
        self._client = self._first_login()

    def uri(self, z: int, file: Path, sha256: str) -> str:
        return f"{self._tiles_at}/{moved_name(z, file, sha256)}"

    def begin(self, cargo: Cargo) -> None:
        self._queue.append(cargo)

    def sections(self) -> set[int]:
        shipped = [cargo for shipment in self._shipments for cargo in shipment.cargos]
        return {cargo.z for cargo in (*self._queue, *self._alone, *shipped)}

    def poll(self) -> list[Arrival]:
        arrivals: list[Arrival] = []
        try:
            for shipment in list(self._shipments):
                arrivals += self._follow(shipment)
            while len(self._shipments) < self._at_once and (cargos := self._next_batch()):
                self._ship(cargos)
        except _Later:
            pass
        return arrivals

    # --- one transfer ----------------------------------------------------------------------------

    def _next_batch(self) -> list[Cargo]:
        if self._queue:
            return [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
        if self._alone and self._alone_pause.due:
            return [self._alone.popleft()]
        return []

    def _ship(self, cargos: list[Cargo]) -> None:
        try:
            submission = str(self._ask(lambda client: client.get_submission_id()["value"]))
        except _Later:
            self._queue.extendleft(reversed(cargos))
            raise
        shipment = Shipment(submission, cargos)
        self._state.note_shipment(shipment)
        # The state's own one: cargos leave it as they are reported.
        shipment = self._state.shipments[submission]
        self._shipments.append(shipment)
        self._submit(shipment)

    def _submit(self, shipment: Shipment) -> None:
        import globus_sdk

        data = globus_sdk.TransferData(
            self._route.source.endpoint, self._route.target.endpoint, submission_id=shipment.submission,
            label=f"sections {min(c.z for c in shipment.cargos)} to {max(c.z for c in shipment.cargos)}",
            sync_level="checksum", verify_checksum=True, notify_on_succeeded=False, notify_on_failed=False,
        )  # fmt: skip
        for cargo in shipment.cargos:
            for (file, _), tile in zip(cargo.files, cargo.section.tiles, strict=True):
                source = f"{self._route.source.path}/{file.relative_to(self._route.folder).as_posix()}"
                data.add_item(source, f"{self._route.target.path}/{moved_name(cargo.z, file, tile.sha256)}")
        try:
            shipment.task = str(self._ask(lambda client: client.submit_transfer(data)["task_id"]))
        except _Later as error:
            if error.refused:  # no task came of it: this id will not do, another may
                self._give_up(shipment)
                self._queue.extendleft(reversed(shipment.cargos))
            raise
        self._state.note_task(shipment.submission, shipment.task)

    def _follow(self, shipment: Shipment) -> list[Arrival]:
        if shipment.arrived:
            return self._arrive(shipment)
        if not shipment.task:
            self._submit(shipment)
            return []
        if self._clock() < self._look_at.get(shipment.task, 0.0):
            return []
        try:
            task = self._ask(lambda client: client.get_task(shipment.task).data)
        except _Later as error:
            if error.refused:  # forgotten by Globus, or of another login
                self._give_up(shipment)
                self._queue.extendleft(reversed(shipment.cargos))
            raise
        if task["status"] == "SUCCEEDED":
            self._state.note_arrived(shipment.submission)
            return self._arrive(shipment)
        if task["status"] == "FAILED":
            return self._failed(shipment, task)
        self._look_at[shipment.task] = self._clock() + self._task_poll_s
        self._tell_faults(shipment, task)
        return []

    def _arrive(self, shipment: Shipment) -> list[Arrival]:
        self._shipments.remove(shipment)
        arrivals = []
        for cargo in list(shipment.cargos):
            changed = cargo.changed_file()
            problem = f"{changed} changed while Globus moved it" if changed else ""
            arrivals.append(Arrival(cargo, problem))
        return arrivals

    def _failed(self, shipment: Shipment, task: dict[str, Any]) -> list[Arrival]:
        why = f"Globus transfer {shipment.task} failed: {self._reason(shipment, task)}"
        self._give_up(shipment)
        arrivals = []
        for cargo in shipment.cargos:
            # Of many, one may be to blame: each gets its own transfer.
            alone = len(shipment.cargos) == 1
            self._failures[cargo.digest] = self._failures.get(cargo.digest, 0) + alone
            if self._failures[cargo.digest] >= ATTEMPTS:
                del self._failures[cargo.digest]
                arrivals.append(Arrival(cargo, why))
            else:
                self._alone.append(cargo)
        if self._alone:
            self._tell(f"{why}; its sections are tried again one by one")
            self._alone_pause.failed()
        return arrivals

    def _give_up(self, shipment: Shipment) -> None:
        self._shipments.remove(shipment)
        self._state.note_dropped(shipment.submission)

    # --- explanations ----------------------------------------------------------------------------

    def _reason(self, shipment: Shipment, task: dict[str, Any]) -> str:
        fatal = task.get("fatal_error") or {}
        parts = [fatal.get("description") or fatal.get("code") or task.get("nice_status_short_description") or ""]
        with contextlib.suppress(_Later):  # else the task's own words must do
            parts.append(self._last_fault(shipment.task))
        return "; ".join(dict.fromkeys(part for part in parts if part)) or "Globus does not say why"

    def _tell_faults(self, shipment: Shipment, task: dict[str, Any]) -> None:
        """Once for each new kind of fault; Globus itself tries again until the task's deadline."""
        status = str(task.get("nice_status") or "")
        trouble = task["status"] == "INACTIVE" or (bool(task.get("faults")) and status not in ("", "OK", "Queued"))
        if not trouble or self._faults.get(shipment.task) == status:
            return
        self._faults[shipment.task] = status
        text = task.get("nice_status_short_description") or status or "it is paused"
        what = "waits for somebody" if task["status"] == "INACTIVE" else "meets faults and goes on trying"
        fault = self._last_fault(shipment.task)
        self._tell(f"Globus transfer {shipment.task} {what}: {text}{'; ' if fault else ''}{fault}")

    def _last_fault(self, task: str) -> str:
        return fault_text(
            self._ask(lambda c: list(c.task_event_list(task, limit=1, query_params={"filter": "is_error:1"})))
        )

    def _first_login(self) -> globus_sdk.TransferClient | None:
        import globus_sdk

        try:
            return self._connect()
        except globus_sdk.GlobusError as error:
            hindrance = explain(error)
            if hindrance.login or hindrance.refused:
                raise UserError(hindrance.text) from error
            return None  # away; that is nothing to stop for

    def _ask(self, question: Callable[[globus_sdk.TransferClient], T]) -> T:
        """Globus' answer. Raises _Later when it is not the time to ask, or the answer was an error."""
        import globus_sdk

        if not self._hindered.due:
            raise _Later()
        try:
            if self._client is None:
                self._client = self._connect()
            answer = question(self._client)
        except (globus_sdk.GlobusError, UserError) as error:
            # UserError: the login's file is being renewed, or was broken.
            hindrance = Hindrance(str(error), login=True) if isinstance(error, UserError) else explain(error)
            if hindrance.login:
                self._client = None
            if hindrance.text != self._said:
                self._tell(f"{hindrance.text}; sections wait here meanwhile")
            self._said = hindrance.text
            self._hindered.failed(hindrance.pause_s)
            raise _Later(hindrance.refused) from error
        if self._hindered.succeeded():
            self._said = ""
            self._tell("Globus answers again")
        return answer


def fault_text(events: Sequence[Any]) -> str:
    """What the first of a task's error events says, with the paths that it names; "" if there is none."""
    if not events:
        return ""
    details = str(events[0].get("details") or "")
    try:
        paths = [str(c["path"]) for c in json.loads(details)["context"] if "path" in c]
        details = ", ".join(paths) or details
    except (ValueError, KeyError, TypeError):
        pass  # plain text
    return f"{events[0].get('description') or events[0].get('code')} ({' '.join(details.split())[:300]})"


class Hindrance(NamedTuple):
    """Why Globus did not do it. text: one line that says what to do; refused: it will not do it, if asked in
    the same words; login: the login is to blame."""

    text: str
    pause_s: float = 0.0
    refused: bool = False
    login: bool = False


def explain(error: globus_sdk.GlobusError, named: str = "--globus-source and --globus-target") -> Hindrance:
    """What an error of the SDK means. named: what the user should check if Globus refuses."""
    import globus_sdk

    if not isinstance(error, globus_sdk.GlobusAPIError):
        return Hindrance(f"Globus cannot be reached ({_line(error)})")
    status, said = error.http_status, _line(error.message or error.code or error.http_reason)
    if status == 429 or status >= 500:
        after = error.headers.get("Retry-After", "")
        what = "asks for fewer requests" if status == 429 else "is not available"
        return Hindrance(f"Globus {what} ({status}: {said})", float(after) if after.isdecimal() else 0.0)
    if status == 401 or isinstance(error, globus_sdk.AuthAPIError):
        what = "renew the refresh token or the client secret"
        return Hindrance(f"Globus does not take the login (any more; {status}: {said}): {what}", login=True)
    if error.info.consent_required or error.info.authorization_parameters:
        return Hindrance(f"Globus wants a consent or a new login for this collection ({status}: {said})", login=True)
    text = f"Globus refuses ({status}: {said}): check {named}"
    return Hindrance(text, LONGEST_PAUSE_S, refused=True)


def _line(value: object) -> str:
    text = str(value).strip().splitlines()
    return text[0] if text else type(value).__name__
