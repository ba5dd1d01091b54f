"""The files of a secured server: mistakes are found before it starts, changes while it runs."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa

from happyneurons.cli.main import main
from happyneurons.errors import UnauthenticatedError, UnavailableError, UserError
from happyneurons.rpc.auth.config import Oidc, load_security
from happyneurons.rpc.auth.methods import METHODS, rule_of
from happyneurons.rpc.auth.oidc import OidcTokens
from happyneurons.rpc.auth.server import Security
from happyneurons.rpc.auth.tokens import StaticTokens, make_token, read_tokens
from happyneurons.v1 import acquisition_service_pb2, pipeline_service_pb2, stage_service_pb2

from .pki import Authority

GOOD: dict[str, Any] = {"plaintext": True, "tokens": "tokens.yaml"}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "security.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**GOOD, **changes}.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"plaintext": None}, "", "give `tls:`, or say `plaintext: true`"),
        ({"tokens": None}, "", "nobody could call"),
        ({"tls": {"cert": "a"}}, "tls.key", "Field required"),
        ({"tokns": "x"}, "tokns", "no such field"),
        ({"reflection": "sometimes"}, "reflection", "'open', 'viewer', 'operator', 'admin' or 'off'"),
        ({"limits": {"streams": 0}}, "limits.streams", "greater than or equal to 1"),
        ({"certificates": [{"role": "root", "common_name": "x"}]}, "certificates[0].role", "'viewer', 'operator'"),
        ({"certificates": [{"role": "viewer"}]}, "certificates[0]", "give common_name or san"),
        ({"certificates": [{"role": "viewer", "san": "x"}]}, "", "need `tls.client_ca:`"),
        ({"oidc": {"issuer": "i", "audience": "a", "roles": {"x": "boss"}}}, "oidc.roles.x", "'viewer', 'operator'"),
        ({"oidc": {"issuer": "i", "audience": "a", "roles": {"x": "viewer"}, "algorithms": ["none"]}},
         "oidc.algorithms", "'none': expected some of RS256"),
        ({"oidc": {"issuer": "i", "audience": "a", "roles": {"x": "viewer"}, "algorithms": ["HS256"]}},
         "oidc.algorithms", "'HS256': expected some of RS256"),
        ({"oidc": {"issuer": "i", "audience": "a", "roles": {"x": "viewer"}, "jwks": "http://x/jwks"}},
         "oidc.jwks", "plain http"),
    ],
)  # fmt: skip
def test_mistakes_have_the_path_of_their_field(tmp_path: Path, changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_security(written(tmp_path, **changes))
    assert [f for f, _ in caught.value.violations] == [field]
    assert words in str(caught.value)


def test_files_that_do_not_fit_are_found_at_once(tmp_path: Path) -> None:
    ca = Authority(tmp_path, "CA")
    cert, key = ca.issue("server", "server")
    other = ca.issue("other", "other")[1]
    make_token(tmp_path / "tokens.yaml", "ada", "admin", ["*"], None)
    for tls, words in (
        ({"cert": str(cert), "key": str(tmp_path / "none.key")}, "No such file"),
        ({"cert": str(cert), "key": str(other)}, "not a certificate and its key"),
        ({"cert": str(cert), "key": str(key), "client_ca": str(key)}, "not a certificate in PEM"),
    ):
        with pytest.raises(UserError, match=words):
            Security.load(written(tmp_path, plaintext=None, tls=tls))
    with pytest.raises(UserError, match=r"allowed_roots: data: expected an absolute path"):
        Security.load(written(tmp_path, allowed_roots=["data"]))
    with pytest.raises(UserError, match=r"security file .*: No such file"):
        Security.load(tmp_path / "none.yaml")


def test_tokens_are_kept_as_hashes_and_end(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    alice, _ = make_token(path, "alice", "operator", ["fly"], None)
    guest, _ = make_token(path, "guest", "viewer", ["*"], date(2030, 1, 31))
    assert not any(token in path.read_text() for token in (alice, guest))
    assert path.stat().st_mode & 0o777 == 0o600
    now = datetime(2030, 1, 31, 23, tzinfo=UTC).timestamp()
    tokens = StaticTokens(path, clock=lambda: now)
    found = tokens.principal(alice)
    assert found is not None
    assert (found.name, found.role.name, found.projects) == ("alice", "OPERATOR", frozenset({"fly"}))
    assert tokens.principal(guest) is not None
    now += 3601
    with pytest.raises(UnauthenticatedError, match="expired on 2030-01-31"):
        tokens.principal(guest)
    with pytest.raises(UserError, match="projects"):
        make_token(path, "bob", "viewer", ["../x"], None)
    path.write_text("- {name: x, role: viewer, sha256: abc, password: y}")
    with pytest.raises(UserError) as caught:
        read_tokens(path)
    assert {f for f, _ in caught.value.violations} == {"tokens[0].sha256", "tokens[0].password"}
    assert "abc" not in str(caught.value)


def test_the_command_line_makes_and_checks(tmp_path: Path) -> None:
    made = CliRunner().invoke(
        main, ["security", "token", "ada", "--role", "admin", "--project", "*", "--file", str(tmp_path / "tokens.yaml")]
    )
    assert made.exit_code == 0
    token = made.stdout.strip()
    assert StaticTokens(tmp_path / "tokens.yaml").principal(token) is not None
    checked = CliRunner().invoke(main, ["security", "check", "--json", str(written(tmp_path))])
    assert json.loads(checked.stdout)["callers"] == [
        {"name": "ada", "role": "admin", "projects": "*", "by": "token"}
    ]  # fmt: skip
    wrong = CliRunner().invoke(main, ["security", "check", str(written(tmp_path, reflection="x"))])
    assert wrong.exit_code == 2
    assert "reflection: " in wrong.stderr


def test_every_method_has_a_rule() -> None:
    """What is not in the table is refused, so a new method that was forgotten there works for nobody."""
    for file in (pipeline_service_pb2, acquisition_service_pb2, stage_service_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            assert set(METHODS[service.full_name]) == {m.name for m in service.methods}
    open_to_all = {name for name, methods in METHODS.items() if any(r.role is None for r in methods.values())}
    assert open_to_all == {"grpc.health.v1.Health"}
    assert rule_of("happyneurons.v1.PipelineService", "Unknown", METHODS["grpc.health.v1.Health"]["Check"]) is None


class Fetches:
    """The provider's web server, as far as keys are concerned; counts what it is asked."""

    def __init__(self, kid: str) -> None:
        self.key, self.kid, self.asked, self.away = rsa.generate_private_key(65537, 2048), kid, 0, False

    def __call__(self, url: str) -> bytes:
        self.asked += 1
        if self.away:
            raise UnavailableError("no answer")
        if url.endswith("/.well-known/openid-configuration"):
            return json.dumps({"issuer": "https://sso", "jwks_uri": "https://sso/keys"}).encode()
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**public, "kid": self.kid}]}).encode()

    def token(self, kid: str) -> str:
        claims = {"iss": "https://sso", "aud": "hpn", "exp": 4e9, "sub": "erin", "realm": {"roles": ["op", "v"]}}
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": kid})


def test_a_providers_keys_are_found_kept_and_not_asked_for_by_whoever_likes() -> None:
    provider = Fetches("k1")
    config = Oidc(
        issuer="https://sso", audience="hpn", role_claim="realm.roles", roles={"op": "operator", "v": "viewer"},
        projects=("fly",),
    )  # fmt: skip
    tokens = OidcTokens(config, provider)
    provider.away = True
    with pytest.raises(UnavailableError, match="identity provider"):
        tokens.principal(provider.token("k1"))
    provider.away, provider.asked = False, 0
    tokens = OidcTokens(config, provider)
    found = tokens.principal(provider.token("k1"))
    assert (found.name, found.role.name, found.projects) == ("erin", "OPERATOR", frozenset({"fly"}))
    for n in range(20):
        with pytest.raises(UnauthenticatedError, match="signed with a key"):
            tokens.principal(provider.token(f"unknown{n}"))
    assert provider.asked == 2, "the discovery document and the keys, once each"
