"""Everything else is in pyproject.toml: only here can a tree of data files be named without listing its folders."""

from pathlib import Path

from setuptools import setup

folders = [
    folder for folder in (Path("hpc"), *Path("hpc").rglob("*")) if folder.is_dir() and folder.name != "__pycache__"
]
setup(
    data_files=[
        (f"share/happyneurons/{folder}", [str(file) for file in sorted(folder.iterdir()) if file.is_file()])
        for folder in sorted(folders)
    ]
)
