"""Errors of HAPPYNeurons and the exit codes that commands give for them.

Every error that a user can meet is one line that says what to do. The class says whose fault it
is, because that decides about retrying (see docs/jobs.md, "Failures").
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1  # the work failed
EXIT_USAGE = 2  # the request was wrong: nothing was started
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: drained, preempted, store not reachable


class HappyError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what a command exits with."""

    exit_code = EXIT_FAILED


class UserError(HappyError):
    """The request or its input is wrong; doing it again will not help. Never retried.

    `violations` holds `(field path, what was expected)` pairs where single fields are to blame.
    """

    exit_code = EXIT_USAGE

    def __init__(self, message: str, violations: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.violations = violations or []


class ConflictError(UserError):
    """The request clashes with another one: a request id that was used for something else, say."""


class PreconditionError(UserError):
    """Right in itself, but not as things stand: a gate that was decided, more cores than there are."""


class UnauthenticatedError(UserError):
    """The server does not know who calls: no token or certificate, or one that does not count (any more)."""


class PermissionDeniedError(UserError):
    """The caller is known and may not do this."""


class TaskError(HappyError):
    """One task cannot be done (damaged data, say); the job's other tasks can."""


class JobFailedError(HappyError):
    """A job ended without a result."""


class SupersededError(HappyError):
    """Another attempt took over; this one must not publish."""

    exit_code = EXIT_TRY_AGAIN


class DrainedError(HappyError):
    """Asked to stop (SIGTERM, end of walltime); finished tasks are journaled."""

    exit_code = EXIT_TRY_AGAIN


class CancelledError(HappyError):
    """The job was cancelled by its owner."""


class StoreError(HappyError):
    """The store did not answer as it should, after retries."""

    exit_code = EXIT_TRY_AGAIN


class UnavailableError(HappyError):
    """A server does not answer, or not now."""

    exit_code = EXIT_TRY_AGAIN


class OverloadedError(UnavailableError):
    """The caller asked too much at a time; `retry_after_s` says when it may ask again."""

    retry_after_s = 2.0

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class StoreAccessError(UserError):
    """The store refuses us or cannot be written: credentials, permissions, a missing bucket."""


class NotFoundError(HappyError, KeyError):
    """There is no such document, run or job."""

    exit_code = EXIT_USAGE

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""
