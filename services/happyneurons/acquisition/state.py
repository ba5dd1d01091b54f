"""What a watcher has done, kept on disk so that its successor goes on where it stopped.

`RUN.jsonl` holds one JSON object a line and is only ever appended to; of lines about the same thing the
last one counts, and a line cut short by a crash is passed over. Losing a line, or the whole file, makes
the watcher look again at what it knew: its reports are repeated, and equal reports change nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from happyneurons.acquisition.transfer import Cargo
from happyneurons.errors import UserError

STATE_FOLDER = ".hpn-watch"


@dataclass
class Shipment:
    """Sections moved together by one transfer, less those that are reported. `task` is empty while nobody knows
    that the transfer was accepted."""

    submission: str
    cargos: list[Cargo]
    task: str = ""
    arrived: bool = False


@dataclass
class WatchState:
    """reported: section → (signature, digest) of its last report. shipments: those with sections not reported."""

    path: Path
    reported: dict[int, tuple[str, str]] = field(default_factory=dict)
    shipments: dict[str, Shipment] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, run_id: str) -> WatchState:
        """The state of a run in a folder; a new one if there is none. Raises UserError if it cannot be written."""
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in run_id)
        state = cls(folder / f"{name}.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = state.path.read_bytes() if state.path.exists() else b""
            # After a crash in the middle of a line the next one must not be glued to it.
            state._append(b"\n" if data and not data.endswith(b"\n") else b"", sync=False)
        except OSError as error:
            raise UserError(
                f"the watcher's state cannot be kept in {folder} ({error.strerror}); name another folder with --state"
            ) from None
        for line in data.splitlines():
            try:
                state._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # cut short
        return state

    def note_reported(self, cargo: Cargo) -> None:
        self._write({"z": cargo.z, "signature": cargo.signature, "digest": cargo.digest})

    def note_shipment(self, shipment: Shipment) -> None:
        """On disk before the transfer is asked for: a successor asks for this one again, not for another."""
        record = {"submission": shipment.submission, "cargos": [c.to_json() for c in shipment.cargos]}
        self._write(record, sync=True)

    def note_task(self, submission: str, task: str) -> None:
        self._write({"submission": submission, "task": task})

    def note_arrived(self, submission: str) -> None:
        self._write({"submission": submission, "arrived": True})

    def note_dropped(self, submission: str) -> None:
        """The transfer came to nothing."""
        self._write({"submission": submission, "dropped": True})

    def _write(self, record: dict[str, Any], sync: bool = False) -> None:
        try:
            self._append(json.dumps(record, separators=(",", ":")).encode() + b"\n", sync)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); start again when it can, nothing is lost"
            ) from error
        self._take(record)

    def _append(self, data: bytes, sync: bool) -> None:
        # One write at the end of the file: two watchers' lines do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _take(self, record: dict[str, Any]) -> None:
        if "submission" not in record:
            z = int(record["z"])
            self.reported[z] = (record["signature"], record["digest"])
            for shipment in list(self.shipments.values()):
                shipment.cargos = [c for c in shipment.cargos if c.z != z]
                if not shipment.cargos:
                    del self.shipments[shipment.submission]
        elif "cargos" in record:
            cargos = [Cargo.from_json(c) for c in record["cargos"]]
            self.shipments[record["submission"]] = Shipment(record["submission"], cargos)
        elif record.get("dropped"):
            self.shipments.pop(record["submission"], None)
        elif record["submission"] in self.shipments:
            shipment = self.shipments[record["submission"]]
            shipment.task, shipment.arrived = record.get("task", shipment.task), record.get("arrived", shipment.arrived)
