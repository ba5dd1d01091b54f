"""Stands in for Fiji with TrakEM2, which the tests cannot install: same command line, same files, other inside.

Places tiles by phase correlation of their nominal overlaps. A JSON document that STANDIN_CONTROL names says
what else it is to do: {"MIN_MAX" or "Z:MIN_MAX": WHAT}, with WHAT one of

fail            exit 1 with a Java stack trace
hang            start a child that sleeps, note its number in OUTPUT/../child, and wait for it
no_picture, no_transforms, damaged, wide (a picture of twice the width)
misplaced       the last tile 15 px off, sloppy: 2.5 px off, turned: mirrored
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import tifffile


def main() -> int:
    arguments = sys.argv[1:]
    options = dict(a[2:].split("=", 1) for a in arguments if a.startswith("-D"))
    after = arguments[arguments.index("--") + 1 :]
    assert arguments[0] == "--headless"
    assert after[0] == "--no-splash"
    assert Path(after[1]).suffix == ".bsh", after
    assert Path(after[1]).is_file(), after
    output = Path(options["output"])
    assert output.is_dir()
    assert not list(output.iterdir())
    rows = [line.split("\t") for line in Path(options["input"]).read_text().splitlines()]
    assert all(len(row) == 9 for row in rows)
    z = int(rows[0][3])
    what = _told(z, f"{options['min']}_{options['max']}")
    print(f"stand-in: {len(rows)} tiles of section {z}, {options['min']} to {options['max']} px: {what}")
    print(os.environ["JAVA_TOOL_OPTIONS"])
    if what == "fail":
        print("java.lang.OutOfMemoryError: Java heap space\n\tat mpicbg.trakem2.align.Align.alignTiles(Align.java:1)")
        return 1
    if what == "hang":
        child = subprocess.Popen(["sleep", "300"])
        (output.parent.parent / "child").write_text(str(child.pid))
        child.wait()
    pictures = [tifffile.imread(row[0]) for row in rows]
    xy = _placed(pictures, np.array([[float(row[1]), float(row[2])] for row in rows]))
    xy[-1] += {"misplaced": 15.0, "sloppy": 2.5}.get(what, 0.0)
    xy -= np.floor(xy.min(axis=0))
    sizes = np.array([p.shape[::-1] for p in pictures])
    width, height = np.ceil((xy + sizes).max(axis=0)).astype(int).tolist()
    flat = np.zeros((height, 2 * width if what == "wide" else width), np.uint8)
    lines = []
    for row, picture, (x, y) in zip(rows, pictures, xy.tolist(), strict=True):
        matrix = np.array([[-1.0 if what == "turned" else 1.0, 0, x], [0, 1, y]])
        inside = cv2.warpAffine(np.full_like(picture, 255), matrix, flat.shape[::-1]) == 255
        flat[inside] = cv2.warpAffine(picture, matrix, flat.shape[::-1], flags=cv2.INTER_CUBIC)[inside]
        lines.append("\t".join([row[0], row[3], *(repr(v) for v in matrix.ravel().tolist())]))
    if what != "no_picture":
        (output / "output").mkdir()
        path = output / "output" / f"S_{z:04d}.tif"
        tifffile.imwrite(path, flat, byteorder=">", compression="zlib" if what == "compressed" else None)
        if what == "damaged":
            path.write_bytes(path.read_bytes()[:6])
    if what != "no_transforms":
        (output / "transforms.tsv").write_text("\n".join(lines) + "\n")
    return 0


def _told(z: int, octaves: str) -> str:
    path = os.environ.get("STANDIN_CONTROL")
    control = json.loads(Path(path).read_text()) if path else {}
    return str(control.get(f"{z}:{octaves}", control.get(octaves, "ok")))


def _placed(pictures: list[np.ndarray], nominal: np.ndarray) -> np.ndarray:
    """(n, 2) positions (px): least squares over the shifts of all pairs that overlap."""
    n = len(pictures)
    rows, goals = [1e-3 * np.eye(n)], [1e-3 * nominal]
    for a in range(n):
        for b in range(a + 1, n):
            x, y = (nominal[b] - nominal[a]).astype(int)
            h, w = pictures[a].shape
            wide, high = w - abs(x), h - abs(y)
            if min(wide, high) < 16 or max(wide, high) < 100:
                continue
            first = pictures[a][max(0, y) : max(0, y) + high, max(0, x) : max(0, x) + wide].astype(np.float32)
            second = pictures[b][max(0, -y) : max(0, -y) + high, max(0, -x) : max(0, -x) + wide].astype(np.float32)
            window = cv2.createHanningWindow((wide, high), cv2.CV_32F)
            (dx, dy), response = cv2.phaseCorrelate(second, first, window)
            if response < 0.1 or max(abs(dx), abs(dy)) > 12:  # nothing in common: such a tile stays where it was
                continue
            row = np.zeros((1, n))
            row[0, a], row[0, b] = -1, 1
            rows.append(row)
            goals.append(np.array([[x + dx, y + dy]]))
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(goals), rcond=None)[0]


if __name__ == "__main__":
    sys.exit(main())
