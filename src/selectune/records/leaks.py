"""What is in the training records and in the test records alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from selectune.records import likeness, shingles
from selectune.records.picture import Picture
from selectune.records.record import Record, Records

Kind = Literal["bytes", "pixels", "likeness", "text", "wording"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """One picture or one text that training and test records share."""

    kind: Kind
    """`bytes`: the same encoded picture; `pixels`: the same picture encoded in another way; `likeness`: one that looks the
    same; `text`: the same words, without pictures; `wording`: nearly the same words and the same numbers (`shingles`)."""
    what: str
    """The picture's digest, or the text's beginning."""
    train: tuple[str, ...]
    """Ids of the training records that hold it."""
    test: tuple[str, ...]

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every (training id, test id) that shares it."""
        return product(self.train, self.test)


def leakage(train: Records, test: Records) -> list[Leak]:
    """Every picture (by bytes, by decoded pixels, by its looks) and every text (by its words, by nearly its words) that both hold; empty
    where they share nothing. What was found in one way is not told again in a looser one.

    Two records with pictures may ask the same question, so text counts only between records without any: the whole prompt, or all of it
    where there is no prompt, compared without regard to case, white space and Unicode form. Pictures are decoded once, whatever they are
    compared with. Raises DataError for a picture that cannot be read.
    """
    seen, asked = _pictures(train), _pictures(test)
    found = list(_shared("bytes", _by(seen, lambda picture: picture.digest), _by(asked, lambda picture: picture.digest)))
    seen, asked = _left(seen, found), _left(asked, found)
    sizes = {picture.size for picture in seen} & {picture.size for picture in asked}
    sized = [{picture: ids for picture, ids in side.items() if picture.size in sizes} for side in (seen, asked)]
    same = list(_shared("pixels", *(_by(side, lambda picture: picture.pixels_digest()) for side in sized)))
    return [*found, *same, *_alike(seen, asked, same), *_said(_texts(train), _texts(test))]


def _left(pictures: Mapping[Picture, list[str]], found: Sequence[Leak]) -> dict[Picture, list[str]]:
    """The pictures that are not among what was found by bytes."""
    known = {leak.what for leak in found}
    return {picture: ids for picture, ids in pictures.items() if picture.digest not in known}


def _alike(seen: Mapping[Picture, list[str]], asked: Mapping[Picture, list[str]], known: Sequence[Leak]) -> Iterator[Leak]:
    """Pictures that look the same; a leak for each picture of the test."""
    if not seen or not asked:
        return
    told = {identity for leak in known for identity in leak.test}
    sides = [list(side) for side in (seen, asked)]
    looks = [[likeness.look(picture) for picture in side] for side in sides]
    pairs: dict[int, list[str]] = defaultdict(list)
    for i, j in likeness.alike(*looks):
        pairs[j] += seen[sides[0][i]]
    for j in sorted(pairs):
        ids = tuple(identity for identity in asked[sides[1][j]] if identity not in told)
        if ids:
            yield Leak(kind="likeness", what=sides[1][j].digest, train=tuple(dict.fromkeys(pairs[j])), test=ids)


def _said(seen: Mapping[str, list[str]], asked: Mapping[str, list[str]]) -> Iterator[Leak]:
    """Texts that are the same, then those that are nearly."""
    yield from _shared("text", seen, asked)
    left = [[text for text in side if text not in other] for side, other in ((seen, asked), (asked, seen))]
    pairs: dict[str, list[str]] = defaultdict(list)
    for i, j in shingles.alike(*([shingles.shingled(text) for text in side] for side in left)):
        pairs[left[1][j]] += seen[left[0][i]]
    for text, ids in pairs.items():
        yield Leak(kind="wording", what=text[:80], train=tuple(dict.fromkeys(ids)), test=tuple(dict.fromkeys(asked[text])))


def _pictures(records: Records) -> dict[Picture, list[str]]:
    ids: dict[Picture, list[str]] = defaultdict(list)
    for record in records:
        for picture in dict.fromkeys(record.pictures):
            ids[picture].append(record.id)
    return ids


def _by(pictures: Mapping[Picture, list[str]], key: Callable[[Picture], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for picture, ids in pictures.items():
        groups[key(picture)] += ids
    return groups


def _texts(records: Records) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if not record.pictures:
            groups[plain_words(record)].append(record.id)
    return groups


def plain_words(record: Record) -> str:
    """What two texts are compared by: the whole prompt, or all of it without one, whatever case, space and Unicode form."""
    messages = record.prompt or record.messages
    return shingles.plain("\n".join(f"{message.role}: {message.text}" for message in messages))


def _shared(kind: Kind, train: Mapping[str, list[str]], test: Mapping[str, list[str]]) -> Iterator[Leak]:
    for key in train:
        if key in test:
            yield Leak(kind=kind, what=key[:80], train=tuple(dict.fromkeys(train[key])), test=tuple(dict.fromkeys(test[key])))
