"""Pipelines of open runs: what is refused, and how they grow with their batches."""

from __future__ import annotations

import pytest

from happyneurons.orchestrator.batches import with_batch, with_end
from happyneurons.orchestrator.pipeline import PipelineError, parse_pipeline

OPEN = """\
parameters: {size: 2}
acquisition: {batch: "${size}", wait_s: 5}
jobs:
  model: {stage: sandbox}
  first: {stage: gather, each: batch, params: {source: "${batch}"}}
  second: {stage: gather, each: batch, inputs: {tables: [first.table, model.numbers]}, needs: [first]}
  all: {stage: gather, inputs: {tables: second.table}}
  after: {stage: gather, needs: [look]}
gates:
  look: {after: [second], ask: Is it fine}
"""

# A stage that takes one stack gets many.
VOLUME = """\
all: {stage: volume, inputs: {stack: joined.stack}}
  joined: {stage: montage, each: batch, inputs: {tiles: raw.tiles}}
  raw: {stage: ingest, each: batch, params: {source: "${batch}"}}\
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text, sites=["local"])
    return [str(v) for v in caught.value.found]


def test_templates_stand_apart_until_there_is_a_batch():
    pipeline = parse_pipeline(OPEN)
    assert pipeline.acquisition is not None
    assert (pipeline.acquisition.batch, pipeline.acquisition.wait_s) == (2, 5.0)
    assert list(pipeline.templates) == ["first", "second"]
    assert set(pipeline.jobs) == {"model", "all", "after"}
    assert pipeline.late == {"all", "look", "after"}


def test_each_batch_adds_its_jobs_and_the_end_joins_them():
    pipeline = with_batch(with_batch(parse_pipeline(OPEN), 1, "file:///b/1.json"), 2, "file:///b/2.json")
    first, second = pipeline.jobs["first[0002]"], pipeline.jobs["second[0002]"]
    assert first.params == {"source": "file:///b/2.json"}
    assert second.inputs == {"tables": ("first[0002].table", "model.numbers")}
    assert second.needs == ("first[0002]",)
    assert pipeline.jobs["all"].inputs == {"tables": ("second.table",)}, "more batches may come"
    assert pipeline.order.index("second[0002]") < pipeline.order.index("all")
    ended = with_end(pipeline, 2)
    assert ended.jobs["all"].inputs == {"tables": ("second[0001].table", "second[0002].table")}
    assert ended.gates["look"].after == ("second[0001]", "second[0002]")
    assert ended.jobs["after"].upstream() == ("look",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('acquisition: {batch: "${size}", wait_s: 5}\n', ""), "line 4, column 26: jobs.first.each: needs"),
        (("wait_s: 5", "wait: 5"), "line 2, column 33: acquisition.wait: no such field"),
        (('"${size}"', "0"), "line 2, column 15: acquisition.batch: expected a number of sections, 1 to"),
        (("wait_s: 5", "wait_s: soon"), "acquisition.wait_s: expected seconds"),
        (("each: batch, params", "each: section, params"), "jobs.first.each: expected batch"),
        (("model: {stage: sandbox}", 'model: {stage: gather, params: {source: "${batch}"}}'), "${batch} is only known"),
        (("  all: {", "  third: {stage: gather, each: batch, needs: [all]}\n  all: {"), "third: all waits for all"),
        (("needs: [first]}", "needs: [look]}"), "jobs.second: look waits for all batches"),
        (("ask: Is it fine", "condition: second.rows > 3"), "gates.look.condition: second has a result for each batch"),
        (('{source: "${batch}"}}', '{}, sweep: {source: [a, b]}}'), "jobs.first.sweep: jobs with `each: batch`"),
        (("model: {stage: sandbox}", "model: {stage: sandbox, sweep: {tasks: [1, 2]}}"), "follows from a sweep"),
        (("{size: 2}", "{size: 2, batch: 3}"), "parameters.batch: this name is taken"),
        (("all: {stage: gather, inputs: {tables: second.table}}",
          VOLUME),
         "line 7, column 33: jobs.all.inputs.stack: takes one artifact, joined makes one for each batch"),
    ],
)  # fmt: skip
def test_mistakes_have_line_and_field(change, expected):
    found = mistakes(OPEN.replace(*change))
    assert any(expected in line for line in found), found


def test_an_acquisition_that_nothing_takes_is_a_mistake():
    (mistake,) = mistakes("acquisition: {batch: 1}\njobs:\n  a: {stage: sandbox}\n")
    assert mistake.startswith("line 1, column 1: acquisition: no job has `each: batch`")
