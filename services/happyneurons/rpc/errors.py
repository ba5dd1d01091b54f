"""Our errors as google.rpc.Status, and back.

A server raises the same errors as any other code; :func:`to_status` gives them a code and
details: BadRequest with each wrong field, RetryInfo where trying again helps, ErrorInfo with the
error's class, by which :func:`from_rpc_error` makes the same error at the client. A client in
another language needs none of this: code, message and BadRequest say it all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from happyneurons import errors
from happyneurons.errors import EXIT_TRY_AGAIN, HappyError, UserError

DOMAIN = "happyneurons"
RETRY_AFTER_S = 2
TLS_HINT = "check HPN_TLS_CA, HPN_TLS_CERT and HPN_TLS_KEY (docs/security.md)"

Code = grpc.StatusCode

# The most special classes first: the first that fits counts.
_CODES: list[tuple[type[HappyError], grpc.StatusCode]] = [
    (errors.UnauthenticatedError, Code.UNAUTHENTICATED),
    (errors.PermissionDeniedError, Code.PERMISSION_DENIED),
    (errors.OverloadedError, Code.RESOURCE_EXHAUSTED),
    (errors.ConflictError, Code.ALREADY_EXISTS),
    (errors.PreconditionError, Code.FAILED_PRECONDITION),
    (errors.StoreAccessError, Code.FAILED_PRECONDITION),
    (errors.UserError, Code.INVALID_ARGUMENT),
    (errors.NotFoundError, Code.NOT_FOUND),
    (errors.UnavailableError, Code.UNAVAILABLE),
    (errors.StoreError, Code.UNAVAILABLE),
    (errors.DrainedError, Code.UNAVAILABLE),
    (errors.SupersededError, Code.ABORTED),
    (errors.JobFailedError, Code.FAILED_PRECONDITION),
    (errors.CancelledError, Code.FAILED_PRECONDITION),
]
_BY_NAME = {cls.__name__: cls for cls, _ in _CODES}
_BY_CODE: dict[grpc.StatusCode, type[HappyError]] = {
    Code.INVALID_ARGUMENT: errors.UserError,
    Code.OUT_OF_RANGE: errors.UserError,
    Code.RESOURCE_EXHAUSTED: errors.UserError,
    Code.UNAUTHENTICATED: errors.UnauthenticatedError,
    Code.PERMISSION_DENIED: errors.PermissionDeniedError,
    Code.ALREADY_EXISTS: errors.ConflictError,
    Code.FAILED_PRECONDITION: errors.PreconditionError,
    Code.NOT_FOUND: errors.NotFoundError,
    Code.UNAVAILABLE: errors.UnavailableError,
    Code.DEADLINE_EXCEEDED: errors.UnavailableError,
    Code.ABORTED: errors.SupersededError,
}


def to_status(error: BaseException) -> status_pb2.Status:
    """The status to answer with. What is not ours says nothing of itself: it may hold secrets."""
    if not isinstance(error, HappyError):
        return status_pb2.Status(code=_number(Code.INTERNAL), message="internal error; the server's log says more")
    code = next((code for cls, code in _CODES if isinstance(error, cls)), Code.UNKNOWN)
    # The class that clients know, of which this one may be a special case.
    reason = next((cls.__name__ for cls, _ in _CODES if isinstance(error, cls)), "HappyError")
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    if isinstance(error, UserError) and error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=path, description=expected)
            for path, expected in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.exit_code == EXIT_TRY_AGAIN:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1000 * getattr(error, "retry_after_s", RETRY_AFTER_S)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=_number(code), message=str(error), details=[_pack(d) for d in details])


def from_rpc_error(error: grpc.RpcError, peer: str = "the server") -> HappyError:
    """The error that the server raised, or what its code means. `peer` is what messages call the server."""
    call: Any = error  # errors of calls are calls, too; the type does not say so
    code: grpc.StatusCode = call.code() or Code.UNKNOWN
    text = call.details() or code.name
    status = rpc_status.from_call(call)
    if status is not None:
        cls, violations, retry_after_s = _details(status)
        if cls is not None and issubclass(cls, errors.OverloadedError):
            return cls(text, retry_after_s)
        if cls is not None:
            return cls(text, violations) if issubclass(cls, UserError) else cls(text)
    if code is Code.UNAVAILABLE:
        if any(word in text.lower() for word in ("handshake", "certificate", "ssl")):
            return errors.UnavailableError(
                f"{peer} and this client do not come to terms about TLS ({text}): {TLS_HINT}"
            )
        # How a server with TLS hangs up on plain text, and one that asks for certificates on a client without.
        hung_up = any(word in text.lower() for word in ("socket closed", "connection reset"))
        hint = f", and does it ask for TLS or a certificate? If so, {TLS_HINT}" if hung_up else "?"
        return errors.UnavailableError(f"{peer} does not answer ({text}); is it running{hint}")
    if code is Code.DEADLINE_EXCEEDED:
        return errors.UnavailableError(f"{peer} did not answer in time; try again")
    if code is Code.UNIMPLEMENTED:
        return UserError(f"{peer} does not know this call ({text}); it may serve something else, or an older version")
    return _BY_CODE.get(code, HappyError)(f"{peer}: {text}" if code is Code.INTERNAL else text)


@contextlib.contextmanager
def rpc_errors(peer: str = "the server") -> Iterator[None]:
    """Calls in this block raise our errors instead of grpc.RpcError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from error


def _details(status: status_pb2.Status) -> tuple[type[HappyError] | None, list[tuple[str, str]], float | None]:
    """The error's class, the fields that are wrong, and the seconds after which to try again."""
    cls: type[HappyError] | None = None
    violations: list[tuple[str, str]] = []
    retry_after_s: float | None = None
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            cls = _BY_NAME.get(info.reason, HappyError)
        elif detail.Unpack(bad_request):
            violations = [(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return cls, violations, retry_after_s


def _pack(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])
