"""Units of length, by the names that formats use."""

from __future__ import annotations

from happyneurons.errors import UserError

NM = {
    "angstrom": 0.1, "nanometer": 1.0, "nm": 1.0, "nanometers": 1.0, "micrometer": 1e3, "um": 1e3, "µm": 1e3,
    "micron": 1e3, "microns": 1e3, "micrometers": 1e3, "millimeter": 1e6, "mm": 1e6, "centimeter": 1e7,
    "meter": 1e9, "m": 1e9, "picometer": 1e-3,
}  # fmt: skip
"""Nanometres of a unit."""


def in_nm(unit: str | None, where: str) -> float:
    """Nanometres of one unit; nothing said counts as nanometres. Raises UserError."""
    if not unit:
        return 1.0
    if unit not in NM:
        raise UserError(f"{where}: its unit of length, {unit!r}, is not known; say voxel_size_nm_xyz yourself")
    return NM[unit]
