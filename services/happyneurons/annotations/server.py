"""Upload of datasets to a WEBKNOSSOS server and download of annotations, through its client in another environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from happyneurons.annotations import webknossos_client
from happyneurons.errors import HappyError, UserError

PYTHON, TOKEN, TOKEN_FILE = "HPN_WEBKNOSSOS_PYTHON", "WK_TOKEN", "WK_TOKEN_FILE"


def token() -> str:
    """From the environment or a file that it names. Raises UserError."""
    found = os.environ.get(TOKEN, "").strip()
    path = os.environ.get(TOKEN_FILE)
    if not found and path:
        try:
            found = Path(path).read_text().strip()
        except OSError as error:
            raise UserError(f"{TOKEN_FILE}={path}: {error.strerror}") from None
    if not found:
        raise UserError(f"no token: set {TOKEN}, or {TOKEN_FILE} to a file with it (Auth Token in your account)")
    return found


def upload(folder: Path, name: str, server: str) -> str:
    """The dataset's address on the server. Raises UserError, HappyError with what the client said."""
    if not (folder / "datasource-properties.json").is_file():
        raise UserError(f"{folder}: not a WEBKNOSSOS dataset (no datasource-properties.json); see annotate-push")
    return _run("upload", server, str(folder), name)


def download(annotation: str, target: Path) -> None:
    """An annotation by its address, as a zip. Raises UserError, HappyError with what the client said."""
    if not target.name.endswith(".zip"):
        raise UserError(f"{target}: annotations are downloaded as zips; give it a name that ends in .zip")
    if target.exists():
        raise UserError(f"{target}: there is such a file already; remove it, or choose another name")
    parts = urlsplit(annotation)
    _run("download", f"{parts.scheme}://{parts.netloc}", annotation, str(target))


def _run(what: str, server: str, *arguments: str) -> str:
    if urlsplit(server).scheme not in ("http", "https"):
        raise UserError(f"{server}: the address of a WEBKNOSSOS server begins with https://")
    python = os.environ.get(PYTHON)
    if not python or not Path(python).exists():
        raise UserError(
            f"{PYTHON} must name the Python of an environment with webknossos (python -m venv wk; wk/bin/pip install "
            f"'webknossos>=4.3,<5'; {PYTHON}=wk/bin/python)"
        )
    secret = token()
    # Nothing of ours but the token: the client's environment is another one.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", TOKEN_FILE)}
    done = subprocess.run(
        [python, webknossos_client.__file__, what, server, *arguments], env={**kept, TOKEN: secret},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).replace(secret, "…").splitlines() if line.strip()]
        raise HappyError(f"{what}, {server}: {said[-1].strip() if said else f'ended with {done.returncode}'}")
    return done.stdout.strip().rsplit("\n", 1)[-1]
