"""Access control around every call: who calls, whether they may, how much, and a line about it.

A call is judged before its message is read: until then it has cost a thread of the server nothing but
its headers. That is why methods are served as if they took a stream of messages, of which the first
is the request; on the wire it is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from happyneurons.errors import (
    HappyError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UserError,
)
from happyneurons.rpc.auth.audit import AuditLog, about
from happyneurons.rpc.auth.certificates import CertificateCallers
from happyneurons.rpc.auth.config import Oidc, SecurityConfig
from happyneurons.rpc.auth.limits import Rate, Slots
from happyneurons.rpc.auth.methods import Rule, rule_of
from happyneurons.rpc.auth.oidc import OidcTokens
from happyneurons.rpc.auth.principal import Principal, Role, calling
from happyneurons.rpc.auth.tokens import StaticTokens
from happyneurons.rpc.errors import to_status

BEARER = "bearer "
ANYBODY = Principal("", Role.VIEWER, frozenset())
"""Whoever asks for the server's health."""


class Guard:
    """Made of a security file; one for each server. Thread-safe."""

    def __init__(self, config: SecurityConfig, oidc: Callable[[Oidc], OidcTokens] = OidcTokens) -> None:
        """Raises UserError for files that cannot be read."""
        self._tokens = StaticTokens(config.tokens) if config.tokens else None
        self._oidc = oidc(config.oidc) if config.oidc else None
        self._certificates = CertificateCallers(config.certificates)
        self._reflection = Rule(None if config.reflection in ("open", "off") else Role[config.reflection.upper()])
        limits = config.limits
        self._rate = Rate(limits.requests_per_s, limits.burst)
        self._calls = Slots("calls", limits.calls_per_client, None)
        self._streams = Slots("streams", limits.streams_per_client, None)
        self._audit, self._audit_reads = AuditLog(config.audit.file), config.audit.reads

    def close(self) -> None:
        self._audit.close()

    def protect(self, service: str, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """The handler of a method, behind everything that a caller has to pass."""
        rule = rule_of(service, method, self._reflection)
        streams = handler.request_streaming or handler.response_streaming
        if rule is not None and rule.role is None and not streams:
            return handler  # health checks: a probe must not fail because somebody asks too much
        behaviour: Any = next(
            b for b in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream) if b
        )

        def call(messages: Iterator[Any], context: grpc.ServicerContext) -> _Call:
            return _Call(self, rule, service, method, messages, context, streams)

        def single(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with call(messages, context) as admitted:
                response = behaviour(admitted.request(handler.request_streaming), context)
                admitted.response = response
                return response

        def many(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with call(messages, context) as admitted:
                yield from behaviour(admitted.request(handler.request_streaming), context)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                many, handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(single, handler.request_deserializer, handler.response_serializer)

    def identify(self, context: grpc.ServicerContext) -> Principal:
        """Who calls. A token counts before a certificate. Raises UnauthenticatedError, UnavailableError."""
        given = [str(v) for k, v in context.invocation_metadata() if k == "authorization"]
        if given:
            if len(given) > 1 or given[0][: len(BEARER)].lower() != BEARER:
                raise UnauthenticatedError("authorization: expected one `Bearer TOKEN`")
            return self._by_token(given[0][len(BEARER) :].strip())
        found = self._certificates.principal(context.auth_context())
        if found is None:
            raise UnauthenticatedError(
                "who calls? Give a token (HPN_TOKEN_FILE; `authorization: Bearer TOKEN` in other clients)"
            )
        return found

    def _by_token(self, token: str) -> Principal:
        found = self._tokens.principal(token) if self._tokens else None
        if found is not None:
            return found
        if self._oidc is not None and token.count(".") == 2:
            return self._oidc.principal(token)
        raise UnauthenticatedError("the token is not one that this server knows")

    def admit(self, rule: Rule | None, principal: Principal) -> None:
        """Raises PermissionDeniedError, OverloadedError."""
        if principal is ANYBODY:
            return
        self._rate.take(principal.name)
        if rule is None or rule.role is None:
            raise PermissionDeniedError("nobody may call this method: the server has no rule for it")
        if principal.role < rule.role:
            raise PermissionDeniedError(
                f"{principal.name} is a {principal.role.name.lower()}: this needs {_a(rule.role.name.lower())}"
            )
        if rule.everything and principal.projects is not None:
            raise PermissionDeniedError(
                f"{principal.name} has some projects only; jobs of a stage server belong to none: this needs all (*)"
            )

    def slot(self, principal: Principal, streams: bool) -> contextlib.AbstractContextManager[None]:
        return (self._streams if streams else self._calls).hold(principal.name)

    def note(self, call: _Call, error: BaseException | None) -> None:
        """A line in the audit log, for what changes something and for what was refused."""
        # Not those who ask too much: they would fill the log. Metrics count them.
        refused = isinstance(error, (UnauthenticatedError, PermissionDeniedError))
        if isinstance(error, OverloadedError):
            return
        if not (refused or (call.rule is not None and (call.rule.audited or self._audit_reads))):
            return
        if call.rule is not None and call.rule.role is None:
            return  # health checks
        code = "OK" if error is None else "CANCELLED"
        if isinstance(error, Exception) and not isinstance(error, grpc.RpcError):
            number = to_status(error).code
            code = next(c.name for c in grpc.StatusCode if c.value[0] == number)
        who = call.principal
        self._audit.write(
            who=who.name if who else None, by=who.source if who else None, role=who.role.name.lower() if who else None,
            method=f"{call.service}/{call.method}", code=code, peer=call.context.peer(),
            **about(call.first, call.response), why=str(error)[:300] if isinstance(error, HappyError) else None,
        )  # fmt: skip


class _Call:
    """One call, from its headers to its end."""

    def __init__(
        self, guard: Guard, rule: Rule | None, service: str, method: str, messages: Iterator[Any],
        context: grpc.ServicerContext, streams: bool,
    ) -> None:  # fmt: skip
        self.rule, self.service, self.method, self.context = rule, service, method, context
        self.principal: Principal | None = None
        self.first: Any = None
        self.response: Any = None
        self._guard, self._messages, self._streams = guard, messages, streams
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Call:
        try:
            open_to_all = self.rule is not None and self.rule.role is None
            self.principal = ANYBODY if open_to_all else self._guard.identify(self.context)
            self._guard.admit(self.rule, self.principal)
            self._stack.enter_context(self._guard.slot(self.principal, self._streams))
            self._stack.enter_context(calling(self.principal))
        except Exception as error:
            self._stack.close()
            self._guard.note(self, error)
            raise
        return self

    def request(self, streaming: bool) -> Any:
        """What the method gets: its message, or the stream of them."""
        if streaming:
            return self._noting()
        message = next(self._messages, None)
        if message is None:
            raise UserError("the call came without a message")
        self.first = message
        return message

    def _noting(self) -> Iterator[Any]:
        for message in self._messages:
            if self.first is None:
                self.first = message
            yield message

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._stack.close()
        self._guard.note(self, error)


def _a(role: str) -> str:
    return f"{'an' if role[0] in 'ao' else 'a'} {role}"
