"""The file given to `--security`: who may do what at a server, and how much (docs/security.md).

::

    tls: {cert: tls/tls.crt, key: tls/tls.key, client_ca: clients-ca.crt}
    tokens: tokens.yaml
    oidc: {issuer: "https://sso.lab.example", audience: happyneurons, roles: {em-operators: operator}}
    certificates:
      - {common_name: microscope-1, role: operator, projects: [fly]}
    allowed_roots: [/data/microscopes, "s3://lab-raw"]

Relative paths are relative to the file's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from happyneurons.errors import UserError
from happyneurons.rpc.auth.principal import PROJECT, PROJECT_EXPECTED, Principal, Role
from happyneurons.rpc.limits import MAX_STREAMS

RoleName = Literal["viewer", "operator", "admin"]
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures that an identity provider makes with a key that we never see. `none` and HMAC are not among them."""


def _project(name: str) -> str:
    if name != "*" and not PROJECT.match(name):
        raise ValueError(f"expected {PROJECT_EXPECTED}, or * for all")
    return name


def _below(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    return folder / path.expanduser()


Project = Annotated[str, AfterValidator(_project)]
File = Annotated[Path, AfterValidator(_below)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Grant(_Strict):
    """What somebody may do, and where."""

    role: RoleName = Field(description="viewer < operator < admin")
    projects: tuple[Project, ...] = Field((), description="Projects whose runs they see; * for all")

    def principal(self, name: str, source: str) -> Principal:
        projects = None if "*" in self.projects else frozenset(self.projects)
        return Principal(name, Role[self.role.upper()], projects, source)


class Tls(_Strict):
    """PEM files. They are read again when they change."""

    cert: File = Field(description="The server's certificate, with what leads to its CA")
    key: File = Field(description="Its private key")
    client_ca: File | None = Field(None, description="Clients must show a certificate of this CA (mutual TLS)")


class Certificate(Grant):
    """A caller known by its client certificate."""

    common_name: str = Field("", description="CN of the certificate's subject")
    san: str = Field("", description="One of its subject alternative names (DNS, URI, e-mail)")

    @model_validator(mode="after")
    def _one(self) -> Certificate:
        if bool(self.common_name) == bool(self.san):
            raise ValueError("give common_name or san")
        return self


class Oidc(_Strict):
    """Tokens of an identity provider (JWT)."""

    issuer: str = Field(min_length=1, description="`iss` of its tokens; its discovery document names the keys")
    audience: str = Field(min_length=1, description="`aud` that tokens for this server have")
    jwks: str = Field("", description="Its public keys: a file or an https:// URL [from the discovery document]")
    algorithms: tuple[str, ...] = Field(("RS256", "ES256"), min_length=1, description="Signatures that count")
    name_claim: str = Field("sub", min_length=1, description="Claim with the caller's name")
    role_claim: str = Field("groups", min_length=1, description="Claim with names of `roles`; dots go into objects")
    roles: dict[str, RoleName] = Field(min_length=1, description="Value of the claim → role; the highest counts")
    projects_claim: str = Field("", description="Claim with the names of projects")
    projects: tuple[Project, ...] = Field((), description="Projects of every caller, besides those of the claim")
    leeway_s: int = Field(30, ge=0, le=300, description="Clocks may differ so much, in seconds")

    @field_validator("algorithms")
    @classmethod
    def _pinned(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in ASYMMETRIC:
                raise ValueError(f"{name!r}: expected some of {', '.join(ASYMMETRIC)}")
        return value

    @field_validator("jwks")
    @classmethod
    def _reachable(cls, value: str, info: ValidationInfo) -> str:
        if value.startswith("http://"):
            raise ValueError("keys over plain http could be anybody's: expected https:// or a file")
        if not value or value.startswith("https://"):
            return value
        return str(_below(Path(value), info))


class Limits(_Strict):
    """How much callers may ask."""

    requests_per_s: float = Field(50, gt=0, description="Calls a second of one caller, in the long run")
    burst: int = Field(200, ge=1, description="Calls of one caller at once")
    calls_per_client: int = Field(32, ge=1, le=64, description="Calls of one caller at work at a time")
    streams_per_client: int = Field(100, ge=1, description="Streams of one caller at a time")
    streams: int = Field(MAX_STREAMS, ge=1, le=10_000, description="Streams of all callers; each costs a thread")
    message_bytes: int = Field(16 << 20, ge=1 << 10, le=16 << 20, description="Largest message")
    pipeline_bytes: int = Field(1 << 20, ge=1, le=16 << 20, description="Largest pipeline: its YAML and its parameters")
    pipeline_jobs: int = Field(10_000, ge=1, le=100_000, description="Most jobs of a pipeline, its sweeps expanded")
    connection_age_s: int = Field(
        7200, ge=1, description="A connection ends after this: who lost a right loses it then"
    )
    connection_grace_s: int = Field(
        300, ge=0, description="Time that its calls have to end; watchers go on by themselves"
    )


class Audit(_Strict):
    file: File | None = Field(None, description="JSON lines are added here [standard error]")
    reads: bool = Field(False, description="Also calls that change nothing")


class SecurityConfig(_Strict):
    """The whole file."""

    tls: Tls | None = None
    plaintext: bool = Field(False, description="No TLS here: a proxy in front ends it, and nobody else can connect")
    tokens: File | None = Field(None, description="File of tokens (`hpn security token`)")
    oidc: Oidc | None = None
    certificates: tuple[Certificate, ...] = ()
    allowed_roots: tuple[str, ...] = Field((), description="Folders and URIs that jobs may read besides the store")
    stages: tuple[str, ...] = Field((), description="Only these stages [all that are installed]")
    reflection: Literal["open", "viewer", "operator", "admin", "off"] = "viewer"
    health: str = Field("", description="host:port of health checks without TLS, for probes; nothing else is there")
    metrics_tls: bool = Field(False, description="Serve metrics by TLS, with the same certificate and client_ca")
    limits: Limits = Limits()
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _complete(self) -> SecurityConfig:
        if (self.tls is None) != self.plaintext:
            raise ValueError("give `tls:`, or say `plaintext: true` where a proxy in front ends TLS (not both)")
        if not (self.tokens or self.oidc or self.certificates):
            raise ValueError("nobody could call: give `tokens:`, `oidc:` or `certificates:`")
        if self.certificates and (self.tls is None or self.tls.client_ca is None):
            raise ValueError("`certificates:` need `tls.client_ca:`, or no certificate would be asked for")
        if self.metrics_tls and self.tls is None:
            raise ValueError("metrics_tls needs `tls:`")
        return self


def load_security(path: Path) -> SecurityConfig:
    """Read and check a security file. Raises UserError with the path of each wrong field."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"security file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"security file {path}: not valid YAML{where}") from None
    if not isinstance(document, dict):
        raise UserError(f"security file {path}: expected a mapping (name: value); docs/security.md has an example")
    try:
        return SecurityConfig.model_validate(document, context={"folder": path.absolute().parent})
    except ValidationError as error:
        found = violations(error)
        text = "; ".join(f"{field}: {expected}" if field else expected for field, expected in found)
        raise UserError(f"security file {path}: {text}", found) from None


def violations(error: ValidationError) -> list[tuple[str, str]]:
    """`(field path, what was expected)` of each mistake; values are left out: they may be secrets."""
    found = []
    for item in error.errors(include_input=False, include_url=False):
        parts: Sequence[int | str] = item["loc"]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
        text = "no such field" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        found.append((path, text))
    return found
