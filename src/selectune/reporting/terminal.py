"""Rich renderables of results for the command line; they only look, and print nothing themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from selectune.reporting import outcome, wording
from selectune.reporting.document import Estimate
from selectune.reporting.history import Entry, log_table, verdict_text
from selectune.reporting.judged import Verdict
from selectune.reporting.measured import MatrixTable, TaskInfo
from selectune.reporting.result import RunResult
from selectune.reporting.tables import plain_table
from selectune.reporting.trained import UpdateInfo


def matrix_table(matrix: MatrixTable, tasks: Sequence[TaskInfo], *, title: str = "") -> Table:
    """Stages by tasks, each score with its interval; the count is in the heading, or in the cell where it differs by stage."""
    table = plain_table(title=title)
    table.add_column("after stage", no_wrap=True)
    known = {task.name: task for task in tasks}
    for index, column in enumerate(matrix.columns):
        counts = {row[index] for row in matrix.n}
        task = known[column]
        notes = [task.role] + ["synthetic"] * task.synthetic + ["perplexity"] * (task.kind == "perplexity")
        heading = Text(_clean(column)).append(f"\n{', '.join(notes)}", style="dim")
        table.add_column(heading.append(f"\nn = {counts.pop()}" if len(counts) == 1 else "", style="dim"), justify="right")
    for row in matrix.rows:
        cells = [_score(known[column], matrix.cell(row, column), matrix, column) for column in matrix.columns]
        table.add_row(Text(_clean(row), style="bold"), *cells)
    return table


def _score(task: TaskInfo, cell: Estimate, matrix: MatrixTable, column: str) -> Text:
    if task.kind == "perplexity":
        text = Text(wording.perplexity(cell.value)).append(f"\n{wording.perplexity_range(cell.low, cell.high)}", style="dim")
    else:
        text = Text(wording.share(cell.value)).append(f"\n{wording.share_range(cell.low, cell.high)}", style="dim")
    index = matrix.columns.index(column)
    return text if len({row[index] for row in matrix.n}) == 1 else text.append(f"\nn = {cell.n}", style="dim")


def metrics_table(metrics: Mapping[str, Estimate], *, title: str = "") -> Table:
    """Each metric in points (nats for log likelihoods) with its interval and count."""
    table = plain_table("metric", "points", "95 % interval", "n", title=title)
    for name, estimate in metrics.items():
        label = Text(_clean(outcome.metric_label(name)))
        if estimate.label:
            label.append(f" ({_clean(estimate.label)})", style="dim")
        table.add_row(label, outcome.metric_value(name, estimate.value), outcome.metric_range(name, estimate), wording.count(estimate.n))
    return table


def verdict_table(verdicts: Sequence[Verdict], tasks: Sequence[TaskInfo] = (), *, title: str = "") -> Table:
    """Every rule of every verdict with its numbers; `tasks` tell which changes are in nats."""
    nats = {task.name for task in tasks if task.kind == "perplexity"}
    table = plain_table(title=title)
    for heading in ("skill", "rule", "task", "against"):
        table.add_column(heading, overflow="fold")
    for heading in ("change", "low", "bound", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        table.add_row(Text(_clean(verdict.skill), style="bold"), "", "", "", "", "", "", "", verdict_text(verdict.verdict))
        for rule in verdict.rules:
            numbers = (rule.value, rule.low, rule.bound)
            written = [wording.number(one, 4, signed=True) if rule.task in nats else wording.points(one) for one in numbers]
            names = [Text(_clean(name)) for name in (wording.words(rule.name), rule.task, rule.against)]
            table.add_row("", *names, *written, wording.count(rule.n), verdict_text(rule.verdict))
        table.add_section()
    return table


def updates_table(updates: Sequence[UpdateInfo]) -> Table:
    """One line an update of a result, in the order given."""
    return log_table(
        [
            Entry(
                id=one.id,
                parent=one.parent,
                skill=one.skill,
                verdict=one.verdict,
                names=one.names,
                size=one.bytes,
                created=one.created,
            )
            for one in updates
        ]
    )


def outcome_lines(results: Sequence[RunResult]) -> Text:
    """One sentence a recipe, with intervals on the next line."""
    text = Text()
    for index, sentence in enumerate(outcome.headline(results)):
        text.append("\n" if index else "").append(_clean(sentence.recipe), style="bold").append(f" {sentence.short}.\n")
        text.append(sentence.long, style="dim")
    return text


def result_view(result: RunResult) -> RenderableType:
    """All of one result that a terminal shows: matrix, metrics, verdicts, updates."""
    parts: list[RenderableType] = [Line(Text(_clean(result.name), style="bold"), align="left"), matrix_table(result.matrix, result.tasks)]
    parts.append(metrics_table(result.metrics))
    if result.verdicts:
        parts.append(verdict_table(result.verdicts, result.tasks))
    if result.updates:
        parts.append(updates_table(result.updates))
        parts += [Text(_clean(f"{wording.identity(update.id)}: {note}")) for update in result.updates for note in update.notes]
    return Group(*parts)


def _clean(text: str) -> str:
    return wording.plain(text)
