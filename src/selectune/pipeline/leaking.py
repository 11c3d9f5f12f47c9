"""What the training of a recipe and its tests hold alike: a sentence for each pair of sources, and the records themselves to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selectune.pipeline.changed import question
from selectune.records import leakage, likeness, shingles
from selectune.records.leaks import plain_words
from selectune.reporting import thumbnail_url
from selectune.reporting.measured import LeakedPair, LeakedSide

if TYPE_CHECKING:
    from selectune.records import Picture, Record, Records
    from selectune.records.leaks import Leak

HOW = {
    "bytes": "the same picture",
    "pixels": "the same pixels",
    "likeness": "a picture that looks the same",
    "text": "the same words",
    "wording": "nearly the same words",
}
"""What a leak of a kind is, in words."""
SHOWN, MOST = 4, 24
"""Pairs of records that are kept to be looked at: of each pair of sources, and of all."""
LETTERS = 400
"""Of each text that is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaks:
    """What was found between all that is trained on and all that is tested on."""

    notes: tuple[str, ...]
    """A sentence for each pair of sources that share something."""
    pairs: tuple[LeakedPair, ...]
    """The first records that do."""


def find_leaks(train: Mapping[str, Records], tests: Mapping[str, Records]) -> Leaks:
    """Every pair of a training and a test source that share a record. Raises DataError for a picture that cannot be read."""
    notes: list[str] = []
    pairs: list[LeakedPair] = []
    for learned, records in train.items():
        for name, test in tests.items():
            leaks = leakage(records, test)
            shared = {identity for leak in leaks for identity in leak.test}
            if shared:
                first = leaks[0]
                pair = f"{first.test[0]} ({HOW[first.kind]} as {first.train[0]})"
                notes.append(f"{len(shared)} of {len(test)} test records of {name} are in the training of {learned} too, such as {pair}")
                pairs += _pairs(leaks[: min(SHOWN, MOST - len(pairs))], (learned, records), (name, test))
    return Leaks(notes=tuple(notes), pairs=tuple(pairs))


def stopped_by(train: Mapping[str, Records], validation: Mapping[str, Records]) -> tuple[str, ...]:
    """A sentence for each skill whose validation records are in its own training: no test is touched, so it is told and never refused."""
    found = {name: {one for leak in leakage(train[name], records) for one in leak.test} for name, records in validation.items()}
    return tuple(
        f"{len(shared)} of {len(validation[name])} validation records of {name} are in its training too, such as {min(shared)}"
        for name, shared in found.items()
        if shared
    )


def _pairs(leaks: Sequence[Leak], train: tuple[str, Records], test: tuple[str, Records]) -> list[LeakedPair]:
    sides = [{record.id: record for record in records} for _, records in (train, test)]
    found = []
    for leak in leaks:
        old, new = sides[0][leak.train[0]], sides[1][leak.test[0]]
        share, detail, pictures = _alike(leak, old, new)
        found.append(
            LeakedPair(
                learned=train[0],
                task=test[0],
                how=HOW[leak.kind],
                likeness=share,
                detail=detail,
                train=_side(old, pictures[0]),
                test=_side(new, pictures[1]),
                more=len(leak.train) * len(leak.test) - 1,
            )
        )
    return found


def _alike(leak: Leak, old: Record, new: Record) -> tuple[float, str, tuple[Picture | None, Picture | None]]:
    """How alike two records are, in 0 to 1 and in words, and the pictures by which they are: the nearest two."""
    if leak.kind in ("text", "wording"):
        share = shingles.jaccard(*(shingles.shingled(plain_words(one)) for one in (old, new)))
        return share, "shared over all shingles of five bytes", (None, None)
    near = {(a, b): likeness.apart(likeness.look(a), likeness.look(b)) for a in old.pictures for b in new.pictures}
    pair = min(near, key=lambda one: near[one])
    bits, colours = near[pair]
    return 1 - bits / likeness.BITS, f"{bits} of {likeness.BITS} bits differ, colours {colours:.3f} apart", pair


def _side(record: Record, picture: Picture | None) -> LeakedSide:
    text = _words(record) if picture is None else question(record)
    cut = text if len(text) <= LETTERS else f"{text[:LETTERS]}…"
    return LeakedSide(id=record.id, picture=None if picture is None else thumbnail_url(picture.open()), text=cut)


def _words(record: Record) -> str:
    return "\n".join(message.text for message in record.prompt or record.messages)
