"""The bill of materials (SBOM) of an image family, as CycloneDX 1.6.

python containers/sbom.py NAME VERSION LOCK  prints it; the Dockerfile runs this inside of the family's file system, so
that markers of the lock are judged, licences read and Debian packages listed where the packages are.

Two runs on the same input give the same bytes: there is no time and no serial number in it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Component = dict[str, Any]


def component(kind: str, name: str, version: str, purl: str, **more: Any) -> Component:
    """A component, known by its package URL."""
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl} | more


def python_component(name: str, version: str, **more: Any) -> Component:
    name = canonicalize_name(name)
    return component("library", name, version, f"pkg:pypi/{name}@{quote(version)}", **more)


def pins(lock: Path) -> Iterator[tuple[Requirement, list[str]]]:
    """Pinned versions of a lock as pip and uv write it, and the SHA-256 sums of the files that may be installed."""
    text = re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *options = re.split(r"\s+--hash=sha256:", line)
        yield Requirement(requirement), sorted(options)


def licences(metadata: importlib.metadata.PackageMetadata) -> list[dict[str, Any]]:
    """What a distribution says of its licence: an SPDX expression, else trove classifiers, else a line of text."""
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier", []) if c.startswith("License :: ")]
    text = (metadata.get("License") or "").strip()
    names = [c for c in classifiers if c != "OSI Approved"] or [t for t in [text] if t and "\n" not in t]
    return [{"license": {"name": name}} for name in sorted(set(names))]


def locked(lock: Path) -> Iterator[Component]:
    """What pip installs from a lock with this Python. The licence is there where that version is installed."""
    for requirement, sums in pins(lock):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        (pin,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        hashes = [{"alg": "SHA-256", "content": content} for content in sums]
        more: dict[str, Any] = {}
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is not None and found.version == pin.version and (licence := licences(found.metadata)):
            more["licenses"] = licence
        # The lock allows every file of the version (for other processors, too), and does not say which one it was.
        files = {"type": "distribution", "url": f"https://pypi.org/simple/{name}/", "hashes": hashes}
        yield python_component(name, pin.version, **more, externalReferences=[files])


def system() -> Iterator[Component]:
    """What lies below the environment: Python, what came with it, and Debian's packages."""
    version = platform.python_version()
    cpe = f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*"
    yield component("application", "python", version, f"pkg:generic/python@{version}", cpe=cpe)
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    path = subprocess.run(
        [base, "-I", "-c", "import sys; print(*sys.path, sep='\\n')"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for found in importlib.metadata.distributions(path=path):
        more = {"licenses": licence} if (licence := licences(found.metadata)) else {}
        yield python_component(found.metadata["Name"], found.version, **more)
    if shutil.which("dpkg-query") is None:
        return
    release = platform.freedesktop_os_release()
    distribution = f"{release['ID']}-{release['VERSION_ID']}"
    fields = "${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\n"
    listed = subprocess.run(["dpkg-query", "-W", "-f", fields], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        name, version, architecture, source = line.split("\t")
        # Security trackers know source packages: `upstream` names them where they have another name.
        qualifiers = {"arch": architecture, "distro": distribution} | ({"upstream": source} if source != name else {})
        purl = f"pkg:deb/{release['ID']}/{quote(name)}@{quote(version)}?{urlencode(qualifiers)}"
        yield component("library", name, version, purl)


def document(name: str, version: str, lock: Path, *, kind: str = "container", with_system: bool = False) -> str:
    """CycloneDX JSON of what a lock and our package at a version make: an image family, or another kind of component.

    with_system: list what this machine has below the environment, too.
    """
    own = python_component("happyneurons", version, licenses=[{"license": {"id": "Apache-2.0"}}])
    parts = [own, *locked(lock), *(system() if with_system else ())]
    by_reference = {part["bom-ref"]: part for part in reversed(parts)}
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": kind, "name": f"happyneurons/{name}", "version": version}},
        "components": [by_reference[reference] for reference in sorted(by_reference)],
    }
    return json.dumps(bom, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    image, of_version, lock_file = sys.argv[1:]
    print(document(image, of_version, Path(lock_file), with_system=True), end="")
