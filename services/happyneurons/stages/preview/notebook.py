"""The notebook beside the pictures: it shows whatever `index.json` lists."""

from __future__ import annotations

from typing import Any


def notebook(title: str) -> dict[str, Any]:
    """An nbformat 4.5 document that displays the pictures of its own folder."""
    show = [
        "import json\n",
        "from pathlib import Path\n",
        "\n",
        "from IPython.display import Image, Markdown, display\n",
        "\n",
        "index = json.loads(Path('index.json').read_text())\n",
        "sheets = [p for p in index['pictures'] if p['view'] == 'sheet']\n",
        "for picture in sheets:\n",
        "    display(Markdown(f\"## {picture['title']}\"), Image(picture['file']))",
    ]
    every = [
        "for picture in index['pictures']:\n",
        "    if picture['view'] != 'sheet':\n",
        "        display(Markdown(f\"### {picture['title']}\\n`{picture['artifact']}`\"), Image(picture['file']))",
    ]
    return {
        "cells": [
            _cell("title", "markdown", [f"# {title}\n", "\n", "An overview of each result first, then every picture."]),
            _cell("sheets", "code", show),
            _cell("pictures", "code", every),
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(name: str, kind: str, source: list[str]) -> dict[str, Any]:
    cell: dict[str, Any] = {"id": name, "cell_type": kind, "metadata": {}, "source": source}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell
