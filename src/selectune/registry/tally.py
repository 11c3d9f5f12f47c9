"""What a log adds up to when something is decided: made once of the whole log, and then of each event that is new.

It is the same as what `lineage`, `marks` and `standing` make of the whole log, which tests compare; an update's text is read only where
somebody means that update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from selectune.errors import RegistryError
from selectune.registry.events import Event
from selectune.registry.finding import find
from selectune.registry.lineage import Stack, collected, pointers, pushed, update_of
from selectune.registry.marks import Hold, Mark, holds, marked, tags
from selectune.registry.signatures import Signed, recounted, signed
from selectune.registry.snapshots import snapshots
from selectune.registry.standing import Standing, standing_of
from selectune.registry.update import Update

__all__ = ["Tally", "Updates", "tallied"]


class Updates(Mapping[str, Update]):
    """Updates by id, the oldest first; each is made where it is looked at, and is the caller's own."""

    __slots__ = ("_added", "_names", "_tags")

    def __init__(self, added: Mapping[str, Event], names: Mapping[str, str], tags: Mapping[str, str]) -> None:
        self._added = added
        self._names = names
        self._tags = tags

    def __getitem__(self, id_: str) -> Update:
        """Raises RegistryError for one that cannot be read."""
        event = self._added[id_]
        named, tagged = (tuple(name for name, target in of.items() if target == id_) for of in (self._names, self._tags))
        try:
            return deepcopy(update_of(event, named, tagged))
        except TypeError as error:
            raise RegistryError(str(error), where=f"update {id_[:12]}", then="See what else is wrong: selectune verify") from error

    def __contains__(self, id_: object) -> bool:
        return id_ in self._added

    def __iter__(self) -> Iterator[str]:
        return iter(self._added)

    def __len__(self) -> int:
        return len(self._added)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """The sum of a log's events. Nothing of it is changed: a longer log has another one."""

    added: Mapping[str, Event] = field(default_factory=dict)
    """The event that added each update first."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Where each name points."""
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    """By name: where it points, and what a revert would lead to."""
    tags: Mapping[str, str] = field(default_factory=dict)
    snapshots: Mapping[str, str] = field(default_factory=dict)
    retired: Mapping[str, Mark] = field(default_factory=dict)
    held: Mapping[str, Hold] = field(default_factory=dict)
    collected: Mapping[str, int] = field(default_factory=dict)
    signed: Signed = field(default_factory=Signed)

    @property
    def updates(self) -> Updates:
        """Every update, with the names and tags that it has now."""
        return Updates(self.added, self.names, self.tags)

    @property
    def standing(self) -> Standing:
        """As `standing.standing` makes it of the whole log."""
        return standing_of(self.signed, retired=self.retired, held=self.held, collected=self.collected)

    def resolve(self, wanted: str, where: str) -> Update:
        """The update that somebody means. Raises as `finding.resolve`, and RegistryError for one that cannot be read."""
        found = self.updates
        return found[find(wanted, {**self.names, **self.tags}, found, where)]


def tallied(events: Sequence[Event], before: Tally) -> Tally:
    """The tally of a log after these events too."""
    added, stacks = dict(before.added), dict(before.stacks)
    spoken_of, late = before.signed.given.keys() | before.signed.revoked.keys(), False
    for event in events:
        if event.kind == "add":
            # One that was collected and added again has two events of one body.
            late |= event.subject not in added and event.subject in spoken_of
            added.setdefault(event.subject or "", event)
        elif event.kind in ("promote", "revert"):
            name = event.name or ""
            stacks[name] = pushed(stacks.get(name), event.kind, event.subject or "")
    names, tagged = pointers(events, before.names), tags(events, before.tags)
    known = Updates(added, names, tagged)
    # Somebody had signed for an update that was not there yet: now it can be checked what.
    start = recounted(before.signed, known.get) if late else before.signed
    said = signed(events, known.get, start)
    sound = said.sound(events)
    return Tally(
        added=added,
        names=names,
        stacks=stacks,
        tags=tagged,
        snapshots=snapshots(events, before.snapshots),
        retired=marked(sound, "retire", before.retired),
        held=holds(sound, before.held),
        collected=collected(events, before.collected),
        signed=said,
    )
