"""One secured orchestrator for many cases: mutual TLS, a tokens file, an identity provider's keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from happyneurons.client import Client
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.orchestrator.sites import SiteConfig
from happyneurons.rpc.access import Access
from happyneurons.rpc.auth.server import Security
from happyneurons.rpc.auth.tokens import make_token
from happyneurons.store.documents import Store

from .pki import Authority

ISSUER, AUDIENCE = "https://sso.lab.example", "happyneurons"
SITES = {"local": SiteConfig(executor="local", cores=4)}


class Provider:
    """An identity provider: one RSA key, its public part in a file."""

    def __init__(self, folder: Path) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.jwks = folder / "jwks.json"
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        self.jwks.write_text(json.dumps({"keys": [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]}))

    def token(self, *, key: Any = None, alg: str = "RS256", kid: str = "k1", **claims: Any) -> str:
        """A token of `erin`, an operator of project fly, with some claims otherwise (None: left out)."""
        standard = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "erin", "exp": int(time.time()) + 600, "groups": ["em-operators"],
            "projects": ["fly"],
        }  # fmt: skip
        body = {k: v for k, v in {**standard, **claims}.items() if v is not None}
        return jwt.encode(body, self.key if key is None else key, algorithm=alg, headers={"kid": kid})


@dataclass
class Lab:
    """A secured server with what its callers hold."""

    folder: Path
    ca: Authority
    provider: Provider
    server: OrchestratorServer
    store: Store
    data: Path
    """An allowed root."""
    control: Path
    tokens: dict[str, str]
    client_cert: tuple[Path, Path]

    def access(self, token: str = "", **changes: Any) -> Access:
        """How the bearer of a token gets in. The certificate is the machine's: it stands for nobody alone."""
        cert, key = self.client_cert
        given = {"ca": str(self.ca.ca), "cert": str(cert), "key": str(key), "token": self.tokens.get(token, token)}
        return Access(**{**given, **changes})

    def client(self, token: str = "", **changes: Any) -> Client:
        return Client(self.server.address, self.access(token, **changes))

    @property
    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    data, control = folder / "data", folder / "control"
    data.mkdir()
    control.mkdir()
    ca = Authority(folder / "tls", "lab CA")
    ca.issue("server", "orchestrator")
    ca.issue("microscope", "microscope-1", san="microscope-1.lab")
    cert = ca.issue("laptop", "laptop", san="laptop.lab")
    provider = Provider(folder)
    tokens = {}
    for name, role, projects in (
        ("vera", "viewer", ["fly"]), ("oskar", "operator", ["fly"]), ("olga", "operator", ["mouse"]),
        ("both", "operator", ["fly", "mouse"]), ("ada", "admin", ["*"]),
    ):  # fmt: skip
        tokens[name], _ = make_token(folder / "tokens.yaml", name, role, projects, None)
    (folder / "security.yaml").write_text(
        yaml.safe_dump(
            {
                "tls": {"cert": "tls/server.crt", "key": "tls/server.key", "client_ca": "tls/ca.crt"},
                "tokens": "tokens.yaml",
                "oidc": {
                    "issuer": ISSUER, "audience": AUDIENCE, "jwks": "jwks.json",
                    "roles": {"em-operators": "operator", "em-all": "viewer"}, "projects_claim": "projects",
                },
                "certificates": [
                    {"common_name": "microscope-1", "role": "operator", "projects": ["fly"]},
                    {"san": "stages.lab.svc", "role": "viewer", "projects": ["*"]},
                ],
                "allowed_roots": [str(data), str(control), "s3://lab-raw/2026"],
                "limits": {
                    "streams_per_client": 20, "pipeline_bytes": 50_000, "pipeline_jobs": 100, "burst": 100_000,
                    "message_bytes": 1 << 20,
                },
                "health": "127.0.0.1:0",
                "audit": {"file": "audit.jsonl"},
            }
        )
    )  # fmt: skip
    store = Store((folder / "store").as_uri())
    security = Security.load(folder / "security.yaml")
    with OrchestratorServer(store, sites=SITES, security=security) as server:
        yield Lab(folder, ca, provider, server, store, data, control, tokens, cert)
    (control / "release").touch()
