"""Volumes: chunked images and labels, in zyx order, on the same roots as documents.

CloudVolume does the reading and writing of the precomputed format, except that plain chunks on
file systems are read by happyneurons.store.chunks; HDF5 is read in place. All arrays here are
(z, y, x) and all boxes are given as `start_zyx`, `stop_zyx` in voxels of the mip level, in the
volume's own coordinates (which may start at an offset).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np

from happyneurons.errors import NotFoundError, TaskError, UserError
from happyneurons.store.chunks import ENCODINGS, chunks_in, read_box
from happyneurons.store.cloud import cloud_secrets, cloudpath, volume_errors
from happyneurons.store.compressed_segmentation import guard_cloudvolume
from happyneurons.store.damage import DamagedChunkError, damaged
from happyneurons.store.documents import Store, local_path, normalize_uri
from happyneurons.store.triples import Triple, triple


class Volume(Protocol):
    """A readable volume at one resolution. Attributes are in zyx order unless they say xyz."""

    uri: str
    dtype: np.dtype[Any]
    start_zyx: Triple
    stop_zyx: Triple
    voxel_size_nm_xyz: tuple[float, float, float]

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """(z, y, x) array of the box; the box must lie inside the volume."""


class PrecomputedVolume:
    """A precomputed volume at one mip level, readable and writable."""

    def __init__(self, uri: str, mip: int = 0) -> None:
        self.uri, self.mip = uri, mip
        self.root = normalize_uri(uri.removeprefix("precomputed://"))
        self.folder = local_path(self.root)
        """Where it lies, if it is on a file system."""
        with volume_errors(uri, "volume_open"):
            self._info = _read_info(uri)
        try:
            scales = self._info["scales"]
            self.mips: int = len(scales)
            if mip not in range(self.mips):
                raise UserError(f"volume {uri}: it has no mip level {mip}")
            scale: dict[str, Any] = scales[mip]
            if not (isinstance(scale["key"], str) and isinstance(scale["encoding"], str)):
                raise TypeError("key and encoding")
            self.dtype = np.dtype(self._info["data_type"])
            self.start_zyx: Triple = triple(scale.get("voxel_offset", (0, 0, 0))[::-1])
            self.stop_zyx: Triple = triple(np.add(self.start_zyx, triple(scale["size"][::-1])))
            x, y, z = (float(v) for v in scale["resolution"])
            self.voxel_size_nm_xyz = (x, y, z)
            self.chunk_zyx: Triple = triple(scale["chunk_sizes"][0][::-1])
            self.channels = int(self._info["num_channels"])
            self.layer_type = str(self._info["type"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"volume {uri}: its info file is not that of a precomputed volume ({error!r})") from None
        self.scale = scale
        """This level's entry in the volume's `info`."""

    @cached_property
    def _cv(self) -> Any:
        # Only when voxels are wanted: importing CloudVolume takes seconds, and who plans needs the info alone.
        from cloudvolume import CloudVolume

        guard_cloudvolume()
        path = cloudpath(self.uri)
        return CloudVolume(
            path, mip=self.mip, info=self._info, provenance={}, progress=False, bounded=True,
            fill_missing=True, non_aligned_writes=False, cache=False, secrets=cloud_secrets(),
            # file:// raw chunks stay uncompressed: tensorstore reads CloudVolume's X.gz as zeros.
            compress=False if path.startswith("file://") else None,
        )  # fmt: skip

    @cached_property
    def shard_zyx(self) -> Triple | None:
        """Edges of the box that one file holds, if the volume is sharded; its grid begins at `start_zyx`."""
        scale, sharding = self.scale, self.scale.get("sharding")
        if sharding is None:
            return None
        from happyneurons.store.image_shards import shard_xyz

        return triple(shard_xyz(sharding, scale["size"], scale["chunk_sizes"][0])[::-1])

    @property
    def shape_zyx(self) -> Triple:
        return triple(np.subtract(self.stop_zyx, self.start_zyx))

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int], channel: int = 0) -> np.ndarray:
        return np.ascontiguousarray(self._box(start_zyx, stop_zyx)[channel])

    def read_channels(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        """(channel, z, y, x) array of a box."""
        return np.ascontiguousarray(self._box(start_zyx, stop_zyx))

    def _box(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        box = None
        with volume_errors(self.uri, "volume_read"):
            try:
                if self.folder is not None:
                    box = read_box(self.folder, self.scale, self.dtype, self.channels, start_zyx, stop_zyx)
                return np.asarray(self._cv[_slices(start_zyx, stop_zyx)]).T if box is None else box
            except DamagedChunkError as error:
                raise TaskError(damaged(f"volume {self.uri}", start_zyx, stop_zyx, error)) from error

    def write_channels(self, start_zyx: Sequence[int], block: np.ndarray) -> None:
        """Write a (channel, z, y, x) block with all channels; its faces lie as those of `write`."""
        stop = [a + n for a, n in zip(start_zyx, block.shape[1:], strict=True)]
        with volume_errors(self.uri, "volume_write"):
            self._cv[_slices(start_zyx, stop)] = np.asfortranarray(np.asarray(block, dtype=self.dtype).T)

    def write(self, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        """Write a block whose faces lie on borders of chunks (shards) or on the volume's own faces."""
        if self.shard_zyx is not None:
            self._write_shards(start_zyx, np.asarray(block_zyx, dtype=self.dtype))
            return
        stop = [a + n for a, n in zip(start_zyx, block_zyx.shape, strict=True)]
        block = np.asarray(block_zyx, dtype=self.dtype).T[..., np.newaxis]
        with volume_errors(self.uri, "volume_write"):
            self._cv[_slices(start_zyx, stop)] = np.asfortranarray(block)

    def _write_shards(self, start_zyx: Sequence[int], block_zyx: np.ndarray) -> None:
        from happyneurons.store.image_shards import encode_shard

        assert self.shard_zyx is not None
        store = Store(self.root)
        stop = np.add(start_zyx, block_zyx.shape)
        off = [(np.subtract(face, self.start_zyx) % self.shard_zyx != 0) for face in (start_zyx, stop)]
        if off[0].any() or (off[1] & (stop != self.stop_zyx)).any():
            raise ValueError(f"volume {self.uri}: the box {tuple(start_zyx)}..{tuple(stop)} (zyx) cuts through shards")
        for at in product(*(range(0, n, s) for n, s in zip(block_zyx.shape, self.shard_zyx, strict=True))):
            part = block_zyx[tuple(slice(a, a + s) for a, s in zip(at, self.shard_zyx, strict=True))]
            corner = np.add(start_zyx, at)[::-1].tolist()
            with volume_errors(self.uri, "volume_write"):
                path, content = encode_shard(self._cv, corner, np.asfortranarray(part.T[..., np.newaxis]))
                store.put(path, content)


LAYOUT = ("encoding", "compressed_segmentation_block_size", "chunk_sizes", "size", "voxel_offset", "sharding")
"""Parts of a scale that say how its chunks' files are made and named."""


def copy_chunks(
    source: PrecomputedVolume, target: PrecomputedVolume, start_zyx: Sequence[int], shape_zyx: Sequence[int]
) -> bool:
    """Copy the files of whole chunks between two volumes of the same layout; False if theirs differ.

    From file systems only: on object stores a file's compression is not seen by its name. What is not
    there is zeros.
    """
    if (
        source.folder is None
        or target.scale.get("sharding")
        or (source.dtype, source.channels) != (target.dtype, target.channels)
        or any(source.scale.get(name) != target.scale.get(name) for name in LAYOUT)
    ):
        return False
    names = [name for name, _, _ in chunks_in(target.scale, start_zyx, np.add(start_zyx, shape_zyx))]
    stored = source.folder / source.scale["key"]
    if any((stored / f"{name}{end}").exists() for name in names for end in ENCODINGS):
        return False
    store = Store(target.root)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            store.put(f"{target.scale['key']}/{name}", (stored / name).read_bytes())
    return True


class Hdf5Volume:
    """A (z, y, x) dataset of an HDF5 file, read in place. URI: `h5://FILE?DATASET`.

    Attributes of the dataset tell voxel size and offset: `voxel_size_nm_xyz` or `voxel_size_nm_zyx` and
    `voxel_offset_xyz` (ours), or `resolution` and `offset` in nm, zyx (CREMI and many others).
    """

    def __init__(self, uri: str, voxel_size_nm_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        self.uri = uri
        self._path, self._dataset = parse_h5_uri(uri)
        with self._open() as file:
            if self._dataset not in file:
                raise UserError(f"{uri}: the file has no dataset {self._dataset!r}; there are {', '.join(file)}")
            data = file[self._dataset]
            if data.ndim != 3:
                raise UserError(f"{uri}: expected a (z, y, x) dataset, found shape {data.shape}")
            self.dtype = np.dtype(data.dtype)
            shape = triple(data.shape)
            size = _attribute_xyz(data.attrs, "voxel_size_nm") or _attribute_xyz(data.attrs, "resolution", "zyx")
            offset = _attribute_xyz(data.attrs, "voxel_offset")
            offset_nm = _attribute_xyz(data.attrs, "offset", "zyx")
        self.voxel_size_nm_xyz = (size[0], size[1], size[2]) if size else voxel_size_nm_xyz
        if offset is None and offset_nm is not None and size is not None:
            offset = tuple(round(nm / step) for nm, step in zip(offset_nm, size, strict=True))
        self.start_zyx: Triple = triple(offset[::-1] if offset else (0, 0, 0))
        self._shape = shape
        self.stop_zyx: Triple = triple(np.add(self.start_zyx, shape))

    @property
    def shape_zyx(self) -> Triple:
        return self._shape

    def _open(self) -> Any:
        import h5py

        try:
            return h5py.File(self._path, "r")
        except FileNotFoundError:
            raise UserError(f"{self.uri}: there is no file {self._path}") from None
        except OSError as error:
            raise UserError(f"{self.uri}: not a readable HDF5 file ({error})") from None

    def read(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> np.ndarray:
        # Opened for each read: an h5py handle must not be carried over a fork or between threads.
        with self._open() as file:
            box = tuple(
                slice(int(a) - o, int(b) - o) for a, b, o in zip(start_zyx, stop_zyx, self.start_zyx, strict=True)
            )
            return np.asarray(file[self._dataset][box])


def _attribute_xyz(attributes: Any, name: str, order: str = "") -> tuple[float, ...] | None:
    """Three numbers of an HDF5 attribute in xyz order; None if there is none. The order may be in its name."""
    for suffix in ("xyz", "zyx") if not order else ("",):
        value = attributes.get(f"{name}_{suffix}" if suffix else name)
        if value is not None and np.shape(value) == (3,) and np.asarray(value).dtype.kind in "uif":
            numbers = tuple(float(v) for v in value)
            return numbers[::-1] if (suffix or order) == "zyx" else numbers
    return None


def parse_h5_uri(uri: str) -> tuple[str, str]:
    """(file path, dataset) of `h5://FILE?DATASET`; FILE may be relative to the working folder."""
    parts = urlsplit(uri)
    if parts.scheme != "h5" or not parts.query:
        raise UserError(f"{uri}: write HDF5 volumes as h5://FILE?DATASET")
    path = local_path(parts.netloc + parts.path)
    return str(path), parts.query


def absolute_uri(uri: str) -> str:
    """The URI of a volume, independent of the working folder."""
    if uri.startswith("h5://"):
        path, dataset = parse_h5_uri(uri)
        return f"h5://{path}?{dataset}"
    return normalize_uri(uri.removeprefix("precomputed://"))


def open_volume(uri: str, mip: int = 0) -> PrecomputedVolume | Hdf5Volume:
    """Open a volume by URI: `h5://FILE?DATASET`, or a precomputed folder on any store."""
    if uri.startswith("h5://"):
        if mip:
            raise UserError(f"{uri}: HDF5 volumes have one level only; mip {mip} was asked for")
        return Hdf5Volume(uri)
    return PrecomputedVolume(uri, mip)


def create_volume(
    uri: str,
    *,
    start_zyx: Sequence[int],
    stop_zyx: Sequence[int],
    voxel_size_nm_xyz: Sequence[float],
    dtype: str,
    layer_type: Literal["image", "segmentation"],
    chunk_zyx: Sequence[int] = (64, 64, 64),
    channels: int = 1,
    shard_bytes: int = 0,
) -> PrecomputedVolume:
    """Make a precomputed volume's `info` (one mip level) and open it. Doing it again is harmless.

    Labels of 32 or 64 bits are stored as compressed_segmentation, everything else raw. shard_bytes: most
    bytes of voxels that a file holds (volumes of one channel); 0: a file a chunk.
    """
    shape = np.subtract(stop_zyx, start_zyx)
    if (shape <= 0).any():
        raise UserError(f"volume {uri}: empty box {tuple(start_zyx)}..{tuple(stop_zyx)} (zyx)")
    resolution = [float(v) for v in voxel_size_nm_xyz]
    scale: dict[str, Any] = {
        "key": "_".join(map(str, resolution)),
        "size": [int(v) for v in shape][::-1],
        "voxel_offset": [int(v) for v in start_zyx][::-1],
        "resolution": resolution,
        "chunk_sizes": [[int(v) for v in chunk_zyx][::-1]],
        "encoding": "raw",
    }
    if layer_type == "segmentation" and np.dtype(dtype).itemsize in (4, 8):
        scale |= {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    if shard_bytes:
        from happyneurons.store.image_shards import image_sharding

        scale["sharding"] = image_sharding(scale["size"], scale["chunk_sizes"][0], dtype, shard_bytes)
    info = {"type": layer_type, "data_type": np.dtype(dtype).name, "num_channels": channels, "scales": [scale]}
    Store(normalize_uri(uri)).put_json("info", info)
    return PrecomputedVolume(uri)


def _read_info(uri: str) -> Any:
    """The `info` of a precomputed volume. Raises NotFoundError, StoreAccessError, StoreError, UserError."""
    root = normalize_uri(uri.removeprefix("precomputed://"))
    folder = local_path(root)
    try:
        if folder is not None and not folder.is_dir():  # opening a store would make the folder
            raise NotFoundError(root)
        return Store(root).get_json("info")
    except NotFoundError:
        raise NotFoundError(f"volume {uri}: no precomputed volume there (no info file)") from None
    except ValueError as error:
        raise UserError(f"volume {uri}: its info file is not JSON ({error})") from None


def _slices(start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start_zyx, stop_zyx, strict=True))
    return (x, y, z)
