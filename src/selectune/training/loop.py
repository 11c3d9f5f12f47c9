"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from selectune.delta import extract, restore, snapshot
from selectune.errors import Alarmed, Diverged, ProcessLost, SelectionViolated, Stopped
from selectune.network import hosts
from selectune.training import checkpoint
from selectune.training.allocator import kept_memory
from selectune.training.features import in_language
from selectune.training.keeping import Keeping
from selectune.training.norms import LeanNorms
from selectune.training.preparing import training_mode
from selectune.training.processes import answering
from selectune.training.results import Session, Step, Training
from selectune.training.setup import Setup, prepare
from selectune.training.slicing import PartlyTrained
from selectune.training.states import States
from selectune.training.stepping import Stepper
from selectune.training.watching import Alarm, Watcher

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.components.proof import Moved
    from selectune.delta import Snapshot
    from selectune.models import Model
    from selectune.recipe import Optim
    from selectune.records import Records
    from selectune.training.adapter import Files

_PLAIN = Session()
_NOTHING = Keeping()
_LOOK = "Look at the end of its own messages"


def fit(
    model: Model,
    selection: Selection,
    records: Records,
    optim: Optim,
    *,
    keeping: Keeping = _NOTHING,
    session: Session = _PLAIN,
) -> Iterator[Step]:
    """Trains the selection in place and yields each step after it was made; leaving the loop early keeps what was learned so far.

    Everything outside the selection, buffers included, stays bit-identical: checked after step 1 and at the end (an early `break` skips
    the latter). Between steps the network is in evaluation mode and may be evaluated. Labels are the assistant's words, and the loss is
    the mean over all labels of the batch, however the batch is divided. `keeping` adds what holds old skills.

    Raises DataError (nothing to train on), SelectionViolated (something else moved, or a selected component did not), Diverged (loss or
    gradient is not finite; the step is not taken), Alarmed (another rule of `session.watch`), ResumeError, StorageError, and Stopped after
    SIGINT or SIGTERM if `session.checkpoint_dir` is given. ProcessLost where there are several processes and one of them is gone.
    """
    with answering(_preparing, _again):
        run = _Run(prepare(model, selection, records, optim, keeping, session), session)
    yield from run.steps()


def train(
    model: Model,
    selection: Selection,
    records: Records,
    optim: Optim,
    *,
    keeping: Keeping = _NOTHING,
    session: Session = _PLAIN,
) -> Training:
    """Runs `fit` to its end and gives back what changed; the network holds the base's exact bits again afterwards, whatever happened.

    Raises what `fit` raises, and what `session.on_step` does.
    """
    started = time.perf_counter()
    with answering(_preparing, _again):
        before = snapshot(model, selection, known=model.manifest)
        setup = prepare(model, selection, records, optim, keeping, session)
    run = _Run(setup, session)
    with _given_back(setup, before):
        for step in run.steps():
            if session.on_step is not None:
                session.on_step(step)
        with run.answering():
            delta = extract(model, before, selection)
        assert run.moved is not None
        if setup.adapter is None:
            setup.reasons["rounding"] = _rounding(*setup.masters.lost_to_rounding(setup.masters.parts.at(before)))
    return Training(
        delta=delta,
        steps=tuple(run.history),
        proof=_sentence(run.moved, selection, model),
        forecast=setup.forecast,
        moved=run.moved,
        seconds=time.perf_counter() - started,
        skipped=setup.samples.skipped,
        adapter=run.files,
        reasons=setup.reasons,
        replayed=setup.replayed,
        alarms=tuple(run.alarms),
    )


@contextmanager
def _given_back(setup: Setup, before: Snapshot) -> Iterator[None]:
    """Afterwards the network holds the base's bits, whatever happened inside."""
    lost = False
    try:
        yield
    except ProcessLost:
        lost = True
        raise
    finally:
        # Shards cannot be put back without the others, and this process has nothing left to do.
        if not (lost and setup.masters.sharded):
            restore(setup.model, before)


class _Run:
    """One training in progress: its history, and what watches over it."""

    def __init__(self, setup: Setup, session: Session) -> None:
        self.history: list[Step] = []
        self.alarms: list[Alarm] = []
        self.moved: Moved | None = None
        self.files: Files | None = None
        self._setup, self._session = setup, session
        self._stepper, self._states, self._watcher = Stepper(setup), States(setup, session), Watcher(session.watch)
        # Whether a step that is not finite is left out, so that training goes on.
        self._lenient = session.watch.not_finite.do == "warn" and not setup.optim.in_backward
        # Whether there are pictures, and no step has had one yet.
        self._unseen = self._sees(range(len(setup.samples.kept)))

    def steps(self) -> Iterator[Step]:
        """`fit`, once everything is prepared."""
        with self.answering():
            yield from self._steps()

    def answering(self) -> AbstractContextManager[None]:
        """Inside, the error about a lost process says after which step it was, and what to go on from."""

        def when() -> str:
            return f"after {len(self.history)} of {self._setup.schedule.total} steps"

        def then() -> str:
            place = self._session.checkpoint_dir or self._session.resume
            return _again() if place is None else f"{_LOOK}, and start all of them again with the same recipe: resume {place}."

        return answering(when, then)

    def _steps(self) -> Iterator[Step]:
        setup, net = self._setup, self._setup.model.net
        mode = training_mode(net, checkpointing=setup.optim.checkpointing is True)
        noting = checkpoint.interruptions(self._session.checkpoint_dir is not None)
        with self._merging(), kept_memory(), mode, noting as noted, self._states.open():
            self._resume()
            setup.masters.require_grad()
            setup.forward.settle(setup.samples.typical(), compile_layers=setup.optim.compile)
            if setup.adapter is None:
                setup.forward.train_partly(PartlyTrained(net, setup.whole.selection))
            setup.forward.lean_norms(LeanNorms(net))
            first = len(self.history) + 1
            for number in range(first, setup.schedule.total + 1):
                self.history.append(self._one(number))
                if number == first:
                    self._prove()
                # Whoever follows the steps has this one before a checkpoint says that it is done.
                yield self.history[-1]
                self._between(noted)
            self._prove()
        if setup.adapter is not None:
            self.moved = setup.whole.check(net, still="report")

    def _resume(self) -> None:
        self.history = self._states.resume()
        self.alarms = [alarm for step in self.history for alarm in self._watcher.see(step)]
        self._unseen = self._unseen and not any(self._sees(self._setup.schedule.batch(step.n)) for step in self.history)

    def _one(self, number: int) -> Step:
        """A step with what it is watched by; one that is not finite is left out where the rule allows."""
        encoder = self._setup.encoder
        started, waited = time.perf_counter(), encoder.waited
        self._unseen = self._unseen and not self._sees(self._setup.schedule.batch(number))
        try:
            step = self._stepper.make(number)
        except Diverged as error:
            if not self._lenient:
                raise
            step = self._stepper.left_out(number, started, error)
        return replace(step, waited=encoder.waited - waited, still=tuple(self._unmoved()[:8]))

    def _between(self, noted: checkpoint.Interruption) -> None:
        """After a step: alarms are told, the state is written if it is time, and what must stop the training does."""
        step = self.history[-1]
        found = self._watcher.see(step)
        self.alarms += found
        for alarm in found:
            if self._session.on_alarm is not None:
                self._session.on_alarm(alarm)
        alarmed = next((alarm for alarm in found if alarm.stops), None)
        # Several processes stop and write at the same steps, so that none waits for another in the middle of one.
        stopping = self._setup.processes.any(noted.name is not None or alarmed is not None)
        self._states.keep(self.history, stopping=stopping)
        if alarmed is not None:
            resume = "" if self._states.newest is None else f" and go on: resume {self._states.newest}"
            raise Alarmed(str(alarmed), where="training", then=f"Or change watch.{alarmed.rule}{resume}.")
        if stopping:
            then = "" if self._states.place is None else f"Go on from there with the same recipe: resume {self._states.place}."
            what = f"{noted.name or 'another process was stopped'} after step {step.n} of {step.total}; the state is written"
            raise Stopped(what, where="training", then=then)

    @contextmanager
    def _merging(self) -> Iterator[None]:
        """Whatever ends the training, an adapter's matrices are then part of the weights, and no longer beside them."""
        try:
            yield
        finally:
            if self._setup.adapter is not None:
                self.files = self._setup.adapter.files()
                self._setup.adapter.merge()

    def _sees(self, indices: Iterable[int]) -> bool:
        return any(self._setup.samples.kept[index].pictures for index in indices)

    def _prove(self) -> None:
        """Nothing else moved, and a gradient reached all that is selected, or the recipe says that this is no reason to stop."""
        self.moved = self._setup.proof.check(self._setup.model.net, still="report")
        dead = self._unmoved()
        if dead and self._session.watch.dead.do == "stop":
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
        setup = self._setup
        if not setup.processes.any(bool(setup.masters.still())):
            return []
        still, lenient = self._unreached(), self._unseen and len(self.history) < setup.schedule.total
        return [
            component.name
            for component in setup.proof.selection.components
            if component.parameter in still and ".moe.experts." not in component.name and not (lenient and not in_language(component.name))
        ]

    def _unreached(self) -> set[str]:
        """Trained parameters that no gradient has reached. Of an adapter's two matrices one begins at zero, and the other waits for it."""
        still = self._setup.processes.everywhere(self._setup.masters.still())
        beside = hosts(self._setup.model.net) if self._setup.adapter is not None else {}
        reached = {host for name, host in beside.items() if name not in still}
        return {name for name in still if beside.get(name) not in reached}


def _preparing() -> str:
    return "before step 1"


def _again() -> str:
    return f"{_LOOK}, and start all of them again from the beginning."


def _rounding(moved: int, lost: int) -> str:
    """The share of updates that rounding loses, in a sentence."""
    return f"{lost / moved if moved else 0.0:.1%} of the elements that moved in fp32 are bit for bit the base's after rounding"


def _sentence(moved: Moved, selection: Selection, model: Model) -> str:
    """What the last check found."""
    rest = len({component.name for component in model.map.components} - set(selection.names))
    return (
        f"{moved.components} of {len(selection.names)} selected components moved ({moved.elements:,} elements); "
        f"the other {rest} components and every buffer are bit-identical to the base"
    )
