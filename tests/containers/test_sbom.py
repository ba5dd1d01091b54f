"""A bill of materials names what a lock installs here: no more, no less, always in the same bytes."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from containers import images
from containers.families import load_families
from containers.sbom import document, licences, system
from packaging.utils import canonicalize_name

LOCK = """# A comment with == in it.
grpcio==1.80.0 \\
    --hash=sha256:bb \\
    --hash=sha256:aa
nowhere-1==1.0+local ; python_full_version >= '3.11' \\
    --hash=sha256:cc
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:dd
"""


def components(text: str) -> dict[str, dict[str, Any]]:
    """Components by name."""
    found = json.loads(text)["components"]
    assert len({c["name"] for c in found}) == len(found)
    return {c["name"]: c for c in found}


def test_a_lock_is_read_as_pip_reads_it(tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(LOCK)
    found = components(document("some", "1.2.3", lock))
    assert {name: c["version"] for name, c in found.items()} == {
        "grpcio": "1.80.0", "happyneurons": "1.2.3", "nowhere-1": "1.0+local",
    }  # fmt: skip
    assert found["nowhere-1"]["purl"] == "pkg:pypi/nowhere-1@1.0%2Blocal"
    (files,) = found["grpcio"]["externalReferences"]
    assert [h["content"] for h in files["hashes"]] == ["aa", "bb"]
    assert "licenses" not in found["nowhere-1"]
    assert document("some", "1.2.3", lock) == document("some", "1.2.3", lock)


def test_the_lock_of_this_environment_names_what_is_installed_in_it(tmp_path: Path) -> None:
    images.write_sboms([], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.cdx.json" for n in [*load_families(), "requirements"]}
    found = components((tmp_path / "requirements.cdx.json").read_text())
    installed = {canonicalize_name(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    assert {n: c["version"] for n, c in found.items()} == {n: installed[n].version for n in found}
    assert found["numpy"]["licenses"] == licences(installed["numpy"].metadata) != []
    assert components((tmp_path / "control.cdx.json").read_text()).keys() < found.keys()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["License-Expression: MIT OR Apache-2.0", "License: MIT"], [{"expression": "MIT OR Apache-2.0"}]),
        (["Classifier: License :: OSI Approved :: BSD License", "License: x"], [{"license": {"name": "BSD License"}}]),
        (["Classifier: License :: OSI Approved", "License: BSD-3-Clause"], [{"license": {"name": "BSD-3-Clause"}}]),
        (["License: A whole text", "  of many lines"], []),
        (["Classifier: Topic :: Software Development"], []),
    ],
)
def test_licences_are_what_the_distribution_says(
    fields: list[str], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "x-1.dist-info").mkdir()
    text = "\n".join(["Metadata-Version: 2.1", "Name: x", "Version: 1", *fields, ""])
    (tmp_path / "x-1.dist-info/METADATA").write_text(text)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert licences(found.metadata) == expected


def test_python_itself_is_part_of_a_system() -> None:
    assert "python" in {c["name"] for c in system() if c["type"] == "application"}
