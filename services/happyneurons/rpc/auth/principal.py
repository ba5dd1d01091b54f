"""Who calls. Methods of a service ask :func:`caller`; without access control it may do everything."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from happyneurons.errors import NotFoundError, PermissionDeniedError, UserError

DEFAULT_PROJECT = "default"
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
PROJECT_EXPECTED = "letters, digits, _ . -, at most 63, a letter or digit first"


class Role(IntEnum):
    """What a caller may do. Each role may do what those below it may."""

    VIEWER = 1
    """Look at runs and logs."""
    OPERATOR = 2
    """Submit, cancel, retry, decide at gates, report sections."""
    ADMIN = 3
    """No bounds on a pipeline's size, and reflection where it is kept to admins."""


@dataclass(frozen=True)
class Principal:
    """A caller: a person, a microscope, another server."""

    name: str
    role: Role
    projects: frozenset[str] | None = frozenset()
    """None: every project."""
    source: str = ""
    """How it was known: token, oidc, certificate."""

    def sees(self, project: str) -> bool:
        return self.projects is None or project in self.projects

    def check_sees(self, project: str, run_id: str) -> None:
        """Raises NotFoundError, so that nobody learns which runs others have."""
        if not self.sees(project):
            raise NotFoundError(f"no run {run_id!r}, or none that {self.name} may see")

    def project_for(self, wanted: str) -> str:
        """The project of a new run: the one asked for, or the caller's only one, or `default`.

        Raises UserError (not a name), PermissionDeniedError.
        """
        if wanted and not PROJECT.match(wanted):
            raise UserError(f"project: expected {PROJECT_EXPECTED}", [("project", PROJECT_EXPECTED)])
        project = wanted or DEFAULT_PROJECT
        if not wanted and self.projects is not None and len(self.projects) == 1:
            (project,) = self.projects
        if not self.sees(project):
            known = ", ".join(sorted(self.projects or ())) or "none"
            raise PermissionDeniedError(f"project {project!r}: {self.name} has {known}; say which with --project")
        return project


UNCONTROLLED = Principal("", Role.ADMIN, None)
"""Everybody, where a server was started without --security."""

_CALLER: ContextVar[Principal] = ContextVar("caller", default=UNCONTROLLED)


def caller() -> Principal:
    """Who makes the call that this thread answers."""
    return _CALLER.get()


@contextlib.contextmanager
def calling(principal: Principal) -> Iterator[None]:
    """The block answers a call of this principal."""
    token = _CALLER.set(principal)
    try:
        yield
    finally:
        _CALLER.reset(token)
