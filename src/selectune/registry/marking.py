"""Events that say something of one update: tags, retirement, holds, and that it was exported or the registry verified."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date
from typing import Any

from selectune.errors import RegistryError
from selectune.registry.ledger import Decision, Ledger, demand_said
from selectune.registry.store import again
from selectune.registry.update import Update, check_name

__all__ = ["hold", "note", "release", "retire", "tag"]


@again
def tag(ledger: Ledger, id_or_name: str, name: str, reason: str, actor: str) -> Update:
    """Gives an update a name of its own. Raises what `Registry.tag` raises."""
    check_name(name)
    with ledger.deciding() as now:
        update = now.tally.resolve(id_or_name, ledger.where)
        other = now.tally.tags.get(name)
        if other is not None:
            raise RegistryError(f"{name} is the tag of {other[:12]}, and a tag never moves", where=ledger.where, then="Choose another.")
        if name in now.tally.names or now.standing.rule(name) is not None:
            raise RegistryError(
                f"{name} is a name that moves", where=ledger.where, then=f"Point it: selectune promote ID {name} --reason TEXT"
            )
        _append(now, ledger, "tag", actor, update, {"reason": reason}, name=name)
    return update


@again
def retire(ledger: Ledger, id_or_name: str, reason: str, actor: str) -> Update:
    """Says that an update is not to be promoted any more. Raises what `Registry.retire` raises."""
    demand_said(reason, actor, what="retire", where=ledger.where)
    with ledger.deciding() as now:
        update = now.tally.resolve(id_or_name, ledger.where)
        now.standing.demand_current(update.id)
        _append(now, ledger, "retire", actor, update, {"reason": reason})
    return update


@again
def hold(ledger: Ledger, id_or_name: str, until: date, reason: str, actor: str) -> Update:
    """Keeps an update from being collected until a day is over, UTC. Raises what `Registry.hold` raises."""
    demand_said(reason, actor, what="hold", where=ledger.where)
    with ledger.deciding() as now:
        update = now.tally.resolve(id_or_name, ledger.where)
        now.standing.demand_kept(update.id)
        if until < ledger.clock().astimezone(UTC).date():
            raise RegistryError(f"{until} is past", where=ledger.where, then="Give a day to come: --until 2036-12-31")
        _append(now, ledger, "hold", actor, update, {"until": until.isoformat(), "reason": reason})
    return update


@again
def release(ledger: Ledger, id_or_name: str, reason: str, actor: str) -> Update:
    """Ends every hold on an update. Raises what `Registry.release` raises."""
    demand_said(reason, actor, what="release", where=ledger.where)
    with ledger.deciding() as now:
        update = now.tally.resolve(id_or_name, ledger.where)
        if update.id not in now.standing.held:
            raise RegistryError(f"update {update.id[:12]} is not held", where=ledger.where, then="See it: selectune show ID")
        _append(now, ledger, "release", actor, update, {"reason": reason})
    return update


@again
def note(ledger: Ledger, kind: str, subject: str | None, body: Mapping[str, Any], actor: str) -> None:
    """Appends an event that decides nothing: `verify` or `export`."""
    with ledger.deciding() as now:
        now.append({**ledger.event(kind, actor), "subject": subject, "body": dict(body)})


def _append(
    now: Decision, ledger: Ledger, kind: str, actor: str, update: Update, body: Mapping[str, Any], *, name: str | None = None
) -> None:
    now.append({**ledger.event(kind, actor), "name": name, "subject": update.id, "body": dict(body)})
