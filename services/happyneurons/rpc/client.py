"""Channels and calls: deadlines everywhere, retries where they help, our errors instead of gRPC's.

Every call of our services may be repeated (their comments say why), so a call that found the
server away is tried again by gRPC itself, and a broken stream goes on where it stopped
(:func:`resume`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from happyneurons.errors import OverloadedError, UnavailableError, UserError
from happyneurons.rpc.access import Access
from happyneurons.rpc.errors import from_rpc_error, rpc_errors
from happyneurons.rpc.limits import KEEPALIVE_S, MESSAGE_SIZE_OPTIONS

DEADLINE_S = 30.0
"""For calls that answer once. They touch the store a few times; nothing waits for a job."""

RESUME_FOR_S = 60.0
"""How long a watcher puts up with a server that is away."""

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

T = TypeVar("T")


def connect(address: str, access: Access | None = None, *, authority: str = "") -> grpc.Channel:
    """A channel to `host:port`. It connects with the first call, and again whenever it must.

    access: how to get in; by default what the environment says (HPN_TLS_CA, HPN_TOKEN_FILE, …).
    authority: the name that the server's certificate must have, if it is not that of the address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"server address {address!r}: write host:port, such as 127.0.0.1:50051")
    return (Access.from_environment() if access is None else access).channel(
        address,
        [
            *MESSAGE_SIZE_OPTIONS,
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_reconnect_backoff_ms", 2000),
            *(
                [("grpc.default_authority", authority), ("grpc.ssl_target_name_override", authority)]
                if authority
                else []
            ),
        ],
    )


def call(
    method: Any, request: Any, *, timeout_s: float = DEADLINE_S, peer: str = "the server", patient: bool = True
) -> Any:  # fmt: skip
    """The answer of a call that answers once. Raises the error that the server raised.

    Who asks too often waits as long as the server says, within the call's time; not if not `patient`.
    """
    ends = time.monotonic() + timeout_s
    while True:
        try:
            with rpc_errors(peer):
                return method(request, timeout=max(0.001, ends - time.monotonic()))
        except OverloadedError as error:
            if not patient or isinstance(request, Iterator) or time.monotonic() + error.retry_after_s > ends:
                raise
            time.sleep(error.retry_after_s)


def stream(method: Any, request: Any, *, timeout_s: float | None = None, peer: str = "the server") -> Iterator[Any]:
    """The answers of a stream; it is cancelled when the caller stops reading."""
    answers = None
    try:
        answers = method(request, timeout=timeout_s)
        yield from answers
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from error
    finally:
        if answers is not None:
            answers.cancel()


def resume(begin: Callable[[T | None], Iterator[Any]], position: Callable[[Any], T]) -> Iterator[Any]:
    """A stream that outlives its connection and its server.

    begin: opens the stream after a position (None: at the start); position: where an answer lies.
    Raises UnavailableError when nothing came for RESUME_FOR_S, and at once whatever else goes wrong.
    """
    last: T | None = None
    patience_ends, pause_s = time.monotonic() + RESUME_FOR_S, 0.2
    while True:
        try:
            for answer in begin(last):
                last = position(answer)
                patience_ends, pause_s = time.monotonic() + RESUME_FOR_S, 0.2
                yield answer
        except UnavailableError:
            if time.monotonic() + pause_s > patience_ends:
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)
        else:
            return
