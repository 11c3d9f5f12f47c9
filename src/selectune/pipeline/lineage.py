"""What the registry says today of the updates of a run: names, signatures, revocations. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from selectune.errors import InputError, SelectuneError
from selectune.pipeline.folder import read_run
from selectune.registry import Registry, Standing, Update
from selectune.reporting import RunResult, load_result
from selectune.reporting.trained import UpdateInfo

SINGLE_PERSON = "single person: the policy of the registry lets the author of an update approve it"
"""A limit of every page where it holds."""


def as_it_stands(results: Sequence[RunResult], registry: Registry) -> list[RunResult]:
    """The results with their updates as the log tells of them now; one that is not in it any more is said to be so."""
    updates, standing = registry.signed_log()
    known = {update.id: update for update in updates}
    return [_standing(result, known, standing, _limits(standing)) for result in results]


def said_of(standing: Standing, updates: Mapping[str, str]) -> list[str]:
    """What a page that shows these updates, by the name that it gives each, has to say of them."""
    notes = [f"{name} (update {update[:12]}): {note}" for name, update in updates.items() for note in standing.notes(update)]
    return [*notes, *_limits(standing)]


def said_of_models(models: Mapping[str, str], registry: str) -> list[str]:
    """The same for models by their ids, those that updates of the registry make; nothing where there is no registry."""
    if "://" not in registry and not Path(registry).exists():
        return []
    updates, standing = Registry.open(registry).signed_log()
    made = {update.child: update.id for update in updates}
    known = {name: made[model] for name, model in models.items() if model in made}
    return said_of(standing, known) if known else []


def results_of(run_dir: Path) -> list[RunResult]:
    """The results of a finished run, with what its registry says today; where that cannot be opened, a note says so and why.

    Raises InputError for a folder without results, and what `load_result` raises.
    """
    found = [run_dir / "result.json"] if (run_dir / "result.json").is_file() else sorted(run_dir.glob("*/result.json"))
    if not found:
        raise InputError("holds no result.json", where=str(run_dir), then="Give the folder of a finished run.")
    results = [load_result(path) for path in found]
    try:
        return as_it_stands(results, Registry.open(read_run(run_dir).registry))
    except SelectuneError as error:
        note = f"signatures and revocations are those of when the run ended: the registry cannot be read ({error.what})"
        return [result.model_copy(update={"notes": (*result.notes, note)}) for result in results]


def _limits(standing: Standing) -> tuple[str, ...]:
    return (SINGLE_PERSON,) if standing.policy is not None and standing.policy.single_person else ()


def _standing(result: RunResult, known: dict[str, Update], standing: Standing, limits: tuple[str, ...]) -> RunResult:
    updates = tuple(_update(one, known.get(one.id), standing) for one in result.updates)
    return result.model_copy(update={"updates": updates, "notes": tuple(dict.fromkeys((*result.notes, *limits)))})


def _update(shown: UpdateInfo, kept: Update | None, standing: Standing) -> UpdateInfo:
    if kept is None:
        return shown.model_copy(update={"names": (), "notes": ("it is not in the registry any more",)})
    end, notes = kept.id in standing.revoked, tuple(standing.notes(kept.id))
    return shown.model_copy(update={"names": tuple(kept.names), "revoked": end, "notes": notes})
