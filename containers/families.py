"""The image families of families.yaml, and what each of them installs.

python containers/families.py names              families, one a line
python containers/families.py requirements NAME  what its lock is made from (scripts/lock reads this)
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class Family(BaseModel):
    """One entry of families.yaml; its comment says what the fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    packages_from: str = Field("", alias="from")
    stages: tuple[str, ...]
    extras: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    licenses: str


def load_families(path: Path = HERE / "families.yaml") -> dict[str, Family]:
    """Families by name. Raises pydantic.ValidationError."""
    return {name: Family(name=name, **fields) for name, fields in yaml.safe_load(path.read_text()).items()}


def family_of(stage: str) -> Family:
    """The family that a stage's image belongs to. Raises LookupError."""
    for family in load_families().values():
        if stage in family.stages:
            return family
    raise LookupError(f"containers/families.yaml names no family for the stage {stage}")


def lock_path(name: str) -> Path:
    return HERE / "locks" / f"{name}.lock"


def requirement_name(requirement: str) -> str:
    """`grpcio>=1.85` → `grpcio`, as indexes spell it."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def requirements(family: Family) -> list[str]:
    """What the family needs of pyproject.toml. Raises LookupError where `without` names what nobody asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {requirement_name(r): r for r in project["dependencies"]}
    for name in family.without:
        if name not in wanted:
            raise LookupError(f"families.yaml: {family.name} is without {name}, which pyproject.toml does not ask for")
        del wanted[name]
    below = load_families()[family.packages_from].extras if family.packages_from else ()
    extras = dict.fromkeys([*below, *family.extras])
    return [*wanted.values(), *(r for extra in extras for r in project["optional-dependencies"][extra])]


def main(arguments: list[str]) -> int:
    match arguments:
        case ["names"]:
            print("\n".join(load_families()))
        case ["requirements", name]:
            print("\n".join(requirements(load_families()[name])))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
