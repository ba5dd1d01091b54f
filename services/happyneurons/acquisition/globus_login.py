"""How a watcher that runs for weeks stays logged in at Globus."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from happyneurons.errors import UserError

if TYPE_CHECKING:
    import globus_sdk

CLIENT_ID, CLIENT_SECRET = "HPN_GLOBUS_CLIENT_ID", "HPN_GLOBUS_CLIENT_SECRET"


def transfer_client(token_file: Path | None, environment: Mapping[str, str] = os.environ) -> globus_sdk.TransferClient:
    """A client of the Transfer API whose login renews itself.

    Either by a file `{"client_id": …, "refresh_token": …}` that only its owner can read, or as an
    application, by HPN_GLOBUS_CLIENT_ID and HPN_GLOBUS_CLIENT_SECRET. Raises UserError if there is
    neither, GlobusError if Globus does not take it. Retrying is the mover's business; the SDK tries once
    more, for that is how it renews a token that has expired.
    """
    sdk = _sdk()
    if token_file is not None:
        client_id, refresh_token = _read(token_file)
        auth: Any = sdk.RefreshTokenAuthorizer(refresh_token, sdk.NativeAppAuthClient(client_id))
    elif environment.get(CLIENT_ID) and environment.get(CLIENT_SECRET):
        application = sdk.ConfidentialAppAuthClient(environment[CLIENT_ID], environment[CLIENT_SECRET])
        auth = sdk.ClientCredentialsAuthorizer(application, sdk.TransferClient.scopes.all)
    else:
        raise UserError(
            f"no Globus login: set {CLIENT_ID} and {CLIENT_SECRET} of an application, or give --globus-token FILE"
            " with its client_id and refresh_token (docs/acquisition.md)"
        )
    from globus_sdk.transport import RetryConfig

    return sdk.TransferClient(authorizer=auth, retry_config=RetryConfig(max_retries=1, max_sleep=1))


def _sdk() -> Any:
    try:
        import globus_sdk
    except ImportError:
        raise UserError("moving by Globus needs globus-sdk: pip install 'happyneurons[globus]'") from None
    return globus_sdk


def _read(path: Path) -> tuple[str, str]:
    try:
        readable = stat.S_IMODE(path.stat().st_mode) & 0o077
        document = json.loads(path.read_bytes())
        client_id, token = str(document["client_id"]), str(document["refresh_token"])
    except OSError as error:
        raise UserError(f"Globus login {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'Globus login {path}: expected {{"client_id": …, "refresh_token": …}}') from None
    if readable:
        raise UserError(f"Globus login {path} can be read by others: chmod 600 {path}")
    return client_id, token
