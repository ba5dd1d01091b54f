"""Places where results were published (`hpn publish`), opened over HTTPS or from their store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from happyneurons.errors import NotFoundError, UnavailableError, UserError
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store
from happyneurons.store.layers import is_web

INDEX = "published.json"
"""What is at a place: `{"title", "layers": {name: {artifact fields, "path"}}, …}`, written last."""
_TIMEOUT_S = 20.0


def document_of(artifact: Artifact, path: str) -> Any:
    """A JSON document of an artifact, wherever it lies. Raises NotFoundError, UnavailableError, StoreError."""
    if is_web(artifact.data_uri):
        return _fetch(f"{artifact.data_uri}/{path}")
    return artifact.store().get_json(path)


def published_layers(place: str) -> tuple[str, dict[str, Artifact]]:
    """(title, layer name → artifact) of a published place: the URL that browsers read it at, or its store's.

    Raises UserError if nothing was published there.
    """
    place = place.rstrip("/")
    try:
        document = _fetch(f"{place}/{INDEX}") if is_web(place) else Store(place).get_json(INDEX)
    except NotFoundError:
        raise UserError(
            f"{place}: nothing was published there ({INDEX} is missing); see `hpn publish --help`"
        ) from None
    except ValueError as error:
        raise UserError(f"{place}/{INDEX}: not JSON ({error})") from None
    return str(document.get("title", place)), layers_of(document, place)


def layers_of(document: Mapping[str, Any], place: str) -> dict[str, Artifact]:
    """The artifacts that the index of a place lists, as they are at the place."""
    found = {}
    for name, fields in document["layers"].items():
        where = f"{place}/{fields['path']}"
        known = {key: value for key, value in fields.items() if key in Artifact.model_fields}
        # `source` of meshes still names the segmentation that they were made of: it keeps its URI.
        found[name] = Artifact.model_validate({**known, "data_uri": where})
    return found


def _fetch(url: str) -> Any:
    import requests

    try:
        answer = requests.get(url, timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        raise UnavailableError(f"{url}: {type(error).__name__}; is the place reachable from here?") from None
    if answer.status_code in (403, 404):  # S3 says 403 of what is not there, unless listing is allowed
        raise NotFoundError(f"{url}: {answer.status_code}")
    if answer.status_code != 200:
        raise UnavailableError(f"{url}: the server answers {answer.status_code}")
    return answer.json()
