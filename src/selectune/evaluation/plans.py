"""Which prompts run side by side, and what those of a group have in common: several questions on one picture read it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selectune.hashing import digest
from selectune.training.content import content

if TYPE_CHECKING:
    from selectune.records import Encoded

WORTH = 0.9
"""Beginnings are shared where the tokens to compute fall below this share: a second pass for the rest costs something too."""
POOLED, SPREAD = 4, 4
"""Batches of prompts that may be continued at once, and waves that a task has at least, if it has so many batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Prompts that go through the network together."""

    indices: tuple[int, ...]
    length: tuple[int, ...] = ()
    """For each prompt the tokens of it that its beginning has; empty where each is read whole."""
    firsts: tuple[int, ...] = ()
    """For each different beginning a row that has it."""
    owners: tuple[int, ...] = ()
    """For each prompt its beginning's place in `firsts`."""

    def key(self, prompts: Sequence[Encoded]) -> str:
        """64 hex digits for everything that decides what the group's passes compute."""
        rows = [content(prompts[index]) for index in self.indices]
        return digest("group", [rows, list(self.length), list(self.firsts), list(self.owners)])

    def computed(self, prompts: Sequence[Encoded]) -> int:
        """Positions that its passes compute, padding counted."""
        sizes = [len(prompts[index].input_ids) for index in self.indices]
        if not self.length:
            return len(sizes) * max(sizes)
        rest = max(size - length for size, length in zip(sizes, self.length, strict=True))
        return len(self.firsts) * max(self.length) + len(sizes) * rest


def groups(prompts: Sequence[Encoded], batch: int, *, image: int | None = None, share: bool = False) -> list[Group]:
    """Every prompt once, at most `batch` in a group, longest first; with `share` those that begin alike side by side, if that is less work.

    `image` is the id of an image token: a beginning has all of a prompt's image tokens or is none.
    """
    whole = [Group(indices=part) for part in _parts(_longest_first(prompts), batch)]
    if not share:
        return whole
    length, cluster = _beginnings(prompts, image)
    if not all(length):
        return whole
    order = sorted(range(len(prompts)), key=lambda index: (cluster[index], -len(prompts[index].input_ids), index))
    shared = [_shared(prompts, part, length, cluster) for part in _parts(order, batch)]
    cost = sum(group.computed(prompts) for group in shared)
    return shared if cost < WORTH * sum(group.computed(prompts) for group in whole) else whole


def waves(found: Sequence[Group], batch: int) -> list[list[Group]]:
    """Groups that are worked on together, wave after wave, so that waiting prompts can take the places of finished ones.

    A wave is what one of several processes takes: its answers do not depend on the others'.
    """
    size = min(2 * POOLED, max(1, -(-len(found) // SPREAD)))
    return [list(found[at : at + size]) for at in range(0, len(found), size)]


def _longest_first(prompts: Sequence[Encoded]) -> list[int]:
    return sorted(range(len(prompts)), key=lambda index: (-len(prompts[index].input_ids), index))


def _parts(order: Sequence[int], batch: int) -> list[tuple[int, ...]]:
    return [tuple(order[at : at + batch]) for at in range(0, len(order), batch)]


def _beginnings(prompts: Sequence[Encoded], image: int | None) -> tuple[list[int], list[int]]:
    """For each prompt the length of what it shares with those of the same pictures, 0 where it cannot be divided, and a number that they
    share: how many tokens the cluster's longest has, and which cluster it is, so that sorting puts long ones first."""
    members: dict[tuple[str, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(tuple(picture.digest for picture in prompt.pictures), []).append(index)
    length, cluster = [0] * len(prompts), [0] * len(prompts)
    ordered = sorted(members.values(), key=lambda rows: (-max(len(prompts[row].input_ids) for row in rows), rows[0]))
    for number, rows in enumerate(ordered):
        size = _alike([prompts[row] for row in rows], image)
        for row in rows:
            length[row], cluster[row] = size, number
    return length, cluster


def _alike(rows: Sequence[Encoded], image: int | None) -> int:
    """How many tokens all of these begin with, the last of each left over; of one alone up to its last image token."""
    ids = [row.input_ids for row in rows]
    most = min(len(one) for one in ids) - 1
    last = max((at + 1 for at, token in enumerate(ids[0]) if token == image), default=0)
    if len(rows) == 1 and rows[0].pictures:
        return last if last <= most else 0
    same = next((at for at in range(most) if len({one[at] for one in ids}) > 1), most)
    if any(row.pictures for row in rows) and (last == 0 or same < last):
        return 0
    kinds = [tuple(tuple(values[:same]) for values in row.extra.values()) for row in rows]
    return same if len(set(kinds)) == 1 else 0


def _shared(prompts: Sequence[Encoded], part: tuple[int, ...], length: Sequence[int], cluster: Sequence[int]) -> Group:
    """A group whose beginnings are as long as they can be, or all as long as the shortest, whichever leaves less padding to compute."""
    firsts: dict[int, int] = {}
    for row, index in enumerate(part):
        firsts.setdefault(cluster[index], row)
    places = {number: place for place, number in enumerate(firsts)}
    owners = tuple(places[cluster[index]] for index in part)
    least = min(length[index] for index in part)
    ways = ([length[index] for index in part], [least] * len(part))
    found = [Group(indices=part, length=tuple(way), firsts=tuple(firsts.values()), owners=owners) for way in ways]
    return min(found, key=lambda group: group.computed(prompts))
