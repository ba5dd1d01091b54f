"""Balsam's REST interface, as far as we need it. No import of Balsam, nothing cached but connections.

Every call ends within the configured timeout. What goes wrong is told apart by who can mend it:
UnavailableError (server away or overloaded, token expired: goes on by itself), NotFoundError, and
UserError (the request itself is refused, with the server's words).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from happyneurons.errors import NotFoundError, UnavailableError, UserError
from happyneurons.executors.balsam.config import BalsamAccess
from happyneurons.executors.balsam.token import Token, TokenSource

PAGE = 1000  # items of one answer
BULK = 1000  # items of one request that changes or creates; the server takes 5,000
IDS = 200  # ids of one query: an address may not be longer than a few kilobytes
DETAIL_CHARS = 300

Record = dict[str, Any]


class _Bearer(requests.auth.AuthBase):
    """A token for one request. As `auth` it also keeps a ~/.netrc from being sent instead."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class BalsamApi:
    """Calls to one server. Thread-safe: each thread has connections of its own, kept alive."""

    def __init__(self, access: BalsamAccess) -> None:
        self.root = access.api.rstrip("/")
        if urlsplit(self.root).scheme not in ("http", "https"):
            raise UserError(f"balsam api {access.api!r}: expected a URL, http(s)://HOST[:PORT]")
        self._timeout_s = access.timeout_s
        self._tokens = TokenSource(access)
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()

    # --- what is asked -------------------------------------------------------------------------

    def find(self, path: str, **filters: Any) -> list[Record]:
        """Records of a collection that match, by id; page after page.

        One that leaves the selection between two pages shifts the others, so one may be missing: whoever
        misses a record must ask for it by id.
        """
        found: dict[int, Record] = {}
        while True:
            answer = self.call("GET", path, {**filters, "limit": PAGE, "offset": len(found)})
            found.update((record["id"], record) for record in answer["results"])
            if len(answer["results"]) < PAGE:
                return [found[n] for n in sorted(found)]

    def find_ids(self, path: str, field: str, ids: Iterable[int], **filters: Any) -> list[Record]:
        """Records whose `field` is one of `ids`, however many they are."""
        wanted = chunks(sorted(set(ids)), IDS)
        return [record for some in wanted for record in self.find(path, **{field: some}, **filters)]

    def jobs(self, **filters: Any) -> list[Record]:
        return self.find("/jobs/", **filters)

    def batch_jobs(self, **filters: Any) -> list[Record]:
        return self.find("/batch-jobs/", **filters)

    def site(self, name: str) -> Record:
        """The site of a name. Raises UserError naming those that exist."""
        for site in self.find("/sites/", name=name):
            return site
        names = ", ".join(sorted(site["name"] for site in self.find("/sites/"))) or "none"
        raise UserError(f"{self.root} has no site {name!r} (it has: {names}); `hpn site init` makes one")

    def app_id(self, site: Record, name: str) -> int:
        """The application of a name at a site. Raises UserError naming those that exist."""
        apps = self.find("/apps/", site_id=site["id"])
        for app in apps:
            if app["name"] == name:
                return int(app["id"])
        names = ", ".join(sorted(app["name"] for app in apps)) or "none"
        raise UserError(
            f"Balsam site {site['name']} has no app {name!r} (it has: {names}); `hpn site init` registers ours"
        )

    # --- what is changed -----------------------------------------------------------------------

    def create_jobs(self, jobs: Sequence[Record]) -> list[Record]:
        return [record for some in chunks(jobs, BULK) for record in self.call("POST", "/jobs/", body=list(some))]

    def update_jobs(self, changes: Sequence[Record]) -> None:
        for some in chunks(changes, BULK):
            self.call("PATCH", "/jobs/", body=list(some))

    def create_batch_job(self, request: Record) -> Record:
        found: Record = self.call("POST", "/batch-jobs/", body=request)
        return found

    def end_batch_job(self, number: int) -> Record:
        """Take it out of the scheduler's queue, or end it there with all that runs in it; harmless when it is over."""
        known: Record = self.call("GET", f"/batch-jobs/{number}")
        if known["state"] not in ("pending_submission", "queued", "running"):
            return known  # asked again to delete what has ended, the server would have it live for ever
        # One that the scheduler has not got yet is over at once: asked to delete it, Balsam's agent stumbles
        # over the missing number in each of its rounds, and neither submits nor deletes anything any more.
        state = "finished" if known.get("scheduler_id") is None else "pending_deletion"
        found: Record = self.call("PUT", f"/batch-jobs/{number}", body={"state": state})
        return found

    # --- how -----------------------------------------------------------------------------------

    def call(self, method: str, path: str, params: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """One request. A refused token is read again once, since it may just have been renewed."""
        token = self._token()
        response = self._request(method, path, params, body, token)
        if response.status_code == 401:
            self._tokens.forget()
            renewed = self._token()
            if renewed.value == token.value:
                raise UnavailableError(
                    f"the Balsam server at {self.root} does not accept the token in {token.source} "
                    f"({_detail(response)}): run `balsam login`"
                )
            response = self._request(method, path, params, body, renewed)
        if response.ok:
            try:
                return response.json()
            except ValueError:
                raise UnavailableError(f"{self.root} did not answer in JSON: is it a Balsam server?") from None
        status, detail = response.status_code, _detail(response)
        if status >= 500 or status in (401, 408, 429):
            raise UnavailableError(f"the Balsam server at {self.root} answers {status} to {method} {path}: {detail}")
        if status == 404:
            raise NotFoundError(f"the Balsam server at {self.root} knows nothing of {path}: {detail}")
        raise UserError(f"the Balsam server at {self.root} refuses {method} {path}: {detail}")

    def _token(self) -> Token:
        token = self._tokens.read()
        if token.expired():
            assert token.expiry is not None
            raise UnavailableError(
                f"the Balsam token in {token.source} expired at {token.expiry:%Y-%m-%d %H:%M} UTC: run `balsam login`; "
                "waiting work goes on by itself then"
            )
        return token

    def _request(
        self, method: str, path: str, params: Mapping[str, Any] | None, body: Any, token: Token
    ) -> requests.Response:
        # A kept connection that the server just closed is no news of the server. Asking twice is
        # harmless for anything but POST: who creates looks first whether it did.
        for last in (method == "POST", True):
            try:
                return self._session().request(
                    method, self.root + path, params=params, json=body, auth=_Bearer(token.value),
                    timeout=self._timeout_s, allow_redirects=False,
                )  # fmt: skip
            except requests.Timeout:
                raise UnavailableError(
                    f"Balsam server {self.root} does not answer within {self._timeout_s:g} s ({method} {path})"
                ) from None
            except requests.ConnectionError as error:
                if last:
                    reason = _innermost(error)
                    raise UnavailableError(f"Balsam server {self.root} does not answer: {reason}") from None
            except requests.RequestException as error:
                raise UserError(f"Balsam server {self.root}: {error}") from None
        raise AssertionError("unreachable")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            with self._lock:
                self._sessions.append(session)
        return session

    def close(self) -> None:
        with self._lock:
            for session in self._sessions:
                session.close()


T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size`."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _detail(response: requests.Response) -> str:
    """What the server says, on one line."""
    try:
        document = response.json()
    except ValueError:
        text = response.text or response.reason or ""
    else:
        found = document.get("detail", document.get("error", document)) if isinstance(document, dict) else document
        if isinstance(found, list):  # FastAPI's list of wrong fields
            found = "; ".join(
                f"{'.'.join(str(p) for p in e.get('loc', []))}: {e.get('msg')}" if isinstance(e, dict) else str(e)
                for e in found
            )
        text = str(found)
    return " ".join(text.split())[:DETAIL_CHARS]


def _innermost(error: BaseException) -> str:
    """`Connection refused` rather than three layers of libraries around it."""
    inner: Any = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    text = str(inner if not getattr(inner, "args", None) else inner.args[-1])
    return " ".join(text.split())[:DETAIL_CHARS]
