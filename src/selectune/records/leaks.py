"""What is in the training records and in the test records alike."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from selectune.records.picture import Picture
from selectune.records.record import Record, Records

Kind = Literal["bytes", "pixels", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """One picture or one text that training and test records share."""

    kind: Kind
    """`bytes`: the same encoded picture; `pixels`: the same picture encoded in another way; `text`: the same words, without pictures."""
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
    """Every picture (by bytes, then by decoded pixels) and every text that both hold; empty where they share nothing.

    Two records with pictures may ask the same question, so text counts only between records without any: the whole prompt, or all of it
    where there is no prompt, compared without regard to case, white space and Unicode form. Pixels are decoded only where sizes agree.
    Raises DataError for a picture that cannot be read.
    """
    seen, asked = _pictures(train), _pictures(test)
    found = list(_shared("bytes", _by(seen, lambda picture: picture.digest), _by(asked, lambda picture: picture.digest)))
    same = {leak.what for leak in found}
    sizes = {picture.size for picture in seen} & {picture.size for picture in asked}
    left = [
        {picture: ids for picture, ids in side.items() if picture.size in sizes and picture.digest not in same} for side in (seen, asked)
    ]
    found += _shared("pixels", _by(left[0], lambda picture: picture.pixels_digest()), _by(left[1], lambda picture: picture.pixels_digest()))
    return [*found, *_shared("text", _texts(train), _texts(test))]


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
            groups[_normal(record)].append(record.id)
    return groups


def _normal(record: Record) -> str:
    messages = record.prompt or record.messages
    text = "\n".join(f"{message.role}: {message.text}" for message in messages)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _shared(kind: Kind, train: Mapping[str, list[str]], test: Mapping[str, list[str]]) -> Iterator[Leak]:
    for key in train:
        if key in test:
            yield Leak(kind=kind, what=key[:80], train=tuple(dict.fromkeys(train[key])), test=tuple(dict.fromkeys(test[key])))
