"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selectune.components import Proof
from selectune.components.proof import Forecast, Moved, forecast
from selectune.delta import extract, restore, snapshot
from selectune.delta.bits import torch_dtype
from selectune.errors import Alarmed, Diverged, InputError, ProcessLost, SelectionViolated, Stopped
from selectune.hashing import digest
from selectune.network import hosts
from selectune.training import checkpoint
from selectune.training.adapter import Beside, Files
from selectune.training.allocator import kept_memory
from selectune.training.background import Writer
from selectune.training.features import FeatureCache, in_language
from selectune.training.forward import Batch, Forward
from selectune.training.keeping import Keeper, Keeping, Terms, replays
from selectune.training.losses import cross_entropy
from selectune.training.masters import Masters
from selectune.training.preparing import Samples, TimedEncoder, encode, find_cut, find_tower, prefix, training_mode
from selectune.training.processes import Processes
from selectune.training.results import Session, Step, Training
from selectune.training.schedule import Schedule, micro_batches
from selectune.training.slicing import PartlyTrained
from selectune.training.watching import Alarm, Watcher

if TYPE_CHECKING:
    from selectune.components import Region, Selection
    from selectune.delta import Snapshot
    from selectune.models import Model
    from selectune.recipe import Optim
    from selectune.records import Records

_PLAIN = Session()
_NOTHING = Keeping()
_HARMLESS = {"save_every", "save_minutes", "keep_checkpoints", "cache_features"}
"""Settings that may differ when a training goes on."""


def fit(
    model: Model,
    selection: Selection,
    records: Records,
    optim: Optim,
    *,
    seed: int = 0,
    keeping: Keeping = _NOTHING,
    session: Session = _PLAIN,
) -> Iterator[Step]:
    """Trains the selection in place and yields each step after it was made; leaving the loop early keeps what was learned so far.

    Everything outside the selection, buffers included, stays bit-identical: checked after step 1 and at the end (an early `break` skips
    the latter). Between steps the network is in evaluation mode and may be evaluated. Labels are the assistant's words, and the loss is
    the mean over all labels of the batch, however the batch is divided. `keeping` adds what holds old skills.

    Raises DataError (nothing to train on), SelectionViolated (something else moved, or a selected component did not), Diverged (loss or
    gradient is not finite; the step is not taken), Alarmed (another rule of `session.watch`), ResumeError, StorageError, and Stopped after
    SIGINT or SIGTERM if `session.checkpoint_dir` is given.
    """
    yield from _Run.prepare(model, selection, records, optim, seed=seed, keeping=keeping, session=session).steps(session)


def train(
    model: Model,
    selection: Selection,
    records: Records,
    optim: Optim,
    *,
    seed: int = 0,
    keeping: Keeping = _NOTHING,
    session: Session = _PLAIN,
) -> Training:
    """Runs `fit` to its end and gives back what changed; the network holds the base's exact bits again afterwards, whatever happened.

    Raises what `fit` raises, and what `session.on_step` does.
    """
    started = time.perf_counter()
    before = snapshot(model, selection, known=model.manifest)
    run = _Run.prepare(model, selection, records, optim, seed=seed, keeping=keeping, session=session)
    try:
        for step in run.steps(session):
            if session.on_step is not None:
                session.on_step(step)
        delta = extract(model, before, selection)
        assert run.moved is not None
        if run.adapter is None:
            moved, lost = run.masters.lost_to_rounding(_values(before))
            share = lost / moved if moved else 0.0
            run.reasons["rounding"] = f"{share:.1%} of the elements that moved in fp32 are bit for bit the base's after rounding"
    except ProcessLost:
        # Shards cannot be put back without the others, and this process has nothing left to do.
        if not run.masters.sharded:
            restore(model, before)
        raise
    except BaseException:
        restore(model, before)
        raise
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
        replayed=run.replayed,
        alarms=tuple(run.alarms),
    )


@dataclass(kw_only=True)
class _Run:
    """One training in progress: what stays the same, and its history."""

    model: Model
    optim: Optim
    schedule: Schedule
    samples: Samples
    masters: Masters
    adapter: Beside | None
    forward: Forward
    keeper: Keeper
    replayed: dict[str, int]
    """How often a record of each source is replayed in all."""
    seed: int
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
    alarms: list[Alarm] = field(default_factory=list)
    watcher: Watcher
    dead: str
    """The word of the rule for what no gradient reaches."""
    lenient: bool
    """Whether a step that is not finite is left out, so that training goes on."""
    encoder: TimedEncoder
    unseen: bool
    """There are pictures, and no step has had one yet."""

    @classmethod
    def prepare(
        cls, model: Model, selection: Selection, records: Records, optim: Optim, *, seed: int, keeping: Keeping, session: Session
    ) -> _Run:
        """Encodes the records, copies the selection, hashes the rest."""
        encoder, processes = TimedEncoder(model.processor), Processes(model)
        cache = FeatureCache() if session.features is None else session.features
        new = encode(model, encoder, records, optim, batch=optim.batch)
        samples, pools = replays(keeping, model, encoder, optim, new)
        schedule = Schedule(n=len(new.kept), optim=optim, seed=seed, replayed=keeping.share, pools=tuple(pools.values()))
        terms = Terms.of(keeping, model, selection, optim, cache, processes)
        everything = samples if terms.anchors is None else samples.beside(terms.anchors)
        tower, why_no_tower = find_tower(model, selection, optim, everything, cache)
        cut, why_no_cut = find_cut(model, selection, optim, everything, schedule, cache)
        forward = Forward(model, encoder, tower, why_no_tower, cut, why_no_cut)
        forward.reasons |= {"prefix": prefix(model, selection), **terms.reasons}
        replayed = dict(zip(pools, schedule.replays(), strict=True))
        if keeping.keep.replay is not None:
            forward.reasons["keep.replay"] = keeping.replay_words(pools, replayed)
        whole, expected = Proof.start(model.net, selection), forecast(model.net, selection)
        if processes.count > 1 and optim.in_backward:
            raise InputError("in_backward steps before the processes have added up", where="optim.in_backward", then="Set it to false.")
        adapter = None if optim.adapter is None else Beside(model.net, selection, optim.adapter, seed=seed)
        if adapter is not None:
            forward.reasons["adapter"] = adapter.about
        trained = selection if adapter is None else adapter.selection
        masters = Masters(model.net, trained, optim)
        keeper = Keeper(terms, forward, masters, selection, adapter)
        keeper.keep_answers(samples.kept, cache.store)
        return cls(
            model=model,
            optim=optim,
            schedule=schedule,
            samples=samples,
            masters=masters,
            adapter=adapter,
            forward=forward,
            keeper=keeper,
            replayed=replayed,
            seed=seed,
            whole=whole,
            proof=whole if adapter is None else Proof.start(model.net, trained),
            forecast=expected,
            processes=processes,
            identity=_identity(model, selection, records, optim, seed) | keeping.identity,
            reasons=forward.reasons,
            watcher=Watcher(session.watch),
            dead=session.watch.dead.do,
            lenient=session.watch.not_finite.do == "warn" and not optim.in_backward,
            encoder=encoder,
            unseen=any(sample.pictures for sample in samples.kept),
        )

    def steps(self, session: Session) -> Iterator[Step]:
        """`fit`, once everything is prepared."""
        wanted = session.checkpoint_dir is not None
        mode = training_mode(self.model.net, checkpointing=self.optim.checkpointing)
        with self._merging(), kept_memory(), mode, checkpoint.interruptions(wanted) as noted, self._writer(session) as writer:
            self._resume(session, writer)
            self.masters.require_grad()
            self.forward.settle(self.samples.typical(), compile_layers=self.optim.compile)
            if self.adapter is None:
                self.forward.train_partly(PartlyTrained(self.model.net, self.whole.selection))
            first = len(self.history) + 1
            for number in range(first, self.schedule.total + 1):
                self.history.append(self._one(number))
                if number == first:
                    self._prove()
                # Whoever follows the steps has this one before a checkpoint says that it is done.
                yield self.history[-1]
                self._between(session, writer, noted)
            self._prove()
        if self.adapter is not None:
            self.moved = self.whole.check(self.model.net, still="report")

    def _one(self, number: int) -> Step:
        """A step with what it is watched by; one that is not finite is left out where the rule allows."""
        started, waited = time.perf_counter(), self.encoder.waited
        self.unseen = self.unseen and not self._sees(self.schedule.batch(number))
        try:
            step = self._step(number)
        except Diverged as error:
            if not self.lenient:
                raise
            self.masters.forget()
            step = replace(self._made(number, started, math.nan, math.nan, 0), fault=error.what.removeprefix(f"step {number}: "))
        return replace(step, waited=self.encoder.waited - waited, still=tuple(self._unmoved()[:8]))

    def _between(self, session: Session, writer: Writer | None, noted: checkpoint.Interruption) -> None:
        """After a step: alarms are told, the state is written if it is time, and what must stop the training does."""
        step = self.history[-1]
        found = self.watcher.see(step)
        self.alarms += found
        for alarm in found:
            if session.on_alarm is not None:
                session.on_alarm(alarm)
        alarmed = next((alarm for alarm in found if alarm.stops), None)
        # Several processes stop and write at the same steps, so that none waits for another in the middle of one.
        stopping = self.processes.any(noted.name is not None or alarmed is not None)
        if writer is not None:
            writer.check()
            if stopping or self.processes.any(writer.due(step.n)):
                if self.masters.sharded:
                    # Every part of the last one is on the disk before any part of the next is begun: there is always a whole one.
                    writer.finish()
                    self.processes.wait()
                writer.begin(checkpoint.Checkpoint(identity=self.identity, steps=tuple(self.history), tensors=self.masters.state()))
            if stopping:
                writer.finish()
        if alarmed is not None:
            resume = f" and go on: resume {writer.newest}" if writer is not None and writer.newest else ""
            raise Alarmed(str(alarmed), where="training", then=f"Or change watch.{alarmed.rule}{resume}.")
        if stopping:
            then = "" if writer is None else f"Go on from there with the same recipe: resume {writer.newest or writer.folder}."
            what = f"{noted.name or 'another process was stopped'} after step {step.n} of {step.total}; the state is written"
            raise Stopped(what, where="training", then=then)

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
        self.keeper.begin(tokens)
        for apart in self.keeper.anchored(number, self.seed, self.optim.micro_batch, self.processes):
            apart.backward()
            if not self.optim.in_backward:
                self.masters.collect()
        for part in micro_batches(self.processes.share(indices, self.samples.lengths), self.samples.lengths, self.optim.micro_batch):
            samples = [kept[index] for index in part]
            batch = self.forward.batch(samples)
            aim = self.keeper.aim(samples, batch)
            with self.forward.kernels(batch):
                logits = self.forward.logits(batch)
                losses = cross_entropy(logits, batch.targets)
                objective = self.keeper.objective(losses, logits, aim)
                # A batch of text alone reaches nothing of a selected vision tower: it has no gradient then, which is no error.
                if losses.requires_grad and self.optim.in_backward:
                    return self._step_in_backward(number, started, (batch, losses.detach()), objective)
                if losses.requires_grad:
                    objective.backward()
            self.masters.collect()
            parts.append((batch, losses.detach()))
        self._keep_in_step(indices, len(parts))
        if not parts:
            self.masters.collect()
        total = torch.cat([losses for _, losses in parts]).sum() if parts else torch.zeros((), device=self.model.device)
        # Each process knows how many labels the whole batch has, so that a sum over all is the mean.
        self.processes.add_up((*self.masters.gradients(), total, *self.keeper.sums.values()))
        self.keeper.pull(self.processes)
        norm = self.masters.norm(self.processes)
        loss, length = torch.stack([total / tokens, norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(length)):
            raise _diverged(number, loss, length, parts)
        self.masters.step(self.schedule.lr(number), norm, self.optim.clip)
        return self._made(number, started, loss, length, tokens)

    def _keep_in_step(self, indices: list[int], done: int) -> None:
        """Runs that count for nothing, where shards are gathered in every run and another process has more of them to make."""
        if not self.masters.sharded:
            return
        lengths, size = self.samples.lengths, self.optim.micro_batch
        most = self.processes.most(indices, lengths, lambda share: len(micro_batches(share, lengths, size)) if share else 0)
        for _ in range(most - done):
            batch = self.forward.batch([self.samples.kept[indices[0]]])
            with self.forward.kernels(batch):
                (self.forward.losses(batch).sum() * 0.0).backward()
            self.masters.collect()

    def _step_in_backward(self, number: int, started: float, part: tuple[Batch, Tensor], objective: Tensor) -> Step:
        """The whole batch at once; a gradient that is not finite is seen only after its step was made, and then nothing goes on."""
        loss = part[1].mean().item()
        if not (math.isfinite(loss) and bool(objective.isfinite())):
            raise _diverged(number, loss, math.nan, [part])
        penalty = self.keeper.penalty()
        if penalty is not None:
            penalty.backward()
        pull = self.keeper.slope if self.keeper.pulls_masters else None
        with self.masters.stepping_in_backward(self.schedule.lr(number), pull) as squares:
            objective.backward()
        length = torch.stack(squares).sum().sqrt().item()
        if not math.isfinite(length):
            raise _diverged(number, loss, length, [part])
        return self._made(number, started, loss, length, len(part[1]))

    def _made(self, number: int, started: float, loss: float, length: float, tokens: int) -> Step:
        return Step(
            n=number,
            total=self.schedule.total,
            loss=loss,
            lr=self.schedule.lr(number),
            tokens=tokens,
            grad_norm=length,
            seconds=time.perf_counter() - started,
            kept=self.keeper.added(),
        )

    def _sees(self, indices: Iterable[int]) -> bool:
        return any(self.samples.kept[index].pictures for index in indices)

    def _prove(self) -> None:
        """Nothing else moved, and a gradient reached all that is selected, or the recipe says that this is no reason to stop."""
        self.moved = self.proof.check(self.model.net, still="report")
        dead = self._unmoved()
        if dead and self.dead == "stop":
            raise SelectionViolated(
                f"selected, but no gradient reaches: {', '.join(dead[:8])}{f' and {len(dead) - 8} more' if len(dead) > 8 else ''}",
                where="training",
                then="Take them out of the selection, give records that use them, or set watch.dead to warn.",
            )

    def _unmoved(self) -> list[str]:
        """Selected components that no gradient has reached, those aside that may still wait for a first picture.

        Gradients are asked, not bits: a step may be smaller than the last bit of a bf16 weight, and shows only when several gathered in the
        master. An expert that no token was sent to is no fault either.
        """
        if not self.processes.any(bool(self.masters.still())):
            return []
        still, lenient = self._unreached(), self.unseen and len(self.history) < self.schedule.total
        return [
            component.name
            for component in self.proof.selection.components
            if component.parameter in still and ".moe.experts." not in component.name and not (lenient and not in_language(component.name))
        ]

    def _unreached(self) -> set[str]:
        """Trained parameters that no gradient has reached. Of an adapter's two matrices one begins at zero, and the other waits for it."""
        still = self.processes.everywhere(self.masters.still())
        beside = hosts(self.model.net) if self.adapter is not None else {}
        reached = {host for name, host in beside.items() if name not in still}
        return {name for name in still if beside.get(name) not in reached}

    @contextmanager
    def _writer(self, session: Session) -> Iterator[Writer | None]:
        """Where checkpoints go, if anywhere. Of several processes all write if each holds a part, else all but the first nowhere."""
        if session.checkpoint_dir is None:
            yield None
            return
        optim = (
            self.optim.model_copy(update={"keep_checkpoints": max(2, self.optim.keep_checkpoints)}) if self.masters.sharded else self.optim
        )
        with Writer(self._part(session.checkpoint_dir), optim, self.masters.weights(), idle=not self._writes) as writer:
            yield writer

    @property
    def _writes(self) -> bool:
        return self.processes.is_first or bool(self.masters.sharded)

    def _part(self, path: Path) -> Path:
        """A checkpoint's place: of a model in shards, each process has a folder of its own."""
        if not self.masters.sharded or path.is_file():
            return path
        return path / f"process-{self.processes.index + 1}-of-{self.processes.count}"

    def _resume(self, session: Session, writer: Writer | None) -> None:
        if session.resume is None:
            return
        path = self._part(session.resume)
        if self.masters.sharded and path.is_dir():
            whole = self.processes.everywhere([one.name for one in checkpoint.written(path)])
            path = path / max(whole, default="checkpoint")
        saved = checkpoint.read(path, self.identity, self.masters.weights())
        self.history = list(saved.steps)
        self.masters.load(saved.tensors)
        self.alarms = [alarm for step in self.history for alarm in self.watcher.see(step)]
        self.unseen = self.unseen and not any(self._sees(self.schedule.batch(step.n)) for step in self.history)
        if writer is not None:
            writer.take_over(len(self.history))


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
