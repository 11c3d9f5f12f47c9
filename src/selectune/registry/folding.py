"""What a log adds up to is kept, and only the events that are new are added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from selectune.registry.events import Event

__all__ = ["Folded"]

T = TypeVar("T")


class Folded(Generic[T]):
    """A value that is made of a log, event by event, and grows with it.

    `fold` makes the value of a longer log from its new events and the value of the log before them, which it does not change.
    """

    def __init__(self, start: T, fold: Callable[[Sequence[Event], T], T]) -> None:
        self._start = start
        self._fold = fold
        self._kept: tuple[int, Event | None, T] = (0, None, start)

    def of(self, events: Sequence[Event]) -> T:
        """The value of this log; raises what `fold` raises, and then forgets nothing.

        It goes on from the value that is kept only where the very event that was the last one then, the object itself, is still in its
        place: a log that was read anew is added up anew.
        """
        count, last, value = self._kept
        if count > len(events) or (count and events[count - 1] is not last):
            count, value = 0, self._start
        if count < len(events):
            value = self._fold(events[count:], value)
            # One step, so that threads that decide at once see one or the other.
            self._kept = (len(events), events[-1], value)
        return value
