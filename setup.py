"""What pyproject.toml cannot say: a tree of data files without a list of its folders, and the kernels in C++."""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

folders = [
    folder for folder in (Path("hpc"), *Path("hpc").rglob("*")) if folder.is_dir() and folder.name != "__pycache__"
]

NATIVE = "services/happyneurons/ffn/native"
FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-exceptions", "-fno-rtti", "-ffp-contract=fast"]
INSTRUCTION_SETS = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mfma"]}


class BuildLibrary(build_ext):
    """Plain shared libraries, loaded through ctypes: they need no headers of Python and fit every version of it."""

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    data_files=[
        (f"share/happyneurons/{folder}", [str(file) for file in sorted(folder.iterdir()) if file.is_file()])
        for folder in sorted(folders)
    ],
    # Optional: where there is no compiler, TensorFlow does the work.
    ext_modules=[
        Extension(
            f"happyneurons.ffn.native.{name}",
            sources=[f"{NATIVE}/network.cpp"],
            depends=[f"{NATIVE}/winograd.hpp"],
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-fno-exceptions",
                "-fno-rtti",
                "-ffp-contract=fast",
                *flags,
            ],
            extra_link_args=["-pthread", "-Wl,--as-needed"],
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
    ],
    cmdclass={"build_ext": BuildLibrary},
)
