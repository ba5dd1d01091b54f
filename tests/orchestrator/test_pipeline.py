"""Promise: every mistake in a pipeline is reported at once, with its line and field, before anything runs."""

from __future__ import annotations

import pytest

from happyneurons.errors import UserError
from happyneurons.orchestrator.conditions import evaluate
from happyneurons.orchestrator.pipeline import PipelineError, parse_pipeline

GOOD = """\
name: good
parameters: {count: 3, site: local}
jobs:
  a:
    stage: sandbox
    params: {tasks: "${count}"}
  b:
    stage: sandbox
    needs: [look]
    resources: {ranks: 2}
gates:
  look: {after: [a], ask: Is it fine}
"""


def mistakes(text: str, **parameters: str) -> list[str]:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text, parameters, sites=["local"])
    return [str(v) for v in caught.value.found]


def test_good_pipeline():
    pipeline = parse_pipeline(GOOD, {"count": "7"})
    assert pipeline.order == ("a", "look", "b")
    assert pipeline.jobs["a"].params == {"tasks": 7}
    assert pipeline.jobs["b"].resources.ranks == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("tasks:", "tusks:"), "line 6, column 14: jobs.a.params.tusks: no such parameter"),
        (("stage: sandbox\n    needs", "stage: sandbags\n    needs"), "line 8, column 5: jobs.b.stage: no stage named"),
        (("needs: [look]", "needs: [loop]"), "line 9, column 5: jobs.b.needs: no job or gate 'loop'"),
        (("after: [a]", "after: [b]"), "needs itself: "),
        (("ranks: 2", "ranks: 0"), "line 10, column 17: jobs.b.resources.ranks: "),
        (("ranks: 2", "rank: 2"), "jobs.b.resources.rank: "),
        (("${count}", "${cound}"), "line 6, column 14: jobs.a.params.tasks: no parameter 'cound'"),
        (("name: good", "nome: good"), "line 1, column 1: nome: no such field"),
        (("count: 3", "count:"), "parameters.count: needs a value: give it with --set count=VALUE"),
        (("ask: Is it fine", "condition: a.sum << 3"), "condition 'a.sum << 3'"),
        (("ask: Is it fine", "condition: __import__('os').x < 3"), "only numbers, JOB.METRIC"),
        (("  b:", "  a:"), "line 7, column 3: jobs.a: given twice"),
        (("stage: sandbox\n    needs", "stage: sandbox\n    site: mars\n    needs"), "no site 'mars'"),
        (("params: {tasks", "inputs: {x: a.numbers}\n    params: {tasks"), "jobs.a.inputs.x: no such input"),
        (("jobs:", "jobs: ["), "not valid YAML"),
    ],
)
def test_mistakes_have_line_and_field(change, expected):
    found = mistakes(GOOD.replace(*change))
    assert any(expected in line for line in found), found


def test_all_mistakes_at_once():
    assert len(mistakes(GOOD.replace("tasks", "tusks").replace("[look]", "[loop]").replace("ranks", "rinks"))) == 3


def test_unknown_parameter_is_refused():
    (mistake,) = mistakes(GOOD, color="red")
    assert mistake.endswith("parameters.color: the pipeline has no such parameter; there are count, site")


def test_jobs_of_a_sweep_go_by_the_names_of_their_settings_and_never_alike():
    pipeline = parse_pipeline("""
jobs:
  a:
    stage: montage
    inputs: {tiles: "file:///tiles"}
    sweep:
      sets: [[{name: fine, block_px: 32}], [{name: fine, block_px: 48}], [{name: fine}, {name: rough}]]
""")
    assert list(pipeline.jobs) == ["a[fine-1]", "a[fine-2]", "a[fine+rough]"]


def test_sweep_multiplies_the_job_and_what_follows():
    pipeline = parse_pipeline(
        """
jobs:
  a: {stage: sandbox, sweep: {tasks: [1, 2]}}
  b: {stage: sandbox, needs: [a]}
gates:
  g: {after: [a], ask: "?"}
"""
    )
    assert list(pipeline.jobs) == ["a[1]", "a[2]", "b"]
    assert pipeline.jobs["a[2]"].params == {"tasks": 2}
    assert pipeline.jobs["b"].needs == ("a[1]", "a[2]")
    assert pipeline.gates["g"].after == ("a[1]", "a[2]")


def test_conditions():
    metrics = {("a", "x"): 2.0, ("b", "y"): -1.0}
    assert evaluate("a.x < 3 and not b.y > 0", metrics)
    assert evaluate("1 <= a.x <= 2 or b.y == 7", metrics)
    assert not evaluate("a.x < -b.y", metrics)
    with pytest.raises(UserError, match="a gives no metric 'z'"):
        evaluate("a.z < 3", metrics)
