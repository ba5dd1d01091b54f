"""The table of sites in docs/hpc.md says what the site folders say. `python -m tests.hpc.test_docs` prints it anew."""

from __future__ import annotations

from pathlib import Path

from happyneurons.hpc.folders import QueueFacts, load_site_folder, site_names

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "hpc.md"
HEAD = "| folder | system | node | queues: nodes, longest | ranks run in |\n|---|---|---|---|---|\n"


def hours(minutes: int) -> str:
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:g} h"


def queue_text(name: str, queue: QueueFacts, default: bool) -> str:
    shown = f"**{name}**" if default else name
    mark = ", killed without warning" if queue.preemptable else ""
    return f"{shown} {queue.min_nodes}–{queue.max_nodes}, {hours(queue.max_walltime_min)}{mark}"


def table() -> str:
    rows = []
    for name in site_names():
        facts = load_site_folder(name).facts
        title = facts.title if facts.in_service else f"{facts.title}: out of service"
        node = f"{facts.node.cores} cores, {facts.node.memory_gb:g} GB"
        if facts.node.gpus:
            node += f", {facts.node.gpus} × {facts.node.gpu_type}"
        queues = "; ".join(queue_text(q, rules, q == facts.default_queue) for q, rules in facts.queues.items())
        container = {"none": "native only", "shifter": "native only (Shifter)"}.get(
            facts.container.command, facts.container.command
        )
        rows.append(f"| [{name}](../hpc/sites/{name}/site.yaml) | {title} | {node} | {queues} | {container} |\n")
    return HEAD + "".join(rows)


def test_the_table_of_sites_is_that_of_the_site_folders():
    assert table() in DOCUMENT.read_text(), "print it anew: python -m tests.hpc.test_docs"


if __name__ == "__main__":
    print(table(), end="")
