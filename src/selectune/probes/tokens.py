"""Classes of tokens: which entries of a vocabulary are numbers, yes and no, or option letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from selectune.errors import NoMatch
from selectune.evaluation.numerals import NUMBER_WORDS

_FIGURES = re.compile(r"[0-9]+(?:[.,][0-9]+)*(?:st|nd|rd|th)?|[.,][0-9]+", re.IGNORECASE)
_ORDINAL_END = re.compile(r"[0-9](?:st|nd|rd|th)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClass:
    """Some tokens of one vocabulary, by name."""

    name: str
    ids: torch.Tensor
    """Tokens that belong to the class wherever they stand; sorted, int64."""
    bare: torch.Tensor
    """Tokens that belong to it only where no letter comes right before: words without a space marker ("one" is no number in "phone")."""
    lettered: torch.Tensor
    """Every token of the vocabulary whose text ends with a letter: after one of these the `bare` tokens do not count."""
    words: frozenset[str] = frozenset()
    """Words, in lower case, that belong to the class also where they take several tokens."""

    @property
    def all_ids(self) -> torch.Tensor:
        """Both kinds, sorted."""
        return torch.cat([self.ids, self.bare]).sort().values


def number_tokens(tokenizer: Any) -> torch.Tensor:
    """The ids of every token that says a number, or begins to; sorted, int64. See `number_class` for what counts."""
    return number_class(tokenizer).all_ids


def number_class(tokenizer: Any) -> TokenClass:
    """Number tokens of any tokenizer.

    A token counts, after its space markers are decoded and stripped, when it is
    ASCII digits, with or without separators ("7", "2024", "1,000", "3.5", ".5");
    the same with an ordinal's ending ("1st", "22nd");
    an English number word, zero to twenty, the tens, hundred, thousand, million, billion, in any case ("one" counts also as a pronoun, so
    the value of an untouched model is not 0); or the first piece, of four letters or more, of such a word that is no single token, where
    every token of the vocabulary that begins like the piece begins a number word or begins with one: in a vocabulary with "thirst", the
    piece "thir" begins more than numbers and does not count.

    Digits in other scripts and ordinals in words ("third") do not count.
    """
    texts = token_texts(tokenizer)
    figures = {index for index, text in texts.items() if _FIGURES.fullmatch(text.strip())}
    words = {index for index, text in texts.items() if text.strip().casefold() in NUMBER_WORDS}
    pieces = _first_pieces(tokenizer, texts, NUMBER_WORDS)
    return _class("number", texts, figures, words | pieces, NUMBER_WORDS)


def yes_no_class(tokenizer: Any) -> TokenClass:
    """Tokens that say "yes" or "no", in any case."""
    return _words_class("yes-no", tokenizer, frozenset({"yes", "no"}))


def letter_class(tokenizer: Any) -> TokenClass:
    """Tokens that are one capital letter A to Z: with and without a space these are different tokens, and both count."""
    texts = token_texts(tokenizer)
    return _class("letter", texts, set(), {index for index, text in texts.items() if re.fullmatch(r"\s?[A-Z]", text)}, frozenset())


CLASSES: Mapping[str, Callable[[Any], TokenClass]] = {"number": number_class, "yes-no": yes_no_class, "letter": letter_class}
"""Token classes by name."""


def token_class(name: str, tokenizer: Any) -> TokenClass:
    """The class of that name in a tokenizer's vocabulary. Raises NoMatch for an unknown name."""
    if name not in CLASSES:
        raise NoMatch(f'"{name}" is no class of tokens', where="probe", then=f"Use one of: {', '.join(CLASSES)}.")
    return CLASSES[name](tokenizer)


def token_texts(tokenizer: Any) -> dict[int, str]:
    """What each token of the vocabulary adds to a text, with its leading space; special tokens are left out.

    A token is decoded after another one, because some decoders drop the space before the first token of a text.
    """
    anchor = tokenizer("x", add_special_tokens=False)["input_ids"][-1]
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    before = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)
    decoded = tokenizer.batch_decode([[anchor, index] for index in ids], clean_up_tokenization_spaces=False)
    return {index: text.removeprefix(before) for index, text in zip(ids, decoded, strict=True)}


def _class(name: str, texts: Mapping[int, str], anywhere: Iterable[int], words: Iterable[int], whole: frozenset[str]) -> TokenClass:
    bare = sorted(index for index in words if not texts[index][:1].isspace())
    always = sorted({*anywhere, *words} - set(bare))
    lettered = sorted(index for index, text in texts.items() if text[-1:].isalpha())
    return TokenClass(name=name, ids=_tensor(always), bare=_tensor(bare), lettered=_tensor(lettered), words=whole)


def _tensor(ids: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(ids), dtype=torch.int64)


def _words_class(name: str, tokenizer: Any, wanted: frozenset[str]) -> TokenClass:
    texts = token_texts(tokenizer)
    return _class(name, texts, set(), {index for index, text in texts.items() if text.strip().casefold() in wanted}, wanted)


_SHORTEST = 4
"""Letters that a first piece must have: with fewer, a vocabulary of characters would make "f" a number."""


def _first_pieces(tokenizer: Any, texts: Mapping[int, str], words: frozenset[str]) -> set[int]:
    """First pieces of words that take several tokens and begin nothing else."""
    vocabulary = {text.strip().casefold() for text in texts.values() if text.strip().isalpha()}
    found = set()
    for piece in {piece for word in words for piece in _split_starts(tokenizer, word)}:
        stem = texts.get(piece, "").strip().casefold()
        whole = [word for word in words if word.startswith(stem)]
        like = [text for text in vocabulary if text.startswith(stem)]
        if (
            len(stem) >= _SHORTEST
            and stem.isalpha()
            and all(any(word.startswith(text) or text.startswith(word) for word in whole) for text in like)
        ):
            found.add(piece)
    return found


def _split_starts(tokenizer: Any, word: str) -> Iterator[int]:
    """The first pieces of a word that takes several tokens: in three cases, after a space and after a bracket."""
    for before, text in ((before, form) for before in ("x ", "(") for form in (word, word.capitalize(), word.upper())):
        anchor = tokenizer(before.strip(), add_special_tokens=False)["input_ids"]
        whole = tokenizer(before + text, add_special_tokens=False)["input_ids"]
        pieces = whole[len(anchor) :]
        if whole[: len(anchor)] == anchor and len(pieces) > 1:
            yield pieces[0]
