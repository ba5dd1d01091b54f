"""Every backend computes the same network; our kernels do so for any size, with the same bits on AVX2 and AVX-512."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.ffn.architecture import Architecture, initial_weights
from happyneurons.ffn.backends import backend_names, choose, make_step
from happyneurons.ffn.backends.winograd import NATIVE, WinogradStep, usable_sets
from happyneurons.ffn.model import Model, load_model
from tests.ffn.networks import lively_weights, random_patch, reference

CASES = {
    "whole tiles": Architecture(depth=3, features=32, fov_zyx=(9, 9, 9), deltas_zyx=(2, 2, 2)),
    "cut tiles, anisotropic": Architecture(depth=3, features=16, fov_zyx=(5, 13, 11), deltas_zyx=(1, 3, 3)),
    "odd features": Architecture(depth=2, features=5, fov_zyx=(7, 9, 3), deltas_zyx=(2, 2, 1)),
    "many features": Architecture(depth=2, features=70, fov_zyx=(7, 5, 9), deltas_zyx=(2, 2, 2)),
}


def test_the_kernels_are_built() -> None:
    """There is a compiler wherever these tests run; without this, all others here might run nothing."""
    assert list(usable_sets()), f"nothing usable in {NATIVE}: install g++, then `make venv`"


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("threads", [1, 3])
def test_winograd_equals_an_independent_evaluation(case: str, threads: int) -> None:
    architecture = CASES[case]
    weights = lively_weights(architecture)
    image, seed = random_patch(architecture.fov_zyx)
    expected = reference(weights, architecture.depth, image, seed)
    for name in usable_sets():
        step = WinogradStep(architecture, weights, threads=threads, instruction_set=name)
        for _ in range(2):  # nothing may be left over from a step before
            np.testing.assert_allclose(step(image, seed), expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_winograd_gives_the_logits_of_googles_checkpoint(fib25_checkpoint: str) -> None:
    model = load_model(f"ckpt://{fib25_checkpoint}", fov_zyx=(9, 11, 7), deltas_zyx=(2, 2, 2))
    image, seed = random_patch(model.architecture.fov_zyx)
    expected = reference(model.weights, 12, image, seed)
    for name in usable_sets():
        step = WinogradStep(model.architecture, model.weights, instruction_set=name)
        np.testing.assert_allclose(step(image, seed), expected, atol=2e-4, err_msg=name)


def test_threads_do_not_change_bits() -> None:
    architecture = CASES["cut tiles, anisotropic"]
    weights = lively_weights(architecture)
    image, seed = random_patch(architecture.fov_zyx)
    one, four = (WinogradStep(architecture, weights, threads=n)(image, seed) for n in (1, 4))
    np.testing.assert_array_equal(one, four)


SIXTEEN_LANES = """
import ctypes, sys, numpy as np
from happyneurons.ffn.backends import winograd
library = ctypes.CDLL(sys.argv[1])
library.hpn_ffn_new.restype = ctypes.c_void_p
winograd.usable_sets = lambda: {"sixteen": library}
from tests.ffn.test_backends import CASES
from tests.ffn.networks import lively_weights, random_patch
for case in CASES.values():
    image, seed = random_patch(case.fov_zyx)
    sys.stdout.buffer.write(winograd.WinogradStep(case, lively_weights(case))(image, seed).tobytes())
"""


def test_sixteen_lanes_give_the_bits_of_eight(tmp_path: Path) -> None:
    """AVX-512's code, with each of its vectors computed as two of AVX2's: this runs on machines without AVX-512."""
    if "avx2" not in usable_sets():
        pytest.skip("this processor has no AVX2")
    library = tmp_path / "sixteen.so"
    subprocess.run(
        ["g++", "-std=c++17", "-O2", "-mavx2", "-mfma", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti", "-fPIC",
         "-DHPN_LANES=16", "-shared", str(NATIVE / "network.cpp"), "-o", str(library), "-pthread"],
        check=True,
    )  # fmt: skip
    found = subprocess.run([sys.executable, "-c", SIXTEEN_LANES, str(library)], capture_output=True, check=True).stdout
    expected = b""
    for case in CASES.values():
        image, seed = random_patch(case.fov_zyx)
        expected += WinogradStep(case, lively_weights(case), instruction_set="avx2")(image, seed).tobytes()
    assert found == expected


def test_wrong_calls_are_refused() -> None:
    architecture = CASES["whole tiles"]
    weights = initial_weights(architecture, 0)
    step = WinogradStep(architecture, weights)
    with pytest.raises(ValueError, match="field of view"):
        step(np.zeros((9, 9, 7), np.float32), np.zeros((9, 9, 9), np.float32))
    with pytest.raises(UserError, match="abacus cannot be used here"):
        WinogradStep(architecture, weights, instruction_set="abacus")
    del weights["conv1_a/weights"]
    with pytest.raises(UserError, match="conv1_a/weights is missing"):
        WinogradStep(architecture, weights)


def test_auto_takes_the_kernels_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    architecture = CASES["whole tiles"]
    assert choose("auto", architecture) == "winograd"
    usable = usable_sets()
    monkeypatch.setattr("happyneurons.ffn.backends.winograd.usable_sets", dict)
    assert choose("auto", architecture) == "tensorflow"
    with pytest.raises(UserError, match="was not built"):
        choose("winograd", architecture)
    assert usable
    assert set(backend_names()) == {"auto", "keras", "tensorflow", "winograd"}


@pytest.mark.parametrize("backend", ["tensorflow", "keras"])
def test_other_backends_agree(backend: str) -> None:
    architecture = CASES["cut tiles, anisotropic"]
    model = Model(architecture, lively_weights(architecture))
    image, seed = random_patch(architecture.fov_zyx)
    expected = reference(model.weights, architecture.depth, image, seed)
    np.testing.assert_allclose(make_step(backend, model, 1)(image, seed), expected, rtol=1e-4, atol=1e-4)
