"""Make a Balsam site of files that `hpn site init` wrote, or renew one. Run with the Balsam environment's Python.

make_site.py SITE_PATH NAME API FILES

Registers NAME at the server API unless SITE_PATH holds a site already, puts FILES there, and registers the
application. Needs BALSAM_CLIENT_PATH; a token comes from that file, or from BALSAM_USER and BALSAM_PASSWORD.
Prints one line of JSON: {"site_id": …, "created": …}. Ends with 2 and one line for what the caller did wrong.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import requests
from balsam.config import ClientSettings, SiteConfig

TIMEOUT_S = 30


class WrongError(Exception):
    """What the caller can mend."""


def log_in(api):
    """The client file's token if the server takes it, else a new one by name and password."""
    path = ClientSettings.settings_path()
    if path.is_file():
        settings = ClientSettings.load_from_file()
        if settings.api_root.rstrip("/") == api and settings.token and accepted(api, settings.token):
            return
    user, password = os.environ.get("BALSAM_USER"), os.environ.get("BALSAM_PASSWORD")
    if not (user and password):
        raise WrongError(
            f"{path} holds no token that {api} takes: log in (`BALSAM_CLIENT_PATH={path} "
            f"{Path(sys.executable).with_name('balsam')} login {api}`), or set BALSAM_USER and BALSAM_PASSWORD"
        )
    form = {"username": user, "password": password}
    answer = requests.post(f"{api}/auth/password/login", data=form, timeout=TIMEOUT_S)
    if answer.status_code in (400, 401, 403):
        raise WrongError(f"{api} does not know BALSAM_USER {user} with this BALSAM_PASSWORD")
    answer.raise_for_status()
    token = answer.json()
    path.parent.mkdir(parents=True, exist_ok=True)
    ClientSettings(api_root=api, token=token["access_token"], token_expiry=token["expiration"]).save_to_file()


def accepted(api, token):
    """Whether the server takes the token."""
    answer = requests.get(f"{api}/sites/", headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S)
    if answer.status_code in (401, 403):
        return False
    answer.raise_for_status()
    return True


def register(api, site_path, name):
    """The site's id at the server, and whether it is new."""
    mark = site_path / ".balsam-site"
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {ClientSettings.load_from_file().token}"
    answer = session.get(f"{api}/sites/", params={"name": name}, timeout=TIMEOUT_S)
    answer.raise_for_status()
    found = answer.json()["results"]
    if mark.is_file():
        site_id = int(mark.read_text())
        if any(site["id"] == site_id for site in found):
            return site_id, False
        raise WrongError(f"{site_path} is a site already, but not {name} at {api}: choose another --path")
    if found:
        raise WrongError(
            f"{api} has a site {name} already, in {found[0]['path']}: give that --path, or another --balsam-name"
        )
    if site_path.exists() and any(site_path.iterdir()):
        raise WrongError(f"{site_path} exists and is no Balsam site: choose another --path")
    answer = session.post(f"{api}/sites/", json={"name": name, "path": str(site_path)}, timeout=TIMEOUT_S)
    answer.raise_for_status()
    return answer.json()["id"], True


def place(files, site_path, site_id):
    """Files and the folders that Balsam expects."""
    site_path.mkdir(parents=True, exist_ok=True)
    for folder in ("log", "qsubmit", "data"):
        (site_path / folder).mkdir(exist_ok=True)
    for folder in ("qsubmit", "log"):
        (site_path / folder).chmod(0o700)
    shutil.copytree(files, site_path, dirs_exist_ok=True)
    mark = site_path / ".balsam-site"
    if not mark.exists():
        mark.write_text(str(site_id))


def main():
    if len(sys.argv) != 5:
        raise WrongError("make_site.py needs SITE_PATH NAME API FILES")
    site_path, name, api = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3].rstrip("/")
    files = Path(sys.argv[4])
    try:
        log_in(api)
        site_id, created = register(api, site_path, name)
    except requests.RequestException as error:
        raise WrongError(f"the Balsam server {api} does not answer as it should: {error}") from None
    place(files, site_path, site_id)
    os.environ["BALSAM_SITE_PATH"] = str(site_path)
    sys.path.insert(0, str(site_path / "platform"))
    SiteConfig(site_path)  # reads settings.yml and imports the classes it names: better here than in the agent
    sys.argv = [str(site_path / "app.py")]
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(json.dumps({"site_id": site_id, "created": created}))


if __name__ == "__main__":
    try:
        main()
    except WrongError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
