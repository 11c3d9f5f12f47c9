"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selectune.components import Proof
from selectune.components.proof import Forecast, Moved, forecast
from selectune.delta import extract, restore, snapshot
from selectune.delta.bits import torch_dtype
from selectune.errors import Diverged, InputError, SelectionViolated, Stopped
from selectune.hashing import digest
from selectune.network import hosts
from selectune.records import Encoder
from selectune.training import checkpoint
from selectune.training.adapter import Files, LowRank
from selectune.training.allocator import kept_memory
from selectune.training.features import FeatureCache, in_language
from selectune.training.forward import Batch, Forward
from selectune.training.masters import Masters
from selectune.training.preparing import Samples, encode, find_cut, find_tower, prefix, training_mode
from selectune.training.processes import Processes
from selectune.training.results import Session, Step, Training
from selectune.training.schedule import Schedule, micro_batches

if TYPE_CHECKING:
    from selectune.components import Region, Selection
    from selectune.delta import Snapshot
    from selectune.models import Model
    from selectune.recipe import Optim
    from selectune.records import Records

_PLAIN = Session()
_HARMLESS = {"save_every", "cache_features"}
"""Settings that may differ when a training goes on."""


def fit(model: Model, selection: Selection, records: Records, optim: Optim, *, seed: int = 0, session: Session = _PLAIN) -> Iterator[Step]:
    """Trains the selection in place and yields each step after it was made; leaving the loop early keeps what was learned so far.

    Everything outside the selection, buffers included, stays bit-identical: checked after step 1 and at the end (an early `break` skips
    the latter). Between steps the network is in evaluation mode and may be evaluated. Labels are the assistant's words, and the loss is
    the mean over all labels of the batch, however the batch is divided.

    Raises DataError (nothing to train on), SelectionViolated (something else moved, or a selected component did not), Diverged (loss or
    gradient is not finite; the step is not taken), ResumeError, StorageError, and Stopped after SIGINT or SIGTERM if
    `session.checkpoint_dir` is given.
    """
    yield from _Run.prepare(model, selection, records, optim, seed=seed, session=session).steps(session)


def train(model: Model, selection: Selection, records: Records, optim: Optim, *, seed: int = 0, session: Session = _PLAIN) -> Training:
    """Runs `fit` to its end and gives back what changed; the network holds the base's exact bits again afterwards, whatever happened.

    Raises what `fit` raises, and what `session.on_step` does.
    """
    started = time.perf_counter()
    before = snapshot(model, selection, known=model.manifest)
    run = _Run.prepare(model, selection, records, optim, seed=seed, session=session)
    try:
        for step in run.steps(session):
            if session.on_step is not None:
                session.on_step(step)
        delta = extract(model, before, selection)
        assert run.moved is not None
        if run.adapter is None:
            share = run.masters.lost_to_rounding(_values(before))
            run.reasons["rounding"] = f"{share:.1%} of the elements that moved in fp32 are bit for bit the base's after rounding"
    finally:
        restore(model, before)
    return Training(
        delta=delta,
        steps=tuple(run.history),
        proof=_sentence(run.moved, selection, model),
        forecast=run.forecast,
        moved=run.moved,
        seconds=time.perf_counter() - started,
        skipped=run.samples.skipped,
        adapter=run.files,
        reasons=run.reasons,
    )


@dataclass(kw_only=True)
class _Run:
    """One training in progress: what stays the same, and its history."""

    model: Model
    optim: Optim
    schedule: Schedule
    samples: Samples
    masters: Masters
    adapter: LowRank | None
    forward: Forward
    whole: Proof
    """Of the selection, from before the first step to the end."""
    proof: Proof
    """Of what is trained while it is: the selection, or the adapter's matrices."""
    processes: Processes
    identity: dict[str, Any]
    reasons: dict[str, str]
    forecast: tuple[Forecast, ...]
    moved: Moved | None = None
    files: Files | None = None
    history: list[Step] = field(default_factory=list)
    written: Path | None = None

    @classmethod
    def prepare(cls, model: Model, selection: Selection, records: Records, optim: Optim, *, seed: int, session: Session) -> _Run:
        """Encodes the records, copies the selection, hashes the rest."""
        encoder = Encoder(model.processor)
        samples = encode(model, encoder, records, optim)
        schedule = Schedule(n=len(samples.kept), optim=optim, seed=seed)
        cache = FeatureCache() if session.features is None else session.features
        tower, why_no_tower = find_tower(model, selection, optim, samples, cache)
        cut, why_no_cut = find_cut(model, selection, optim, samples, schedule, cache)
        forward = Forward(model, encoder, tower, why_no_tower, cut, why_no_cut)
        forward.reasons["prefix"] = prefix(model, selection)
        whole, expected = Proof.start(model.net, selection), forecast(model.net, selection)
        processes = Processes(model)
        if processes.count > 1 and optim.in_backward:
            raise InputError("in_backward steps before the processes have added up", where="optim.in_backward", then="Set it to false.")
        adapter = None if optim.adapter is None else LowRank(model.net, selection, optim.adapter, seed=seed)
        if adapter is not None:
            forward.reasons["adapter"] = adapter.about
        trained = selection if adapter is None else adapter.selection
        return cls(
            model=model,
            optim=optim,
            schedule=schedule,
            samples=samples,
            masters=Masters(model.net, trained, optim),
            adapter=adapter,
            forward=forward,
            whole=whole,
            proof=whole if adapter is None else Proof.start(model.net, trained),
            forecast=expected,
            processes=processes,
            identity=_identity(model, selection, records, optim, seed),
            reasons=forward.reasons,
        )

    def steps(self, session: Session) -> Iterator[Step]:
        """`fit`, once everything is prepared."""
        wanted = session.checkpoint_dir is not None
        mode = training_mode(self.model.net, checkpointing=self.optim.checkpointing)
        with self._merging(), kept_memory(), mode, checkpoint.interruptions(wanted) as noted:
            self._resume(session)
            self.masters.require_grad()
            self.forward.settle(self.samples.typical(), compile_layers=self.optim.compile)
            first = len(self.history) + 1
            for number in range(first, self.schedule.total + 1):
                self.history.append(self._step(number))
                if number == first:
                    self._prove(lenient=not self._sees(self.schedule.batch(number)) and self._sees(range(self.schedule.n)))
                if noted.name is not None or (self.optim.save_every and number % self.optim.save_every == 0):
                    self._save(session)
                if noted.name is not None:
                    then = f"Go on from there with the same recipe: resume {self.written}."
                    raise Stopped(
                        f"{noted.name} after step {number} of {self.schedule.total}; the state is written", where="training", then=then
                    )
                yield self.history[-1]
            self._prove(lenient=False)
        if self.adapter is not None:
            self.moved = self.whole.check(self.model.net, still="report")

    @contextmanager
    def _merging(self) -> Iterator[None]:
        """Whatever ends the training, an adapter's matrices are then part of the weights, and no longer beside them."""
        try:
            yield
        finally:
            if self.adapter is not None:
                self.files = self.adapter.files()
                self.adapter.merge()

    def _step(self, number: int) -> Step:
        started = time.perf_counter()
        kept = self.samples.kept
        indices = self.schedule.batch(number)
        tokens = sum(kept[index].supervised for index in indices)
        parts: list[tuple[Batch, Tensor]] = []
        for part in micro_batches(self.processes.share(indices, self.samples.lengths), self.samples.lengths, self.optim.micro_batch):
            batch = self.forward.batch([kept[index] for index in part])
            with self.forward.kernels(batch):
                losses = self.forward.losses(batch)
                # A batch of text alone reaches nothing of a selected vision tower: it has no gradient then, which is no error.
                if losses.requires_grad and self.optim.in_backward:
                    return self._step_in_backward(number, started, batch, losses)
                if losses.requires_grad:
                    (losses.sum() / tokens).backward()
            self.masters.collect()
            parts.append((batch, losses.detach()))
        if not parts:
            self.masters.collect()
        total = torch.cat([losses for _, losses in parts]).sum() if parts else torch.zeros((), device=self.model.device)
        # Each process knows how many labels the whole batch has, so that a sum over all is the mean.
        self.processes.add_up((*self.masters.gradients(), total))
        norm = self.masters.norm()
        loss, length = torch.stack([total / tokens, norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(length)):
            raise _diverged(number, loss, length, parts)
        self.masters.step(self.schedule.lr(number), norm, self.optim.clip)
        return self._made(number, started, loss, length, tokens)

    def _step_in_backward(self, number: int, started: float, batch: Batch, losses: Tensor) -> Step:
        """The whole batch at once; a gradient that is not finite is seen only after its step was made, and then nothing goes on."""
        loss = losses.mean()
        if not bool(loss.isfinite()):
            raise _diverged(number, loss.item(), math.nan, [(batch, losses.detach())])
        with self.masters.stepping_in_backward(self.schedule.lr(number)) as squares:
            loss.backward()
        length = torch.stack(squares).sum().sqrt().item()
        if not math.isfinite(length):
            raise _diverged(number, loss.item(), length, [(batch, losses.detach())])
        return self._made(number, started, loss.item(), length, len(losses))

    def _made(self, number: int, started: float, loss: float, length: float, tokens: int) -> Step:
        return Step(
            n=number,
            total=self.schedule.total,
            loss=loss,
            lr=self.schedule.lr(number),
            tokens=tokens,
            grad_norm=length,
            seconds=time.perf_counter() - started,
        )

    def _sees(self, indices: Iterable[int]) -> bool:
        return any(self.samples.kept[index].pictures for index in indices)

    def _prove(self, *, lenient: bool) -> None:
        """Nothing else moved, and a gradient reached all that is selected; `lenient`: towers may still wait for a first picture.

        Gradients are asked, not bits: a step may be smaller than the last bit of a bf16 weight, and shows only when several gathered in the
        master. An expert that no token was sent to is no fault either.
        """
        self.moved = self.proof.check(self.model.net, still="report")
        still = self._unreached()
        dead = [
            component.name
            for component in self.proof.selection.components
            if component.parameter in still and ".moe.experts." not in component.name and not (lenient and not in_language(component.name))
        ]
        if dead:
            raise SelectionViolated(
                f"selected, but no gradient reaches: {', '.join(dead[:8])}{f' and {len(dead) - 8} more' if len(dead) > 8 else ''}",
                where="training",
                then="Take them out of the selection, or give records that use them.",
            )

    def _unreached(self) -> set[str]:
        """Trained parameters that no gradient has reached. Of an adapter's two matrices one begins at zero, and the other waits for it."""
        still = set(self.masters.still())
        beside = hosts(self.model.net) if self.adapter is not None else {}
        reached = {host for name, host in beside.items() if name not in still}
        return {name for name in still if beside.get(name) not in reached}

    def _resume(self, session: Session) -> None:
        if session.resume is None:
            return
        saved = checkpoint.read(session.resume, self.identity)
        self.history = list(saved.steps)
        self.masters.load(saved.tensors)

    def _save(self, session: Session) -> None:
        if session.checkpoint_dir is None:
            return
        state = checkpoint.Checkpoint(identity=self.identity, steps=tuple(self.history), tensors=self.masters.state())
        self.written = checkpoint.write(session.checkpoint_dir, state, self.written)


def _values(before: Snapshot) -> dict[tuple[str, Region | None], Tensor]:
    """The selection's values at a snapshot, flat, in their own dtype."""
    return {
        (name, region): torch.from_numpy(bits).view(torch_dtype(before.manifest[name].dtype))
        for (name, region), bits in before.bits.items()
    }


def _sentence(moved: Moved, selection: Selection, model: Model) -> str:
    """What the last check found."""
    rest = len({component.name for component in model.map.components} - set(selection.names))
    return (
        f"{moved.components} of {len(selection.names)} selected components moved ({moved.elements:,} elements); "
        f"the other {rest} components and every buffer are bit-identical to the base"
    )


def _identity(model: Model, selection: Selection, records: Records, optim: Optim, seed: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from."""
    return {
        "model": model.id,
        "patterns": list(selection.patterns),
        "selection": digest("trained", [[component.parameter, component.slice] for component in selection.components]),
        "records": records.digest,
        "optim": optim.model_dump(mode="json", exclude=_HARMLESS),
        "seed": seed,
    }


def _diverged(number: int, loss: float, norm: float, parts: list[tuple[Batch, Tensor]]) -> Diverged:
    """The error that names the samples whose loss is not finite; all of the batch if it is the gradient alone."""
    bad = [batch.ids[row] for batch, losses in parts for row in sorted(set(batch.rows[~losses.isfinite()].tolist()))]
    ids = bad or [name for batch, _ in parts for name in batch.ids]
    named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return Diverged(
        f"step {number}: the loss is {loss:g} and the gradient's norm {norm:g}; samples: {named}",
        where="training",
        then="Look at these samples, lower optim.lr, or lengthen optim.warmup; the step was not taken.",
    )
