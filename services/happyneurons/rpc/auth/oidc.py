"""Bearer tokens of an identity provider: JWTs, checked by PyJWT (extra `oidc`).

Only signatures of the pinned algorithms count, and the key is chosen by the provider's `kid`, never
by anything else that a token says of itself. Keys are kept; a token with an unknown `kid` makes us ask
the provider again, at most once a minute, whoever sends them and however many.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from happyneurons.errors import HappyError, UnauthenticatedError, UnavailableError, UserError
from happyneurons.rpc.auth.config import Grant, Oidc
from happyneurons.rpc.auth.files import Reloaded, read_bytes
from happyneurons.rpc.auth.principal import PROJECT, Principal, Role

KEYS_LAST_S = 3600.0
"""Keys are asked for again after this, so that withdrawn ones stop counting."""
ASK_AGAIN_S = 60.0
FETCH_S = 5.0
LARGEST_ANSWER = 1 << 20

Keys = Mapping[str, Any]
"""`kid` → jwt.PyJWK"""


class OidcTokens:
    """Callers known by the tokens of one provider. Thread-safe."""

    def __init__(self, config: Oidc, fetch: Callable[[str], bytes] | None = None) -> None:
        """fetch: the content of an https:// URL. Raises UserError (PyJWT missing, keys that cannot be read)."""
        try:
            import jwt
        except ImportError:
            raise UserError("oidc: needs PyJWT: pip install 'happyneurons[oidc]'") from None
        self._jwt, self._config = jwt, config
        if config.jwks and not config.jwks.startswith("https://"):
            path = Path(config.jwks)
            kept = Reloaded([path], lambda: self._parse(read_bytes(path), str(path)))
            self._keys: Callable[[str], Keys] = lambda kid: kept.get()
        else:
            self._keys = _RemoteKeys(config, fetch or fetch_url, self._parse).get

    def principal(self, token: str) -> Principal:
        """The caller of a token. Raises UnauthenticatedError, UnavailableError (the provider is away)."""
        jwt, config = self._jwt, self._config
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in config.algorithms:
                raise UnauthenticatedError("the token's signature is of a kind that does not count here")
            kid = str(header.get("kid") or "")
            keys = self._keys(kid)
            key = keys.get(kid) if kid else (next(iter(keys.values())) if len(keys) == 1 else None)
            if key is None:
                raise UnauthenticatedError("the token was signed with a key that its issuer does not (any more) name")
            claims = jwt.decode(
                token, key, algorithms=list(config.algorithms), audience=config.audience, issuer=config.issuer,
                leeway=config.leeway_s, options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired: get a new one") from None
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(f"the token does not count: {error}") from None
        return self._grant(claims)

    def _grant(self, claims: Mapping[str, Any]) -> Principal:
        config = self._config
        name = _claim(claims, config.name_claim)
        if not isinstance(name, str) or not name:
            raise UnauthenticatedError(f"the token has no claim {config.name_claim}, which is to name the caller")
        given = [config.roles[v] for v in _strings(_claim(claims, config.role_claim)) if v in config.roles]
        if not given:
            raise UnauthenticatedError(f"{name}: nothing in the token's {config.role_claim} stands for a role here")
        role = max(given, key=lambda r: Role[r.upper()])
        # A claim cannot say `*`: all projects are for whoever writes the security file to give.
        named = _strings(_claim(claims, config.projects_claim)) if config.projects_claim else []
        projects = (*config.projects, *(p for p in named if PROJECT.match(p)))
        return Grant(role=role, projects=projects).principal(name[:128], "oidc")

    def _parse(self, content: bytes, where: str) -> Keys:
        jwt = self._jwt
        try:
            found = jwt.PyJWKSet.from_json(content.decode()).keys
        except (jwt.PyJWTError, ValueError) as error:
            raise UserError(f"oidc.jwks: {where} is no JSON Web Key Set ({error})") from None
        # An HMAC key in a public set would make its readers signers.
        keys = {str(k.key_id or ""): k for k in found if k.key_type != "oct"}
        if not keys:
            raise UserError(f"oidc.jwks: {where} has no public key")
        return keys


class _RemoteKeys:
    """Keys at a URL, kept for a while."""

    def __init__(self, config: Oidc, fetch: Callable[[str], bytes], parse: Callable[[bytes, str], Keys]) -> None:
        self._config, self._fetch, self._parse = config, fetch, parse
        self._keys: Keys = {}
        self._fetched = self._asked = float("-inf")
        self._lock = threading.Lock()

    def get(self, kid: str) -> Keys:
        with self._lock:
            now = time.monotonic()
            stale = now - self._fetched > KEYS_LAST_S
            if (stale or kid not in self._keys) and now - self._asked > ASK_AGAIN_S:
                self._asked = now
                try:
                    self._keys, self._fetched = self._ask(), now
                except HappyError as error:
                    if not self._keys:
                        self._asked = now - ASK_AGAIN_S + 5  # nobody can call: look again soon
                        raise UnavailableError(f"the identity provider does not give its keys: {error}") from None
            if not self._keys:
                raise UnavailableError("the identity provider does not give its keys: try again")
            return self._keys

    def _ask(self) -> Keys:
        url = self._config.jwks
        if not url:
            where = f"{self._config.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                document = json.loads(self._fetch(where))
                url, issuer = str(document["jwks_uri"]), document["issuer"]
            except (ValueError, LookupError, TypeError):
                raise UserError(f"oidc: {where} is no discovery document") from None
            if issuer != self._config.issuer or not url.startswith("https://"):
                raise UserError(f"oidc: {where} is another issuer's, or its keys are not at https://")
        return self._parse(self._fetch(url), url)


def fetch_url(url: str) -> bytes:
    """Content of an https:// URL. Raises UnavailableError, UserError."""
    import requests

    if not url.startswith("https://"):
        raise UserError(f"oidc: {url}: expected https://")
    try:
        answer = requests.get(url, timeout=FETCH_S, allow_redirects=False, stream=True)
        answer.raise_for_status()
        content: bytes = answer.raw.read(LARGEST_ANSWER + 1, decode_content=True)
    except (requests.RequestException, OSError) as error:
        raise UnavailableError(f"{url}: {error}") from None
    if len(content) > LARGEST_ANSWER or answer.status_code != 200:
        raise UnavailableError(f"{url}: no answer that could be used (status {answer.status_code})")
    return content


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or by a path into objects (`realm_access.roles`)."""
    if path in claims:  # names that are URLs have dots, too
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _strings(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]
