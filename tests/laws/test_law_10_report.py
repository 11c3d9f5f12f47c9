"""Law 10: every number in the JSON appears in the report, and the report asks for nothing from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from reporting_fixtures import ATTENTION, make_pair, make_result
from reporting_pages import read_page, requests
from selectune.reporting import RunResult, summary, wording
from selectune.reporting.outcome import metric_range, metric_value
from selectune.reporting.page import render

RESULTS = {"one recipe": (make_result(ATTENTION),), "two recipes": make_pair()}


def written(result: RunResult) -> Iterator[tuple[str, str]]:
    """(path, text) of every number of a run's summary, by the rules of `selectune.reporting.wording`."""
    nats = {task.name for task in result.tasks if task.kind == "perplexity"}
    document = result.summary()
    matrix = document["matrix"]
    for i, row in enumerate(matrix["rows"]):
        for j, column in enumerate(matrix["columns"]):
            score = wording.perplexity if column in nats else wording.share
            ends = wording.perplexity_range if column in nats else wording.share_range
            where = f"matrix {row} {column}"
            yield f"{where} score", score(matrix["scores"][i][j])
            yield f"{where} interval", ends(matrix["low"][i][j], matrix["high"][i][j])
            yield f"{where} n", wording.count(matrix["n"][i][j])
    for name, metric in document["metrics"].items():
        yield f"{name} value", metric_value(name, metric["value"])
        yield f"{name} interval", metric_range(name, result.metrics[name])
        yield f"{name} n", wording.count(metric["n"])
    for read in document["probes"]["numbers"]:
        for key in ("mean", "low", "high", "max_mean"):
            yield f"numbers {read['stage']} {key}", wording.probability(read[key])
        yield f"numbers {read['stage']} n", wording.count(read["n"])
    for key in ("value", "low", "high"):
        yield f"correlation {key}", wording.number(document["probes"]["correlation"][key], 2, signed=True)
    yield "correlation n", wording.count(document["probes"]["correlation"]["n"])
    for verdict in document["verdicts"]:
        for rule in verdict["rules"]:
            for key in ("value", "bound"):
                yield f"{verdict['skill']} {rule['name']} {rule['task']} {key}", wording.points(rule[key])
            yield f"{verdict['skill']} {rule['name']} {rule['task']} ends", wording.points_range(rule["low"], rule["high"])
            for key in ("n", "lost", "gained", "needed"):
                yield f"{verdict['skill']} {rule['name']} {rule['task']} {key}", wording.count(rule[key])


def stands(value: str, text: str) -> bool:
    """Whether `value` is in `text` as a whole number, not as a part of a longer one."""
    return re.search(rf"(?<![\d.,]){re.escape(' '.join(value.split()))}(?![\d]|[.,]\d)", text) is not None


def leaves(document: Any, path: str = "") -> set[str]:
    """The path of every number in a JSON document, list positions left out."""
    if isinstance(document, dict):
        return {leaf for key, value in document.items() for leaf in leaves(value, f"{path}.{key}")}
    if isinstance(document, list):
        return {leaf for value in document for leaf in leaves(value, path)}
    return {path} if isinstance(document, int | float) and not isinstance(document, bool) else set()


@pytest.mark.parametrize("name", RESULTS)
def test_every_number_of_the_json_is_in_the_text_of_the_report(name: str) -> None:
    page = read_page(render(RESULTS[name]))
    text = " ".join(page.text.split())
    for result in RESULTS[name]:
        missing = [(path, value) for path, value in written(result) if not stands(value, text)]
        assert missing == []


@pytest.mark.parametrize("name", RESULTS)
def test_the_report_carries_exactly_the_json_that_run_prints(name: str) -> None:
    page = read_page(render(RESULTS[name]))
    assert json.loads(page.document) == json.loads(json.dumps(summary(RESULTS[name])))


def test_no_kind_of_number_in_the_json_is_without_a_rule() -> None:
    known = (
        r"\.matrix\.(scores|low|high|n)|\.metrics\.[a-z_]+(\.text)?\.(value|low|high|n)|\.probes\.numbers\.(mean|low|high|max_mean|n)"
        r"|\.probes\.correlation\.(value|low|high|n)|\.verdicts\.rules\.(value|low|high|bound|n|lost|gained|needed)"
    )
    assert {leaf for leaf in leaves(make_pair()[1].summary()) if not re.fullmatch(known, leaf)} == set()


def test_a_number_that_changes_is_missed() -> None:
    result = make_result(ATTENTION)
    text = " ".join(read_page(render([result])).text.split())
    other = result.model_copy(
        update={"metrics": {"target_learning": result.metrics["target_learning"].model_copy(update={"value": 0.12345})}}
    )
    assert [value for path, value in written(other) if path == "target_learning value" and stands(value, text)] == []


@pytest.mark.parametrize("name", RESULTS)
def test_the_report_asks_for_nothing_from_outside(name: str) -> None:
    page = read_page(render(RESULTS[name]))
    assert requests(page) == []
    assert page.unclosed == []


def test_a_request_would_be_seen() -> None:
    html = (
        '<img src="https://x/y.png"><link rel="stylesheet" href="z.css"><p onclick="x()">a</p>'
        "<style>@import 'q'; b{background:url(http://x)}</style><script>fetch('u')</script>"
    )
    assert len(requests(read_page(html))) == 7


def test_the_policy_allows_no_source_but_the_pages_own_style_script_and_data_pictures() -> None:
    page = read_page(render(make_pair()))
    policy = next(value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "default-src" in value)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name in ("style-src", "script-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules[name])
    assert not [value for _, name, value in page.attributes if name == "style"]
