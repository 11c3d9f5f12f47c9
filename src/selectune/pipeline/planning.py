"""What a recipe would do, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from selectune.pipeline.preparing import prepare
from selectune.pipeline.stages import lessons
from selectune.records import Encoder, Shown
from selectune.training.adapter import matrix_elements
from selectune.training.cut import first_layer
from selectune.training.schedule import Schedule

if TYPE_CHECKING:
    from selectune.models import Model
    from selectune.pipeline.preparing import Prepared
    from selectune.pipeline.stages import Lesson
    from selectune.recipe import Recipe

# Korthikanti et al. (2022), arXiv 2205.05198, equation 2 without attention scores, which fused attention never stores: 34 bytes a
# token and hidden unit for 16-bit activations of one layer.
ACTIVATION_BYTES = 34


@dataclass(frozen=True, kw_only=True)
class Memory:
    """An estimate of the memory that training takes, in bytes."""

    parameters: int
    masters: int
    """fp32 copies of the selected elements."""
    moments: int
    """Adam's two, fp32."""
    gradients: int
    """In the parameters' own dtype."""
    activations: int
    """Rough: of the layers from the first selected one on, for the longest of a few records at the recipe's micro-batch."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.masters + self.moments + self.gradients + self.activations


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """One stretch of training."""

    name: str
    kind: str
    source: str
    records: int
    steps: int
    lr: float
    batch: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would train, for how long, what is measured and judged, and one record as the model reads it."""

    recipe: str
    digest: str
    model: str
    model_id: str
    elements: int
    """Of the whole model."""
    selected: int
    families: tuple[tuple[str, int, int], ...]
    """Kind of component, how many, elements."""
    phases: tuple[PlannedPhase, ...]
    tests: tuple[tuple[str, str, str, int], ...]
    """Task, role, kind, records."""
    gate: dict[str, Any]
    memory: Memory
    sample: Shown
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `selectune plan --json`; `memory` is an estimate in bytes."""
        value = asdict(self)
        value["memory"] = {"estimate": True, **asdict(self.memory), "total": self.memory.total}
        value["families"] = [dict(zip(("component", "count", "elements"), row, strict=True)) for row in self.families]
        value["tests"] = [dict(zip(("task", "role", "kind", "n"), row, strict=True)) for row in self.tests]
        value["sample"] = {**asdict(self.sample), "pixels": {name: list(shape) for name, shape in self.sample.pixels.items()}}
        return value


def plan(recipe: Recipe, load: Callable[[str], Model]) -> Plan:
    """The plan of a recipe; `load` gives its model. Trains nothing. Raises what `run` raises before its first step."""
    prepared = prepare(recipe.resolved(), load)
    recipe = prepared.recipe
    model, selection, examples = prepared.model, prepared.selection, prepared.examples
    encoder = Encoder(model.processor)
    first = next(iter(examples.train.values()))
    sample = next((record for record in first if record.pictures), first[0])
    return Plan(
        recipe=recipe.name,
        digest=recipe.digest,
        model=model.name,
        model_id=model.id,
        elements=model.map.elements,
        selected=selection.elements,
        families=tuple(selection.table()),
        phases=tuple(_phase(lesson, recipe.seed) for lesson in lessons(prepared)),
        tests=tuple((task.name, task.role, task.kind, len(task.records)) for task in examples.suite.tasks),
        gate=recipe.gate.model_dump(mode="json"),
        memory=_memory(prepared, encoder),
        sample=encoder.describe(sample),
        notes=examples.notes,
    )


def _phase(lesson: Lesson, seed: int) -> PlannedPhase:
    pools = tuple(len(records) for records in lesson.keeping.replay.values())
    steps = Schedule(n=len(lesson.records), optim=lesson.optim, seed=seed, replayed=lesson.keeping.share, pools=pools).total
    return PlannedPhase(
        name=lesson.name,
        kind=lesson.kind,
        source=lesson.data.source,
        records=len(lesson.records),
        steps=steps,
        lr=lesson.optim.lr,
        batch=lesson.optim.batch,
    )


def _memory(prepared: Prepared, encoder: Encoder) -> Memory:
    net = prepared.model.net
    size = net.dtype.itemsize
    tokens = trained = gradients = 0
    for lesson in lessons(prepared):
        adapter, elements = lesson.optim.adapter, lesson.selection.elements
        count, width = (elements, size) if adapter is None else (matrix_elements(lesson.selection, adapter), 4)
        trained, gradients = max(trained, count), max(gradients, width * count)
        longest = max(len(encoder.encode(record).input_ids) for record in lesson.records[:16])
        tokens = max(tokens, longest * (lesson.optim.micro_batch or lesson.optim.batch))
    config = net.config.get_text_config()
    layers = config.num_hidden_layers - first_layer(prepared.selection)
    return Memory(
        parameters=sum(parameter.numel() * parameter.element_size() for parameter in net.parameters()),
        masters=4 * trained,
        moments=8 * trained,
        gradients=gradients,
        activations=ACTIVATION_BYTES * size // 2 * tokens * config.hidden_size * layers,
    )
