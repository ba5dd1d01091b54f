"""Every stage has an image family, and every family a lock that says what requirements.lock says."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from containers.families import ROOT, family_of, load_families, lock_path, requirement_name, requirements
from containers.images import BuildError, wanted_families

from happyneurons import stages

FAMILIES = load_families()


def pins(path: Path) -> dict[str, set[str]]:
    """Hashes by `name==version` of a lock."""
    found: dict[str, set[str]] = {}
    pin = ""
    for line in path.read_text().splitlines():
        if line.startswith("    --hash="):
            found[pin].add(line.strip(" \\"))
        elif not line.startswith("#"):
            pin = re.split(r"[ ;\\]", line)[0]
            assert "==" in pin, line
            found.setdefault(pin, set())
    return found


def own_stages() -> set[str]:
    return {m.name.replace("_", "-") for m in pkgutil.iter_modules(stages.__path__) if m.ispkg}


def test_every_stage_of_the_package_has_one_family() -> None:
    own = own_stages()
    listed = [stage for family in FAMILIES.values() for stage in family.stages]
    assert sorted(listed) == sorted(own), "containers/families.yaml and services/happyneurons/stages disagree"
    assert not set(FAMILIES) & own, "images of families and of stages have names of one kind"
    assert family_of("mesh").name == "igneous"


@pytest.mark.parametrize("name", FAMILIES)
def test_lock_of_a_family_agrees_with_requirements_lock(name: str) -> None:
    found, all_pins = pins(lock_path(name)), pins(ROOT / "requirements.lock")
    assert found
    assert {p: h for p, h in found.items() if all_pins.get(p) != h} == {}, "run `make lock`"
    locked = {requirement_name(pin) for pin in found}
    assert {requirement_name(r) for r in requirements(FAMILIES[name])} <= locked, "run `make lock`"
    assert not set(FAMILIES[name].without) & locked


def test_a_family_keeps_the_layer_of_the_one_it_comes_from() -> None:
    for family in FAMILIES.values():
        if family.packages_from:
            below, above = pins(lock_path(family.packages_from)), pins(lock_path(family.name))
            assert below.items() <= above.items(), f"{family.name} would install other versions over the shared ones"


def test_locks_name_no_place() -> None:
    for lock in sorted((ROOT / "containers" / "locks").glob("*.lock")):
        assert "://" not in lock.read_text(), lock
        assert all(pins(lock).values()), f"{lock}: a package without hashes"


def test_names_of_stages_and_families_find_families() -> None:
    assert [f.name for f in wanted_families(["montage", "align", "segment"])] == ["imaging", "tensorflow"]
    assert [f.name for f in wanted_families([])] == list(FAMILIES)
    with pytest.raises(BuildError, match=r"families.yaml names no family for the stage montages"):
        wanted_families(["montages"])


MODULES = {
    "cloud-volume": "cloudvolume", "connected-components-3d": "cc3d", "crc32c": "crc32c", "fastremap": "fastremap",
    "h5py": "h5py", "mpi4py": "mpi4py", "mpich": None, "opencv-python-headless": "cv2", "scipy": "scipy",
    "tinybrain": "tinybrain", "zfpy": "zfpy",
}  # fmt: skip
"""What is imported of a distribution."""
WITHOUT = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LACKING:
            raise ModuleNotFoundError(f"{name} is not in the image")
LACKING = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Lacking())
from happyneurons.cli.main import main
main()
"""


def test_the_control_plane_lists_all_stages_with_the_packages_of_its_image() -> None:
    lacking = ",".join(module for name in FAMILIES["control"].without if (module := MODULES[name]))
    command = [sys.executable, "-c", WITHOUT, lacking, "stage", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert own_stages() <= {s["name"] for s in json.loads(done.stdout)}


def test_a_host_mpi_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "containers" / "hpn-stage", "run", "x"],
        env={"HPN_HOST_MPI": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"hpn-stage: HPN_HOST_MPI={tmp_path}: no libmpi.so.12 there")
    assert done.stderr.count("\n") == 1
