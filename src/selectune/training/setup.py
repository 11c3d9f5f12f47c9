"""Everything that a training needs before its first step: encoded samples, masters, the shortest way through the model, proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selectune.components import Proof
from selectune.components.proof import Forecast, forecast
from selectune.errors import InputError
from selectune.hashing import digest
from selectune.network import holds_shards
from selectune.training.adapter import Beside
from selectune.training.features import FeatureCache
from selectune.training.forward import Forward
from selectune.training.keeping import Keeper, Keeping, Terms, replays
from selectune.training.load import Load
from selectune.training.masters import Masters
from selectune.training.preparing import Samples, TimedEncoder, encode, find_cut, find_tower, prefix, sizes
from selectune.training.processes import Processes
from selectune.training.room import fitted
from selectune.training.schedule import Schedule

if TYPE_CHECKING:
    from selectune.components import Selection
    from selectune.models import Model
    from selectune.recipe import Optim
    from selectune.records import Records
    from selectune.training.results import Session

_HARMLESS = {"save_every", "save_minutes", "keep_checkpoints", "cache_features"}
"""Settings that may differ when a training goes on."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training, ready for its first step."""

    model: Model
    optim: Optim
    """As it is done: with `checkpointing` decided."""
    seed: int
    schedule: Schedule
    samples: Samples
    replayed: dict[str, int]
    """How often a record of each source is replayed in all."""
    masters: Masters
    adapter: Beside | None
    forward: Forward
    keeper: Keeper
    encoder: TimedEncoder
    processes: Processes
    whole: Proof
    """Of the selection, from before the first step to the end."""
    proof: Proof
    """Of what is trained while it is: the selection, or the adapter's matrices."""
    forecast: tuple[Forecast, ...]
    identity: dict[str, Any]
    """What must be the same for a checkpoint to be gone on from."""

    @property
    def reasons(self) -> dict[str, str]:
        """Why each fast path is taken or not, and what `keep` does, by name."""
        return self.forward.reasons


def prepare(model: Model, selection: Selection, records: Records, optim: Optim, keeping: Keeping, session: Session) -> Setup:
    """Encodes the records, copies the selection, hashes the rest; an adapter's matrices are in the network afterwards.

    Raises InputError and DataError for what cannot be trained.
    """
    encoder, processes = TimedEncoder(model.processor), Processes(model)
    if processes.count > 1 and optim.in_backward:
        raise InputError("in_backward steps before the processes have added up", where="optim.in_backward", then="Set it to false.")
    cache = FeatureCache() if session.features is None else session.features
    new = encode(model, encoder, records, optim, batch=optim.batch)
    samples, pools = replays(keeping, model, encoder, optim, new)
    schedule = Schedule(n=len(new.kept), optim=optim, seed=session.seed, replayed=keeping.share, pools=tuple(pools.values()))
    replayed = dict(zip(pools, schedule.replays(), strict=True))
    terms = Terms.of(keeping, model, selection, optim, cache, processes)
    everything = samples if terms.anchors is None else samples.beside(terms.anchors)
    tower, why_no_tower = find_tower(model, selection, optim, everything, cache)
    cut, why_no_cut = find_cut(model, selection, optim, everything, schedule, cache)
    # One decides for all: recomputing gathers shards once more, and processes have to do that together.
    load = Load.of(sizes(model, samples.kept), optim, records=len(samples.kept), cut=cut is not None)
    prompts = () if terms.anchors is None else terms.anchors.kept
    load = load.keeping(keeping.keep, sizes(model, prompts), optim, records=len(prompts))
    settled, why = processes.leads(lambda: fitted(model, selection, optim, load))
    forward = Forward(model, encoder, tower, why_no_tower, cut, why_no_cut)
    forward.reasons |= {"prefix": prefix(model, selection), "checkpointing": why, **terms.reasons}
    if keeping.keep.replay is not None:
        forward.reasons["keep.replay"] = keeping.replay_words(pools, replayed)
    whole, expected = Proof.start(model.net, selection), forecast(model.net, selection)
    adapter = None if optim.adapter is None else Beside(model.net, selection, optim.adapter, seed=session.seed)
    if adapter is not None:
        forward.reasons["adapter"] = adapter.about
    trained = selection if adapter is None else adapter.selection
    masters = Masters(model.net, trained, settled)
    if masters.sharded != masters.parts.owners.keys() and holds_shards(model.net):
        forward.lead_back()
    keeper = Keeper(terms, forward, masters, selection, adapter, processes)
    keeper.keep_answers(samples.kept, cache.store)
    return Setup(
        model=model,
        optim=settled,
        seed=session.seed,
        schedule=schedule,
        samples=samples,
        replayed=replayed,
        masters=masters,
        adapter=adapter,
        forward=forward,
        keeper=keeper,
        encoder=encoder,
        processes=processes,
        whole=whole,
        proof=whole if adapter is None else Proof.start(model.net, trained),
        forecast=expected,
        identity=_identity(model, selection, records, optim, session.seed) | keeping.identity,
    )


def _identity(model: Model, selection: Selection, records: Records, optim: Optim, seed: int) -> dict[str, Any]:
    return {
        "model": model.id,
        "patterns": list(selection.patterns),
        "selection": digest("trained", [[component.parameter, component.slice] for component in selection.components]),
        "records": records.digest,
        "optim": optim.model_dump(mode="json", exclude=_HARMLESS),
        "seed": seed,
    }
