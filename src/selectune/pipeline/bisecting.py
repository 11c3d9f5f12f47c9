"""`bisect`: which update of a line broke a task or a sample. Of n updates about log2 n versions are measured, besides the two ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from selectune import statistics
from selectune.components import Selection
from selectune.errors import DataError, NoMatch, RegistryError
from selectune.evaluation import Measurement, Suite
from selectune.evaluation.asking import Shared
from selectune.evaluation.evaluator import evaluate_versions
from selectune.evaluation.matrix import align
from selectune.pipeline.deriving import model_of
from selectune.pipeline.measuring import counting
from selectune.pipeline.progress import Progress, bar
from selectune.registry import Update

if TYPE_CHECKING:
    from selectune.delta import Delta
    from selectune.evaluation.kept import Kept
    from selectune.models import Model
    from selectune.registry import Registry

BASE = "base"
"""As GOOD: the model before its first update."""
ALPHA = 0.05
"""A p value up to this shows a difference."""
Word = Literal["good", "broken", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """A version that was measured."""

    update: str
    skill: str
    score: float
    """Mean over the samples, or the one sample's."""
    word: Word
    worse: float | None = None
    """p value that it is as GOOD is, two-sided and paired by sample; None for one sample."""
    better: float | None = None
    """p value that it is as BAD is."""


@dataclass(frozen=True, kw_only=True)
class Bisected:
    """What broke it, or between what it broke."""

    task: str
    sample: str | None
    n: int
    """Samples that were compared."""
    updates: int
    """How many updates lie between GOOD and BAD, BAD among them."""
    good: Looked
    bad: Looked
    looked: tuple[Looked, ...]
    """The versions between, in the order in which they were measured."""
    decided: bool
    """Whether one update was found."""
    suspects: tuple[Update, ...]
    """That one; else those that it is among, the oldest first."""
    notes: tuple[str, ...]

    @property
    def found(self) -> Update | None:
        """The update that broke it, where that is decided."""
        return self.suspects[0] if self.decided else None

    def to_json(self) -> dict[str, Any]:
        """As `selectune bisect --json` prints it."""
        body = {name: getattr(self, name) for name in ("task", "sample", "n", "updates", "decided", "notes")}
        ends = {"good": asdict(self.good), "bad": asdict(self.bad), "looked": [asdict(one) for one in self.looked]}
        found = self.found
        return body | ends | {"suspects": [one.to_json() for one in self.suspects], "found": found.id if found else None}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of each version."""

    suite: Suite
    """One task."""
    sample: str | None = None
    batch: int = 32
    """How many records are asked at a time."""

    @classmethod
    def of(cls, suite: Suite, task: str | None, sample: str | None, *, batch: int = 32) -> Question:
        """The task of this name, or the one that holds this sample, and of that the sample alone. Raises NoMatch for neither."""
        holds = [one for one in suite.tasks if sample is None or any(record.id == sample for record in one.records)]
        chosen = [one for one in holds if task is None or one.name == task]
        if len(chosen) != 1 or (task is None and sample is None):
            names = ", ".join(one.name for one in suite.tasks)
            what = f"sample {sample!r} is in {len(holds)} tasks" if sample and holds else f"{(sample or task or '')[:80]!r} is not measured"
            raise NoMatch(what, where="bisect", then=f"Give --task, one of: {names}; and with --sample the id of a record of it.")
        found = chosen[0]
        if sample is not None:
            items = tuple(record for record in found.records if record.id == sample)
            found = replace(found, records=replace(found.records, items=items))
        return cls(suite=Suite(tasks=(found,)), sample=sample, batch=batch)

    @property
    def task(self) -> str:
        """The task's name."""
        return self.suite.tasks[0].name


@dataclass(kw_only=True)
class _Search:
    """Measurements by place in the line: 0 is GOOD, the last is BAD."""

    question: Question
    line: Sequence[Update]
    measure: Callable[[int], Measurement]
    taken: dict[int, Measurement] = field(default_factory=dict)

    def at(self, place: int) -> Measurement:
        if place not in self.taken:
            self.taken[place] = self.measure(place)
        return self.taken[place]

    def look(self, place: int) -> Looked:
        """How a version stands to the two ends."""
        good, bad, here = self.at(0), self.at(len(self.line) - 1), self.at(place)
        update, task = self.line[place], self.question.task
        about: dict[str, Any] = {"update": update.id, "skill": update.skill, "score": here.score(task)}
        if self.question.sample is not None:
            middle = (good.score(task) + bad.score(task)) / 2
            return Looked(**about, word="broken" if here.score(task) < middle else "good")
        pairs = align([good, here, bad], task)
        worse = statistics.p_value_of_change(pairs.scores[0], pairs.scores[1], pairs.clusters)
        better = statistics.p_value_of_change(pairs.scores[2], pairs.scores[1], pairs.clusters)
        lost, kept = pairs.scores[1].mean() < pairs.scores[0].mean(), pairs.scores[1].mean() > pairs.scores[2].mean()
        # Worse than GOOD is broken, even if it is not yet as bad as BAD; better than BAD and not shown to be worse than GOOD is good.
        word: Word = "broken" if lost and worse <= ALPHA else "good" if kept and better <= ALPHA else "undecided"
        return Looked(**about, word=word, worse=worse, better=better)


def bisect(
    registry: Registry,
    ends: tuple[str, str],
    question: Question,
    load: Callable[[str], Model],
    progress: Progress,
    *,
    kept: Kept | None = None,
) -> Bisected:
    """Measures versions between GOOD and BAD, the `ends`, until one update is left. `load` gives the base model by its name.

    GOOD may be `base`, the model itself. Raises RegistryError where it is no ancestor of BAD, and what `Registry.chain` raises.
    """
    line = _line(registry, *ends)

    def chain(place: int) -> Sequence[Delta]:
        update = line[place]
        return registry.chain(update.id) if update.delta else ()  # the base has none

    model = load(model_of(line[-1]))
    touched = {name for delta in chain(len(line) - 1) for name in delta.tensors}
    components = tuple(one for one in model.map.components if one.parameter in touched)
    shapes = {name: model.map.shapes[name] for name in touched}
    shared = Shared(selection=Selection(patterns=(), components=components, full_shapes=shapes), kept=kept)
    records, total = len(question.suite.tasks[0].records), 2 + _steps(len(line) - 1)
    done = 0
    with bar(progress, "Bisecting", total * records) as advance:

        def measure(place: int) -> Measurement:
            nonlocal done
            offset = done
            counted = counting(question.suite, lambda count, _: advance(offset + count, None))
            update = line[place]
            versions = {update.id: chain(place)}
            found = evaluate_versions(model, versions, question.suite, batch=question.batch, progress=counted, shared=shared)
            done = offset + records
            return found[update.id]

        return search(question, line, measure)


def _steps(updates: int) -> int:
    """How many versions between the ends are measured at most: log2, rounded up."""
    return max(0, (updates - 1).bit_length())


def _line(registry: Registry, good: str, bad: str) -> list[Update]:
    """GOOD, and every update after it up to BAD."""
    whole = registry.log(bad)[::-1]
    if good == BASE and good not in {**registry.names(), **registry.tags()}:
        return [Update(id=whole[0].base, child=whole[0].base, skill=BASE), *whole]
    first = registry.show(good)
    start = next((place for place, update in enumerate(whole) if update.id == first.id), None)
    if start is None or first.id == whole[-1].id:
        raise RegistryError(
            f"{first.id[:12]} is no ancestor of {whole[-1].id[:12]}", where="bisect", then="Give an update that the other stands on, first."
        )
    return whole[start:]


def search(question: Question, line: Sequence[Update], measure: Callable[[int], Measurement]) -> Bisected:
    """The first broken version of a line whose first is GOOD and whose last is BAD; `measure` takes the place of one in it.

    Where the samples do not show that BAD is worse than GOOD, or how a version between them stands, nothing is guessed: `suspects` are then
    all the updates that it is among. Raises DataError for a sample whose score did not fall.
    """
    look = _Search(question=question, line=line, measure=measure)
    last = len(line) - 1
    good, bad = look.look(0), look.look(last)
    if question.sample is not None and good.score <= bad.score:
        what = f"sample {question.sample!r} scores {good.score:g} with GOOD and {bad.score:g} with BAD: it did not break between them"
        raise DataError(what, where="bisect", then="Swap the two, or give another sample.")
    low, high, looked, notes = 0, last, [], []
    n = look.at(0).n(question.task)
    if bad.word != "broken":
        notes.append(f"undecided: {n} samples do not show that BAD is worse than GOOD (p = {bad.worse:.2g}); give more samples")
    while bad.word == "broken" and high - low > 1:
        middle = (low + high) // 2
        here = look.look(middle)
        looked.append(here)
        if here.word == "undecided":
            notes.append(
                f"undecided: {n} samples do not show how {here.update[:12]} stands (as GOOD: p = {here.worse:.2g}, as BAD: p = "
                f"{here.better:.2g}); give more samples"
            )
            break
        low, high = (low, middle) if here.word == "broken" else (middle, high)
    notes += _not_monotone(question, line, (low, high), (good.score, bad.score))
    return Bisected(
        task=question.task,
        sample=question.sample,
        n=n,
        updates=last,
        good=replace(good, word="good"),
        bad=bad,
        looked=tuple(looked),
        decided=bad.word == "broken" and high - low == 1,
        suspects=tuple(line[low + 1 : high + 1]),
        notes=tuple(notes),
    )


def _not_monotone(question: Question, line: Sequence[Update], found: tuple[int, int], scores: tuple[float, float]) -> list[str]:
    """Scores that runs recorded of other versions, on the same records, that do not fit what was found."""
    task, middle = question.suite.tasks[0], sum(scores) / 2
    notes = []
    for place, update in enumerate(line[1:-1], start=1):
        score = _recorded(update, task.name, task.records.digest) if question.sample is None else None
        if score is None or found[0] < place < found[1] or (score < middle) == (place >= found[1]):
            continue
        state = "broken" if score < middle else "good"
        notes.append(f"not monotone: {update.id[:12]} was recorded with {score:.4f}, which is {state}; there is more than one change")
    return notes


def _recorded(update: Update, task: str, records: str) -> float | None:
    """The score that a run measured of an update, where it was on these records."""
    tests, scores = update.records.get("tests"), update.metrics.get("scores")
    match (tests.get(task), scores.get(task)) if isinstance(tests, Mapping) and isinstance(scores, Mapping) else ():
        case ({"digest": digest}, {"value": int() | float() as value}) if digest == records:
            return float(value)
    return None
