"""Writes the boards, or with --check says whether what is there is what would be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from charts.boards import acquisition, overview, run, service, site, stage
from charts.boards.panels import Board, board_json

FOLDER = Path(__file__).resolve().parents[1] / "happyneurons" / "dashboards"
BOARDS: tuple[Board, ...] = tuple(m.BOARD for m in (overview, run, stage, site, acquisition, service))


def files() -> dict[str, str]:
    """File name → what stands in it."""
    return {f"{b.name}.json": json.dumps(board_json(b), indent=1, ensure_ascii=False) + "\n" for b in BOARDS}


def stale() -> list[str]:
    """Files that are not as they would be written, that are missing, or that no board writes any more."""
    wanted = files()
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main() -> int:
    if "--check" in sys.argv[1:]:
        wrong = stale()
        if wrong:
            print(f"charts/happyneurons/dashboards: {', '.join(wrong)}: not as charts/boards has it; run `make boards`")
        return 1 if wrong else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale():
        (FOLDER / name).unlink(missing_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
