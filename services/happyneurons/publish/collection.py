"""A Globus collection as a place: results go to a folder that Globus sees, then by Transfer to the collection.

The folder holds what was published, in plain files; only new and changed ones are sent, with their checksums
compared by Globus. The collection's HTTPS server is what browsers read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from happyneurons.acquisition.globus import Place, explain, fault_text
from happyneurons.errors import JobFailedError, UnavailableError, UserError
from happyneurons.publish.publishing import STATE
from happyneurons.store.documents import Store
from happyneurons.viewer.published import INDEX

if TYPE_CHECKING:
    import globus_sdk

LOG = ".globus.json"
"""In the folder, never sent: `{"target": COLLECTION:PATH, "submission": id or "", "task": id or "",
"sending": {path: tag}, "sent": {path: tag}}`."""
LAST = (STATE, INDEX)
TASK_FILES = 20_000
"""Globus takes a million of items a request; its own advice is tens of thousands."""

T = TypeVar("T")


def collection_of(to: str) -> Place | None:
    """The place that `globus://COLLECTION/PATH` names, None for other URIs. Raises UserError."""
    if not to.startswith("globus://"):
        return None
    collection, slash, path = to.removeprefix("globus://").partition("/")
    if not collection or not slash:
        raise UserError(f"{to}: write globus://COLLECTION/PATH, the collection's id and a folder in it")
    return Place(collection, f"/{path}".rstrip("/"))


class _RefusedError(UserError):
    """Globus will not do it, whoever asks again in the same words; the login is not to blame."""


class Sender:
    """Sends a folder to a collection; one that was killed goes on with the task that it began.

    The id of a submission is on disk before the transfer is asked for: Globus takes it once, so nothing is
    sent twice. Call `resume` before the folder is written to, and `send` afterwards.

    client: of the Transfer API. source: the folder as Globus sees it. tell: told of every task.
    """

    def __init__(
        self, client: globus_sdk.TransferClient, folder: Path, source: Place, target: Place,
        tell: Callable[[str], None], *, poll_s: float = 5.0,
    ) -> None:  # fmt: skip
        self._client, self._source, self._target = client, source, target
        self._tell, self._poll_s, self._log = tell, poll_s, folder / LOG
        self._store = Store(folder.as_uri())
        self._known: dict[str, Any] = {"submission": "", "task": "", "sending": {}, "sent": {}}
        if self._log.exists():
            self._known |= json.loads(self._log.read_text())
            if self._known.get("target") not in (None, self._name()):
                raise UserError(f"{folder} was sent to {self._known['target']}: take another folder for another place")
        self._known["target"] = self._name()

    def https_url(self) -> str:
        """What browsers read the target by. Raises UserError if the collection has no HTTPS."""
        server = self._ask(lambda c: c.get_endpoint(self._target.endpoint)).get("https_server")
        if not server:
            raise UserError(f"collection {self._target.endpoint} has no HTTPS server: browsers cannot read it")
        return f"{str(server).rstrip('/')}{quote(self._target.path)}"

    def resume(self) -> None:
        """Wait for what a killed sender began: a task that still reads the old index must not send the new one
        before its data. A task that failed, or that Globus does not know any more, is told; its files are sent anew.

        Raises UnavailableError, UserError.
        """
        if not self._known["submission"]:
            return
        try:
            self._ship()
        except (JobFailedError, _RefusedError) as error:
            self._tell(f"{error} (an earlier transfer; its files are sent again)")
            self._forget()

    def send(self) -> int:
        """Send what is new, what lists it last; returns the number of files.

        Raises JobFailedError, UnavailableError, UserError; the next call goes on.
        """
        there = {path: tag for path, _, tag in self._store.entries("") if not path.startswith(".")}
        new = sorted(path for path, tag in there.items() if self._known["sent"].get(path) != tag)
        data = [path for path in new if path not in LAST]
        batches = [data[first : first + TASK_FILES] for first in range(0, len(data), TASK_FILES)]
        for batch in (*batches, [path for path in LAST if path in new]):
            if batch:
                submission = str(self._ask(lambda c: c.get_submission_id())["value"])
                self._known |= {"submission": submission, "sending": {path: there[path] for path in batch}}
                self._save()
                self._ship()
        return len(new)

    def _ship(self) -> None:
        """Submit what is on the log, if no task came of it yet, and wait for the task."""
        import globus_sdk

        files = self._known["sending"]
        if not self._known["task"]:
            data = globus_sdk.TransferData(
                self._source.endpoint, self._target.endpoint, submission_id=self._known["submission"],
                label=f"publish {len(files)} files", sync_level="checksum", verify_checksum=True,
                notify_on_succeeded=False, notify_on_failed=False,
            )  # fmt: skip
            for path in files:
                data.add_item(f"{self._source.path}/{path}", f"{self._target.path}/{path}")
            try:
                self._known["task"] = str(self._ask(lambda c: c.submit_transfer(data))["task_id"])
            except _RefusedError:
                self._forget()  # no task comes of this id
                raise
            self._save()
        task = self._known["task"]
        self._tell(f"Globus transfer {task}: {len(files)} files")
        self._wait(task)
        self._known["sent"] |= files
        self._forget()

    def _wait(self, task: str) -> None:
        told = ""
        while (document := self._ask(lambda c: c.get_task(task)))["status"] != "SUCCEEDED":
            status = str(document.get("nice_status_short_description") or document.get("nice_status") or "")
            if document["status"] == "FAILED":
                fatal = document.get("fatal_error") or {}
                parts = [fatal.get("description") or status, self._last_fault(task)]
                why = "; ".join(dict.fromkeys(part for part in parts if part)) or "Globus does not say why"
                self._forget()
                raise JobFailedError(f"Globus transfer {task} failed: {why}; publish again to go on")
            if (document["status"] == "INACTIVE" or document.get("faults")) and status != told:
                told = status
                self._tell(f"Globus transfer {task} meets faults and goes on trying: {status} {self._last_fault(task)}")
            time.sleep(self._poll_s)

    def _last_fault(self, task: str) -> str:
        return fault_text(
            self._ask(lambda c: list(c.task_event_list(task, limit=1, query_params={"filter": "is_error:1"})))
        )

    def _forget(self) -> None:
        self._known |= {"submission": "", "task": "", "sending": {}}
        self._save()

    def _save(self) -> None:
        new = self._log.with_suffix(".new")
        new.write_text(json.dumps(self._known))
        new.replace(self._log)

    def _name(self) -> str:
        return f"{self._target.endpoint}:{self._target.path}"

    def _ask(self, question: Callable[[globus_sdk.TransferClient], T]) -> T:
        import globus_sdk

        try:
            return question(self._client)
        except globus_sdk.GlobusError as error:
            hindrance = explain(error, "the collections and their paths")
            if hindrance.refused:
                raise _RefusedError(hindrance.text) from error
            if hindrance.login:
                raise UserError(hindrance.text) from error
            raise UnavailableError(f"{hindrance.text}; publish again to go on") from error
