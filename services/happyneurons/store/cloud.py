"""How CloudVolume reaches our stores: paths, credentials and errors.

CloudVolume looks for credentials and for the address of S3 servers in files in the home folder.
Ours come from the environment, as everything else's do; they are registered in this process only
and nothing is written. Libraries that open volumes by path alone (igneous) find them, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from happyneurons.errors import HappyError, StoreAccessError, StoreError
from happyneurons.store.documents import normalize_uri
from happyneurons.store.telemetry import Timed

_ALIAS = "happyneurons"


def cloudpath(uri: str) -> str:
    """The path CloudVolume wants for one of our URIs (an S3 server that is not Amazon's needs an alias)."""
    uri = normalize_uri(uri.removeprefix("precomputed://"))
    if not uri.startswith("s3://"):
        return uri
    import cloudfiles.paths
    import cloudfiles.secrets

    bucket = uri.removeprefix("s3://").split("/", 1)[0]
    credentials = cloud_secrets()
    if credentials is not None:
        # Where CloudFiles keeps what it read from its files; its own reading of the environment fails
        # unless there is a session token.
        cloudfiles.secrets.AWS_CREDENTIALS_CACHE[bucket] = credentials
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return uri
    host = f"s3://{endpoint.rstrip('/')}/"
    if cloudfiles.paths.ALIASES.get(_ALIAS) != host:
        cloudfiles.paths.add_alias(_ALIAS, host)
    return f"{_ALIAS}://" + uri.removeprefix("s3://")


def cloud_secrets() -> dict[str, str] | None:
    """S3 credentials of the environment; None if there are none, and CloudVolume's own rules apply."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
    found = {name: value for name in names if (value := os.environ.get(name))}
    if "AWS_REGION" in os.environ:
        found.setdefault("AWS_DEFAULT_REGION", os.environ["AWS_REGION"])
    return found if {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(found) else None


@contextlib.contextmanager
def volume_errors(uri: str, operation: str) -> Iterator[None]:
    """Counts one call and turns what CloudVolume's backends raise into StoreAccessError and StoreError.

    A store that is away or full is not the fault of the task that noticed it.
    """
    with Timed(operation) as call:
        try:
            yield
        except HappyError:
            raise
        except Exception as error:
            found = _store_error(uri, error)
            if found is None:
                raise
            call.failure = "denied" if isinstance(found, StoreAccessError) else "unavailable"
            raise found from error


def _store_error(uri: str, error: Exception) -> HappyError | None:
    """What a backend's exception is for us; None for those that are not the store's."""
    if isinstance(error, PermissionError):
        return StoreAccessError(f"volume {uri}: access denied ({error.strerror}); check permissions")
    if isinstance(error, OSError):
        return StoreError(f"volume {uri}: {error.strerror or error}")
    from botocore.exceptions import BotoCoreError, ClientError
    from requests.exceptions import RequestException

    if isinstance(error, ClientError) and error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (
        401,
        403,
    ):
        return StoreAccessError(f"volume {uri}: access denied; check credentials and permissions")
    if isinstance(error, (BotoCoreError, ClientError, RequestException)):
        return StoreError(f"volume {uri}: {error}")
    return None
