"""The pattern language: globs with ranges, alternatives and exclusions over component names.

`*` stands for any characters, dots included. `[8:24]`, `[-4:]`, `[::2]`, `[50%:]` and `[10,16-17]` stand for the index after a list's
name, counted within that list. `{q,k}` stands for either; each alternative has to match something. `!` in front removes. Matching takes
time in proportion to the lengths of pattern and name, whatever the pattern. docs/reference/patterns.md is the specification.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from selectune.errors import InputError, NoMatch

LONGEST = 1000
"""Characters in one pattern."""
_MOST_ALTERNATIVES = 256
_TOKEN = re.compile(r"(?P<star>\*+)|\{(?P<either>[^{}]*)\}|\[(?P<range>[^\[\]]*)\]|(?P<text>[A-Za-z0-9_.\-]+)")
_SLICE = re.compile(r"(-?[0-9]+%?)?:(-?[0-9]+%?)?(?::([0-9]+))?")
_ITEM = re.compile(r"(-?[0-9]+)(?:-([0-9]+))?")
_INDEX = re.compile(r"\.([0-9]+)(?=\.|\Z)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Indices:
    """What stands between brackets."""

    text: str

    def within(self, count: int, prefix: str, where: str | None = None) -> frozenset[int]:
        """The indices meant in a list of `count`. Raises NoMatch for a bound outside the list and for no index at all."""
        match = _SLICE.fullmatch(self.text.strip())
        chosen = self._slice(match, count, prefix, where) if match else self._items(count, prefix, where)
        if not chosen:
            raise NoMatch(
                f'"[{self.text}]" is no index of {prefix}, which has {count} (0 to {count - 1})',
                where=where,
                then="A range leaves its end out: [4:6] is 4 and 5.",
            )
        return chosen

    def _bound(self, text: str | None, count: int, prefix: str, where: str | None) -> int | None:
        if text is None:
            return None
        value = int(text[:-1]) * count // 100 if text.endswith("%") else int(text)
        if abs(value) > count:
            raise NoMatch(
                f'"[{self.text}]" goes beyond {prefix}, which has {count} (0 to {count - 1})',
                where=where,
                then=f"Bounds go from {-count} to {count}.",
            )
        return value

    def _slice(self, match: re.Match[str], count: int, prefix: str, where: str | None) -> frozenset[int]:
        step = int(match[3]) if match[3] else 1
        start, stop = (self._bound(match[group], count, prefix, where) for group in (1, 2))
        return frozenset(range(count)[start:stop:step])

    def _items(self, count: int, prefix: str, where: str | None) -> frozenset[int]:
        chosen: set[int] = set()
        for item in self.text.split(","):
            match = _ITEM.fullmatch(item.strip())
            assert match is not None, "checked when the pattern was read"
            first = int(match[1]) + (count if int(match[1]) < 0 else 0)
            last = int(match[2]) if match[2] else first
            if not 0 <= first <= last < count:
                raise NoMatch(
                    f'"[{self.text}]": {item.strip()} is no index of {prefix}, which has {count} (0 to {count - 1})',
                    where=where,
                    then="Count from the end with [-1]; a span goes upwards, as in [16-17].",
                )
            chosen.update(range(first, last + 1))
        return frozenset(chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Star:
    """Any characters."""


Token = str | Star | Indices


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """One pattern without alternatives, as tokens and as a regular expression that every matching name passes."""

    text: str
    tokens: tuple[Token, ...]
    sieve: re.Pattern[str]
    exact: bool
    """Whether the sieve alone decides; with indices, each has to be looked up."""

    @property
    def literal(self) -> bool:
        """Whether it is one name and nothing else."""
        return all(isinstance(token, str) for token in self.tokens)

    def matches(self, name: str, counts: Mapping[str, int], where: str | None = None) -> bool:
        """Whether the whole of `name` matches; `counts` has the length of every list by its name.

        Raises NoMatch for bounds that a list does not have, where the name would match otherwise.
        """
        if self.sieve.match(name) is None:
            return False
        return self.exact or self._walk(name, counts, where)

    def _walk(self, name: str, counts: Mapping[str, int], where: str | None) -> bool:
        at = {0}
        for place, token in enumerate(self.tokens):
            if isinstance(token, Indices):
                found = [match for start in at if (match := _INDEX.match(name, start)) is not None]
                at = {match.end() for match in found if self._takes(place, token, match, counts, where)}
            else:
                at = _step(token, name, at)
            if not at:
                return False
        return len(name) in at

    def _takes(self, place: int, token: Indices, index: re.Match[str], counts: Mapping[str, int], where: str | None) -> bool:
        prefix = index.string[: index.start()]
        try:
            return int(index[1]) in token.within(counts[prefix], prefix, where)
        except NoMatch:
            # A star may reach lists that the pattern does not mean: `*[100].gate` is about experts, and says nothing of 24 layers.
            ends = {index.end()}
            for later in self.tokens[place + 1 :]:
                ends = _step(later, index.string, ends)
            if len(index.string) in ends:
                raise
            return False


def _step(token: Token, name: str, at: set[int]) -> set[int]:
    """Where the token may end in the name if it begins at one of these places; any index stands for indices."""
    if isinstance(token, Star):
        return set(range(min(at), len(name) + 1)) if at else at
    if isinstance(token, Indices):
        return {match.end() for start in at if (match := _INDEX.match(name, start)) is not None}
    return {start + len(token) for start in at if name.startswith(token, start)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A pattern as it was written, and the plain ones that it stands for."""

    text: str
    removes: bool
    alternatives: tuple[Plain, ...]


def read_pattern(text: str, *, where: str | None = None, near: Callable[[], str] = str) -> Pattern:
    """Parses one pattern. Raises InputError for an empty or overlong one, a stray bracket, or a character that no name has.

    `near` says what a regular expression or a list of names may have meant; it is asked for those alone.
    """
    removes = text.startswith("!")
    body = text[1:] if removes else text
    if not body.strip():
        raise InputError("a pattern is empty", where=where, then="Write a component's name, a glob or a preset, such as attention.")
    if len(body) > LONGEST:
        raise InputError(f"a pattern has {len(body)} characters, over the limit of {LONGEST}", where=where, then="Write several patterns.")
    choices: list[list[Token]] = []
    at = 0
    while at < len(body):
        match = _TOKEN.match(body, at)
        if match is None:
            raise InputError(
                f'"{body[:80]}" has {body[at]!r} at character {at + 1}, which patterns do not use',
                where=where,
                then=f"Patterns are globs: names, *, {{q,k}}, [8:24], [10,16-17] and ! in front; no regular expressions. {near()}".rstrip(),
            )
        choices.append(_choices(match, body, where))
        at = match.end()
    total = 1
    for choice in choices:
        total *= len(choice)
        if total > _MOST_ALTERNATIVES:
            raise InputError(
                f'"{body[:80]}" stands for more than {_MOST_ALTERNATIVES} patterns', where=where, then="Write several patterns."
            )
    return Pattern(text=text, removes=removes, alternatives=tuple(_plain(tokens) for tokens in product(*choices)))


def _choices(match: re.Match[str], body: str, where: str | None) -> list[Token]:
    if match["star"]:
        return [Star()]
    if match["text"] is not None:
        return [match["text"]]
    if match["either"] is not None:
        options = [option.strip() for option in match["either"].split(",")]
        if not all(re.fullmatch(r"[A-Za-z0-9_.\-]+", option) for option in options):
            raise InputError(f'"{match[0]}" in "{body[:80]}" must hold names between commas', where=where, then="For example {gate,up}.")
        return list(dict.fromkeys(options))
    text = match["range"].strip()
    if not _SLICE.fullmatch(text) and not all(_ITEM.fullmatch(item.strip()) for item in text.split(",")):
        raise InputError(f'"{match[0]}" in "{body[:80]}" is no range', where=where, then="Write [8:24], [-4:], [50%:] or [10,16-17].")
    if (parts := _SLICE.fullmatch(text)) and parts[3] and int(parts[3]) == 0:
        raise InputError(f'"{match[0]}" in "{body[:80]}" has a step of 0', where=where, then="Write [::2] for every other one.")
    return [Indices(text=text)]


def _plain(tokens: tuple[Token, ...]) -> Plain:
    """The tokens with a sieve of atomic groups: after a star the leftmost place of the next piece is enough, so nothing is tried twice."""
    pieces: list[list[str]] = [[]]
    for token in tokens:
        if isinstance(token, Star):
            pieces.append([])
        else:
            pieces[-1].append(r"\.[0-9]+(?![0-9])" if isinstance(token, Indices) else re.escape(token))
    first, *rest = ["".join(piece) for piece in pieces]
    sieve = first + (r"\Z" if not rest else "".join(f"(?>.*?{piece})" for piece in rest[:-1] if piece) + ".*" + rest[-1] + r"\Z")
    text = "".join("*" if isinstance(t, Star) else f"[{t.text}]" if isinstance(t, Indices) else t for t in tokens)
    return Plain(text=text, tokens=tokens, sieve=re.compile(sieve, re.DOTALL), exact=not any(isinstance(t, Indices) for t in tokens))


def list_lengths(names: Iterable[str]) -> dict[str, int]:
    """The length of every list that occurs in the names: `language.layers` has as many as its largest index plus one."""
    lengths: dict[str, int] = {}
    for name in names:
        for match in _INDEX.finditer(name):
            prefix = name[: match.start()]
            lengths[prefix] = max(lengths.get(prefix, 0), int(match[1]) + 1)
    return lengths


def family(name: str) -> str:
    """A component's name with every index replaced by a star: `language.layers.*.attn.q`.

    >>> family("language.layers.3.moe.experts.7.gate")
    'language.layers.*.moe.experts.*.gate'
    """
    return _INDEX.sub(".*", name)
