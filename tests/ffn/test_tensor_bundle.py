"""Checkpoints are read as TensorFlow reads them, and what is damaged or something else is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from happyneurons.ffn.tensor_bundle import BundleError, TensorBundle


def test_every_tensor_of_googles_checkpoint_is_what_tensorflow_reads(fib25_checkpoint: str) -> None:
    from happyneurons.ffn.network import tf

    bundle, reader = TensorBundle(fib25_checkpoint), tf.train.load_checkpoint(fib25_checkpoint)
    shapes = reader.get_variable_to_shape_map()
    assert {name: list(entry.shape) for name, entry in bundle.entries.items()} == shapes
    for name in shapes:
        np.testing.assert_array_equal(bundle[name], reader.get_tensor(name), strict=True)


def test_many_tensors_in_several_blocks_of_the_index(tmp_path: Path) -> None:
    from happyneurons.ffn.network import tf

    values = {f"layer_{i:04d}/weights": np.arange(i % 7 + 1, dtype=(np.float32, np.int64)[i % 2]) for i in range(900)}
    saver = tf.raw_ops.SaveV2
    prefix = str(tmp_path / "many")
    saver(prefix=prefix, tensor_names=list(values), shape_and_slices=[""] * len(values), tensors=list(values.values()))
    bundle = TensorBundle(prefix)
    assert set(bundle.entries) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(bundle[name], value, strict=True)


def test_damage_is_found(tmp_path: Path, fib25_checkpoint: str) -> None:
    copy = tmp_path / "model.ckpt"
    index, data = Path(f"{copy}.index"), Path(f"{copy}.data-00000-of-00001")

    def fresh() -> None:
        for file in (index, data):
            file.unlink(missing_ok=True)
            shutil.copyfile(fib25_checkpoint + file.name.removeprefix(copy.name), file)

    def spoil(file: Path, place: int) -> None:
        fresh()
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)

    fresh()
    first = min(TensorBundle(str(copy)).entries.items(), key=lambda item: item[1].offset)[0]
    spoil(data, 0)
    with pytest.raises(BundleError, match=f"{first} is damaged"):
        TensorBundle(str(copy))[first]
    spoil(index, 20)
    with pytest.raises(BundleError, match="its index is damaged"):
        TensorBundle(str(copy))
    index.write_bytes(index.read_bytes()[:1000])
    with pytest.raises(BundleError, match="not a table of a checkpoint"):
        TensorBundle(str(copy))
    fresh()
    data.write_bytes(data.read_bytes()[:1])
    with pytest.raises(BundleError, match="bytes, which does not fit its shape"):
        TensorBundle(str(copy))[first]
    data.unlink()
    with pytest.raises(FileNotFoundError):
        TensorBundle(str(copy))[first]


def test_a_rank_that_computes_without_tensorflow_never_loads_it(fib25_checkpoint: str) -> None:
    code = (
        "import sys; from happyneurons.ffn.backends import make_step; from happyneurons.ffn.model import load_model;"
        f"make_step('winograd', load_model('ckpt://{fib25_checkpoint}'), 1); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
