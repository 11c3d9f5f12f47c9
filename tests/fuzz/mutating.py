"""Hostile inputs made of good ones: bytes flipped, cut, spliced and repeated, lengths that lie, JSON edited where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**64, -(2**63), 1e308, 1.5, "", "x", "../../x", "<img onerror=x>", "\x1b[31m", "\u202e"),
    *("0" * 64, "f" * 64, [], {}, [[]], [0, 0, 1, 1], [[0, 0, 1, 1]], {"a": 1}, "U8", "F32", "xor", "xor-planes-zstd", "\ud800"),
)
TEXTS = (b"NaN", b"1e999", b"-0", b"9" * 5000, b"[" * 5000, b'{"a":1,"a":2}', b"\xff", b"\xef\xbb\xbf", b'"\\ud800"', b"\x00", b"//", b",")


def mutated(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """`data` after one to three changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(_CHANGES)(data, random, others)
    return data[: 1 << 20]


def _flip(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return b"\x00"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    start, stop = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    return random.choice((data[:start], data[start:], data[:start] + data[stop:]))


def _splice(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _repeat(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    start = random.randint(0, len(data))
    stop = min(len(data), start + random.randint(0, 64))
    return data[:stop] + data[start:stop] * random.randint(1, 40) + data[stop:]


def _insert(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(TEXTS) + data[at:]


def _number(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """A run of digits becomes another number."""
    places = [at for at in range(len(data)) if 48 <= data[at] <= 57]
    if not places:
        return data
    start = stop = random.choice(places)
    while stop < len(data) and 48 <= data[stop] <= 57:
        stop += 1
    new = random.choice((b"0", b"-1", b"1", b"255", b"1e3", str(2**48).encode(), str(2**63).encode(), str(random.randint(0, 999)).encode()))
    return data[:start] + new + data[stop:]


def _length(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """The length that a safetensors file begins with lies."""
    size = int.from_bytes(data[:8], "little")
    new = random.choice((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1))
    return (new % 2**64).to_bytes(8, "little") + data[8:]


def _edit(data: bytes, random: Random, _: Sequence[bytes]) -> bytes:
    """JSON, whole or between a length and a payload, and the JSON in its texts, with one value changed."""
    try:
        return _dumped(_edited(json.loads(data), random))
    except (ValueError, RecursionError):
        pass
    size = int.from_bytes(data[:8], "little")
    try:
        text = _dumped(_edited(json.loads(data[8 : 8 + size]), random))
    except (ValueError, RecursionError):
        return _flip(data, random, ())
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _dumped(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _edited(value: Any, random: Random) -> Any:
    if isinstance(value, str) and value.startswith("{") and random.random() < 0.9:
        return _dumped(_edited(json.loads(value), random)).decode()
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        made = dict(value)
        what = random.random()
        if what < 0.08:
            del made[key]
        elif what < 0.16:
            made[random.choice(("../x", "extra", "<b>", key + "x"))] = made.pop(key)
        else:
            made[key] = _edited(value[key], random)
        return made
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        what = random.random()
        if what < 0.1:
            return value[:at] + value[at + 1 :]
        if what < 0.2:
            return [*value, value[at]]
        return [*value[:at], _edited(value[at], random), *value[at + 1 :]]
    if isinstance(value, int) and random.random() < 0.5:
        return value + random.choice((-1, 1, 2**31, -(2**31)))
    return random.choice(VALUES)


_CHANGES: tuple[Callable[[bytes, Random, Sequence[bytes]], bytes], ...] = (
    *(_flip, _flip, _cut, _splice, _repeat, _insert, _number, _length),
    *(_edit,) * 8,
)
