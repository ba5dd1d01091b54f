"""A stand-in for AlignTK's programs find_rst, register and align, for tests: it is not AlignTK.

It keeps to what the programs agree on (options, lists, names, map and score files; an unknown
option or a missing file ends it with exit code 1) and does the simplest that can be called
alignment: shifts by whole px, by cross-correlation. `install` writes the three executables into a folder.

STANDIN_ALIGNTK=MODE:PROGRAM makes a program misbehave: `fail` (exit code 3), `silent` (exit code
0, no files), `truncate` (maps cut short), `hang` (until it is ended).
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def install(folder: Path) -> Path:
    """Executables that call this file, by the Python that runs it."""
    folder.mkdir(parents=True)
    for name in ("find_rst", "register", "align"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n')
        script.chmod(0o755)
    return folder


def options(argv: list[str], names: list[str], flags: tuple[str, ...] = ("tif",)) -> argparse.Namespace:
    # Values such as -10-10 begin with a dash: they are taken by position, not by argparse.
    found: dict[str, object] = dict.fromkeys(names) | dict.fromkeys(flags, False) | {"fixed": []}
    words = iter(argv)
    for word in words:
        name = word.removeprefix("-")
        if name in flags:
            found[name] = True
        elif name == "fixed":
            found["fixed"].append(next(words))  # type: ignore[attr-defined]
        elif name in names:
            found[name] = next(words)
        else:
            sys.exit(f"Invalid option: {word}")
    return argparse.Namespace(**found)


def rows(path: str) -> Iterator[list[str]]:
    for line in Path(path).read_text().splitlines():
        yield line.split()


def picture(prefix: str, name: str) -> np.ndarray:
    from PIL import Image

    with Image.open(f"{prefix}{name}.tif") as image:
        assert image.mode == "L", "8 bits a px"
        return np.asarray(image)


def mask(prefix: str, name: str) -> np.ndarray:
    magic, size, bits = Path(f"{prefix}{name}.pbm").read_bytes().split(b"\n", 2)
    assert magic == b"P4"
    width, height = map(int, size.split())
    packed = np.frombuffer(bits, np.uint8).reshape(height, (width + 7) // 8)
    return np.unpackbits(packed, axis=1)[:, :width] > 0


def write_map(path: str, level: int, size: tuple[int, int], shift: np.ndarray, names: str) -> None:
    """A map that shifts: nodes over an image of that size; target = (x, y) · 2^level."""
    width, height = (-(-n // 2**level) + 1 for n in size)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    nodes = np.stack([x + shift[0] / 2**level, y + shift[1] / 2**level, np.ones_like(x)], axis=-1)
    data = f"M1\n{level}\n{width} {height}\n0 0\n{names}\n".encode() + nodes.astype("<f4").tobytes()
    Path(path).write_bytes(data[:-6] if mode() == "truncate" else data)


def read_shift(path: str) -> np.ndarray:
    """Mean shift (px) of a map's valid nodes."""
    head = Path(path).read_bytes().split(b"\n", 5)
    assert head[0] == b"M1"
    level, (width, height), first = int(head[1]), map(int, head[2].split()), head[3].split()
    nodes = np.array(struct.unpack(f"<{3 * width * height}f", head[5])).reshape(height, width, 3)
    x, y = np.meshgrid(np.arange(width) + int(first[0]), np.arange(height) + int(first[1]))
    return np.asarray((nodes[..., :2] - np.stack([x, y], axis=-1))[nodes[..., 2] > 0].mean(axis=0) * 2**level)


def masked(given: argparse.Namespace, name: str) -> np.ndarray:
    """A picture about its mean, 0 where it is not valid."""
    grey, valid = picture(given.images, name).astype(float), mask(given.mask, name)
    return np.where(valid, grey - grey[valid].mean(), 0.0)


def find_rst(argv: list[str]) -> None:
    names = ["pairs", "images", "mask", "output", "rotation", "max_res", "scale", "tx", "ty", "summary"]
    given = options(argv, names)
    assert given.tif
    for source, target, pair in rows(given.pairs):
        a, b = (masked(given, name) for name in (source, target))
        product = np.fft.irfft2(np.conj(np.fft.rfft2(a)) * np.fft.rfft2(b), a.shape)
        peak = np.unravel_index(np.argmax(product), a.shape)
        # Beyond the middle it is a shift the other way.
        dy, dx = ((k + n // 2) % n - n // 2 for k, n in zip(peak, a.shape, strict=True))
        quality = float(product.max() / np.sqrt((a**2).sum() * (b**2).sum()))
        shift = np.array([float(dx), float(dy)])
        size = (a.shape[1], a.shape[0])
        write_map(f"{given.output}{pair}.map", 10, size, shift, f"{source} {target}")
        Path(f"{given.output}{pair}.score").write_text(f"{quality:f} 0.0 1.0 {shift[0]:f} {shift[1]:f}\n")


def register(argv: list[str]) -> None:
    names = ["pairs", "images", "mask", "output", "initial_map", "distortion", "output_level", "depth", "quality"]
    given = options(argv, [*names, "summary"])
    for source, target, pair in rows(given.pairs):
        shift = read_shift(f"{given.initial_map}{pair}.map")
        a, b = picture(given.images, source).astype(float), picture(given.images, target).astype(float)
        dx, dy = (round(float(v)) for v in shift)
        height, width = a.shape
        p = a[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
        q = b[max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
        score = float(np.corrcoef(p.ravel(), q.ravel())[0, 1])
        write_map(f"{given.output}{pair}.map", int(given.output_level), (width, height), shift, f"{source} {target}")
        Path(f"{given.output}{pair}.score").write_text(f"{score:f} {score:f} 0.0 0.0 0.0\n")


def align(argv: list[str]) -> None:
    names = ["images", "image_list", "map_list", "maps", "output", "schedule", "font"]
    given = options(argv, names, ("incremental",))
    levels = [int(row[0]) for row in rows(given.schedule)]
    assert levels == sorted(levels, reverse=True)
    assert Path(given.font).read_bytes().startswith(b"P5")
    sizes = {name: (int(w), int(h)) for name, w, h in rows(given.image_list)}
    index = {name: k for k, name in enumerate(sizes)}
    pairs = list(rows(given.map_list))
    # place[a] + p = place[b] + p + shift, and those of the fixed images are 0.
    matrix, right = np.zeros((len(pairs) + len(given.fixed), len(index))), []
    for k, (a, b, pair) in enumerate(pairs):
        matrix[k, index[a]], matrix[k, index[b]] = 1, -1
        right.append(read_shift(f"{given.maps}{pair}.map"))
    for k, name in enumerate(given.fixed):
        matrix[len(pairs) + k, index[name]] = 1
        right.append(np.zeros(2))
    places = np.linalg.lstsq(matrix, np.array(right), rcond=None)[0]
    for name, k in index.items():
        write_map(f"{given.output}{name}.map", levels[-1], sizes[name], places[k], f"{name} align")


def mode() -> str:
    """How this program is to misbehave; empty: not."""
    kind, _, program = os.environ.get("STANDIN_ALIGNTK", "").partition(":")
    return kind if program == sys.argv[1] else ""


if __name__ == "__main__":
    print(f"stand-in for AlignTK's {sys.argv[1]}", flush=True)
    if mode() == "hang":
        time.sleep(600)
    if mode() == "fail":
        sys.stderr.write("Could not read image\n")
        sys.exit(3)
    if mode() != "silent":
        {"find_rst": find_rst, "register": register, "align": align}[sys.argv[1]](sys.argv[2:])
