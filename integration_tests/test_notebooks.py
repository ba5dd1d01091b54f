"""The notebooks are carried out: the example against a real orchestrator, the template beside its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from happyneurons.acquisition.phantom import make_phantom, write_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.gallery import draw_pictures
from happyneurons.orchestrator.server import OrchestratorServer
from happyneurons.store.artifacts import load_artifact
from happyneurons.store.documents import Store

EXAMPLE = Path(__file__).parents[1] / "notebooks" / "pipeline.ipynb"


def carry_out(path: Path, folder: Path) -> list[dict[str, Any]]:
    """Outputs of all code cells."""
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    NotebookClient(
        document, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [output for cell in document.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_example_runs_and_the_template_beside_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom(make_phantom((8, 160, 160), seed=3), (tmp_path / "phantom").as_uri())
    image = (tmp_path / "phantom" / "image").as_uri()
    simulate_acquisition(image, tmp_path / "acquisition", tiles=(2, 1), overlap_px=28, seed=3)
    monkeypatch.setenv("HPN_ACQUISITION", str(tmp_path / "acquisition"))
    server = OrchestratorServer(Store((tmp_path / "store").as_uri()))
    server.start()
    try:
        monkeypatch.setenv("HPN_ORCHESTRATOR", server.address)
        outputs = carry_out(EXAMPLE, tmp_path)
    finally:
        server.close()
    texts = "".join(o.get("text", "") for o in outputs)
    assert texts.startswith("target_std,state,seconds")
    assert texts.count("succeeded") == 2
    assert "/v/viewer/#!" in texts
    assert any("image/png" in o.get("data", {}) for o in outputs)

    assert draw_pictures([load_artifact(image)], tmp_path / "pictures", {"samples": 1}) == 4
    shown = carry_out(tmp_path / "pictures" / "preview.ipynb", tmp_path / "pictures")
    assert sum("image/png" in o.get("data", {}) for o in shown) == 4


def test_notebooks_are_kept_without_outputs() -> None:
    for path in EXAMPLE.parent.glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path
