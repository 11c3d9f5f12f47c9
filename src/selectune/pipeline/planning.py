"""What a recipe would do, before anything is trained: for a folder or the embedded model, before its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.errors import ModelError
from selectune.hashing import Manifest
from selectune.models import Model, providers
from selectune.pipeline.preparing import prepare
from selectune.pipeline.stages import lessons
from selectune.pipeline.versions import ARCHITECTURE, load_any, outlined
from selectune.records import Encoder, Shown
from selectune.training.allocator import allocator
from selectune.training.cut import first_layer
from selectune.training.forecast import Forecast, Memory, forecast, in_pictures, outline
from selectune.training.keeping.anchors import encode_anchors
from selectune.training.load import Load
from selectune.training.machine import UNKNOWN, Machine, measure
from selectune.training.preparing import sizes
from selectune.training.room import Change, advice, changes, free, recompute
from selectune.training.schedule import Schedule
from selectune.training.tracing import Span, trace

if TYPE_CHECKING:
    from selectune.pipeline.preparing import Prepared
    from selectune.pipeline.stages import Lesson
    from selectune.quantising import Kind
    from selectune.recipe import Optim, Recipe
    from selectune.records import Record

LOOKED_AT = 64
"""Records of each source whose lengths are looked at."""
LETTERS = 4
"""Of a token, where there is no tokenizer."""
HEAP_WORTH_A_WORD = 100_000_000
"""Bytes of holes in glibc's heap from which on a plan tells of another allocator."""


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
    seconds: float | None
    """A step, as forecast for this machine."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would train, for how long, what is measured and judged, and one record as the model reads it."""

    recipe: str
    digest: str
    model: str
    model_id: str | None
    """None where no weights were read."""
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
    """Of the phase that takes most."""
    fits: str
    """Whether that is free on this machine, and what to change if not."""
    changes: tuple[Change, ...]
    """What would make it smaller, one by one; only where it does not fit."""
    reasons: dict[str, str]
    """How parts of the forecast were found."""
    sample: Shown | None
    """None where there is no tokenizer, as for ``arch:MODEL_TYPE``."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `selectune plan --json`; `memory` is an estimate in bytes."""
        value = asdict(self)
        value["memory"] = {"estimate": True, **asdict(self.memory), "total": self.memory.total}
        value["families"] = [dict(zip(("component", "count", "elements"), row, strict=True)) for row in self.families]
        value["tests"] = [dict(zip(("task", "role", "kind", "n"), row, strict=True)) for row in self.tests]
        if self.sample is not None:
            value["sample"]["pixels"] = {name: list(shape) for name, shape in self.sample.pixels.items()}
        return value


def plan(recipe: Recipe, load: Callable[[str], Model], *, timed: bool = True) -> Plan:
    """The plan of a recipe; `load` gives its model, with weights or, as `sketch` does, without. Trains nothing.

    Unless `timed` is false, this machine's rates are measured, which takes some seconds. Raises what `run` raises before its first step.
    """
    quantised = recipe.quantise
    # What is held in fewer bits is worked out from shapes: nothing is quantised to find out.
    prepared = prepare(recipe.resolved().model_copy(update={"quantise": None, "shard": False}), load)
    model, selection, examples = prepared.model, prepared.selection, prepared.examples
    recipe = prepared.recipe.model_copy(update={"quantise": quantised, "shard": recipe.shard})
    encoder = None if model.processor is None else Encoder(model.processor)
    first = next(iter(examples.train.values()))
    sample = next((record for record in first if record.pictures), first[0])
    taught = lessons(prepared)
    loads = [_load(model, lesson, encoder) for lesson in taught]
    machine = _machine(model, prepared, loads) if timed else UNKNOWN
    room = free()
    settled = [_settled(model, lesson, one, machine, quantised, room) for lesson, one in zip(taught, loads, strict=True)]
    found = [one for _, one in settled]
    most = max(range(len(found)), key=lambda index: found[index].memory.total)
    total = found[most].memory.total
    smaller = () if total <= room else changes(model, taught[most].selection, settled[most][0], loads[most], quantised=quantised)
    notes = () if encoder is not None else (f"there is no tokenizer: {LETTERS} letters are counted as one token",)
    return Plan(
        recipe=recipe.name,
        digest=recipe.digest,
        model=model.name,
        model_id=model.id if len(model.manifest) else None,
        elements=model.map.elements,
        selected=selection.elements,
        families=tuple(selection.table()),
        phases=tuple(_phase(lesson, recipe.seed, one) for lesson, one in zip(taught, found, strict=True)),
        tests=tuple((task.name, task.role, task.kind, len(task.records)) for task in examples.suite.tasks),
        gate=recipe.gate.model_dump(mode="json"),
        memory=found[most].memory,
        fits=advice(total, room, smaller),
        changes=smaller,
        reasons={**found[most].reasons, "dtype": prepared.dtype},
        sample=None if encoder is None else encoder.describe(sample),
        notes=(*examples.notes, *_heap_note(found[most].memory), *notes),
    )


def _heap_note(memory: Memory) -> tuple[str, ...]:
    """What another allocator would spare; its reasons and figures are in docs/why/speed.md."""
    if memory.heap < HEAP_WORTH_A_WORD or allocator() != "glibc":
        return ()
    holes = f"{memory.heap / 1e9:.2f} GB of it are holes in glibc's heap; with tcmalloc fewer are left, and steps are shorter"
    return (f"{holes}: LD_PRELOAD=libtcmalloc_minimal.so.4 selectune run (Debian: libtcmalloc-minimal4)",)


def _settled(model: Model, lesson: Lesson, load: Load, machine: Machine, quantised: Kind | None, room: int) -> tuple[Optim, Forecast]:
    """A lesson's settings with `checkpointing` decided, and the forecast of them."""

    def expected(optim: Optim) -> Forecast:
        return forecast(model, lesson.selection, optim, load, machine=machine, quantised=quantised)

    optim, why = recompute(lesson.optim, lambda one: expected(one).memory.total, room)
    found = expected(optim)
    return optim, replace(found, reasons={**found.reasons, "checkpointing": why})


def sketch(name: str, registry: str) -> Model:
    """A model by any of its names for a plan: without weights where a plan needs none, that is for folders, ``embedded`` and ``arch:TYPE``.

    Its tensors are on the meta device, its manifest is empty, and of an architecture there is no processor. Raises as `load_any`.
    """
    folder = Path(name).expanduser()
    if name.startswith(ARCHITECTURE):
        net, found = outlined(name, registry)
        return Model(name=name, net=_in_dtype(net, "bfloat16"), processor=None, map=found, manifest=Manifest({}))
    if name == "embedded":
        return _embedded()
    if name in providers() or not (folder / "config.json").is_file():
        return load_any(name, registry)
    from transformers import AutoProcessor

    net, found = outlined(name, registry)
    try:
        processor: Any = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        then = "Save the processor into the folder with save_pretrained."
        raise ModelError(f"transformers cannot load its processor ({reason})", where=f"model {name}", then=then) from error
    return Model(name=name, net=_in_dtype(net, "float32"), processor=processor, map=found, manifest=Manifest({}))


def _in_dtype(net: Any, otherwise: str) -> Any:
    """In the dtype that its configuration tells, in which its files are then loaded."""
    import torch

    dtype = net.config.dtype or getattr(torch, otherwise)
    return net.to(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))


def _embedded() -> Model:
    import torch
    from transformers import LlavaForConditionalGeneration

    from selectune import embedded
    from selectune.components import map_model
    from selectune.embedded import parts, tower

    tower.register()
    with torch.device("meta"):
        net = LlavaForConditionalGeneration._from_config(parts.config(), dtype=torch.bfloat16).eval()
    return Model(name=embedded.NAME, net=net, processor=embedded.processor(), map=map_model(net, embedded.NAME), manifest=Manifest({}))


def _phase(lesson: Lesson, seed: int, found: Forecast) -> PlannedPhase:
    return PlannedPhase(
        name=lesson.name,
        kind=lesson.kind,
        source=lesson.data.named,
        records=len(lesson.records),
        steps=_schedule(lesson, seed).total,
        lr=lesson.optim.lr,
        batch=lesson.optim.batch,
        seconds=found.seconds,
    )


def _schedule(lesson: Lesson, seed: int = 0) -> Schedule:
    pools = tuple(len(records) for records in lesson.keeping.replay.values())
    return Schedule(n=len(lesson.records), optim=lesson.optim, seed=seed, replayed=lesson.keeping.share, pools=pools)


def _load(model: Model, lesson: Lesson, encoder: Encoder | None) -> Load:
    """What a step of a lesson is given, by the longest of its first records."""
    optim = lesson.optim
    cut = optim.cache_features and first_layer(lesson.selection) > 0 and _schedule(lesson).repeats
    load = Load.of(_sizes(model, lesson.records[:LOOKED_AT], encoder), optim, records=len(lesson.records), cut=cut)
    return load.keeping(lesson.keeping.keep, _prompt_sizes(model, lesson, encoder), optim, records=len(lesson.keeping.anchors or ()))


def _sizes(model: Model, records: Sequence[Record], encoder: Encoder | None) -> list[tuple[int, int, int]]:
    """Tokens, labels and image tokens of each."""
    if encoder is not None:
        return sizes(model, [encoder.encode(record) for record in records])
    each = _image_tokens(model.net.config)
    return [_guessed(record, each) for record in records]


def _prompt_sizes(model: Model, lesson: Lesson, encoder: Encoder | None) -> list[tuple[int, int, int]]:
    """The same of the anchors, whose answers are not read: what is compared counts as labels."""
    settings, records = lesson.keeping.keep.anchors, lesson.keeping.anchors
    if settings is None or records is None:
        return []
    looked_at = records[:LOOKED_AT]
    if encoder is not None:
        return sizes(model, encode_anchors(model, encoder, looked_at, settings.positions, lesson.optim.max_length).kept)
    found = _sizes(model, looked_at, encoder)
    return [(length - labels + 1, length - labels if settings.positions == "all" else 1, seen) for length, labels, seen in found]


def _guessed(record: Record, each: int) -> tuple[int, int, int]:
    """Tokens, labels and image tokens of a record, without a tokenizer."""
    words = dict.fromkeys(("user", "assistant", "system"), 0)
    for message in record.messages:
        words[message.role] += sum(len(part) for part in message.parts if isinstance(part, str)) // LETTERS + 1
    pictures = each * len(record.pictures)
    return sum(words.values()) + pictures, words["assistant"], pictures


def _image_tokens(config: Any) -> int:
    """Of one picture, where a configuration says so: by its own count, else one a patch."""
    told = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
    if told:
        return int(told)
    vision = getattr(config, "vision_config", None)
    side, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    return (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) else 1024


def _machine(model: Model, prepared: Prepared, loads: Sequence[Load]) -> Machine:
    """This machine's rates, its matrix rate for the products of the first lesson."""
    selection, net = prepared.selection, outline(model.net)
    span = Span(first=first_layer(selection), below=in_pictures(selection) is not None, rows=loads[0].rows, length=loads[0].length)
    return measure(net.dtype, trace(net, model.map, selection.parameters, span))
