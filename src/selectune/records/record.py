"""A record: an id, messages with pictures in their places, and what is known about it; and the sequence of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, overload

from selectune.errors import DataError
from selectune.hashing import digest
from selectune.records.picture import Picture

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn: its text and its pictures, in the order in which a reader sees them."""

    role: Role
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        """The text parts, joined without anything between them."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True, kw_only=True)
class Record:
    """One example.

    `meta` holds what is not shown to the model: `choices` and `answers` (tuples of strings), `cluster`, `kind`, and every other plain
    column of the source.
    """

    id: str
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture of every message, in order."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant turn; all of them where there is none."""
        turn = self._last_turn()
        return self.messages if turn is None else self.messages[:turn]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn; empty where there is none."""
        turn = self._last_turn()
        return "" if turn is None else self.messages[turn].text

    @cached_property
    def digest(self) -> str:
        """Identity of what the record holds, 64 hex digits; its id is no part of it. Reads the pictures' bytes."""
        return digest("record", {"messages": content(self.messages), "meta": dict(self.meta)})

    def _last_turn(self) -> int | None:
        turns = [index for index, message in enumerate(self.messages) if message.role == "assistant"]
        return turns[-1] if turns else None


def content(messages: Sequence[Message]) -> list[list[Any]]:
    """Messages as plain JSON, a picture by the sha256 of its bytes: what digests are made of."""
    return [[message.role, [_part(part) for part in message.parts]] for message in messages]


def _part(part: str | Picture) -> list[str]:
    return ["text", part] if isinstance(part, str) else ["picture", part.digest]


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Record]):
    """Records in a fixed order, with how they were read. Ids are unique."""

    items: tuple[Record, ...]
    name: str
    """The source, as the recipe names it."""
    form: str = "records"
    """The form they were read in: llava, sharegpt, openai, messages, prompt-completion, question-answer, text."""
    reason: str = "given as records"
    """Why that form."""
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Reasons and counts of records that were left out on purpose (`limit`); reading never leaves out a bad one, it raises."""
    repeated: int = 0
    """Records without an id of their own whose content came before; their ids end in `-2`, `-3` …"""
    unread: tuple[str, ...] = ()
    """Columns that were not read, because they hold neither text nor numbers nor lists of these."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for record in self.items:
            if record.id in seen:
                then = "Make the ids unique, map another column with columns: {id: NAME}, or go by content with columns: {id: '-'}."
                raise DataError(f'two records have the id "{record.id}"', where=self.name, then=then)
            seen.add(record.id)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        return replace(self, items=self.items[index]) if isinstance(index, slice) else self.items[index]

    @cached_property
    def digest(self) -> str:
        """Identity of the ids and the content of every record in order, 64 hex digits."""
        return digest("records", [[record.id, record.digest] for record in self.items])

    def take(self, n: int, seed: int = 0) -> Records:
        """`n` records drawn by `seed`, in their own order; all of them where there are no more.

        The draw depends on ids alone, so it is the same on every machine and in whatever order the source lists them, and a smaller draw
        with the same seed lies within a larger one.
        """
        if n >= len(self.items):
            return self
        drawn = set(sorted((record.id for record in self.items), key=lambda name: rank(seed, name))[: max(n, 0)])
        return replace(self, items=tuple(record for record in self.items if record.id in drawn))

    def check_pictures(self) -> None:
        """Decodes every picture once. Raises DataError at the first that cannot be decoded, naming its record and what to do."""
        for record in self.items:
            for picture in record.pictures:
                picture.open()


def rank(seed: int, name: str) -> bytes:
    """What a draw by `seed` sorts names by."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
