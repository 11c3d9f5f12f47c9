"""Towers are apart: what is called vision does not touch text, and what is called language does not touch a picture's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from behaviour import WORDS, Findings, Subject, first

SENSES = ("vision", "projector", "audio", "protein", "generation")


def has_senses(subject: Subject) -> bool:
    """Whether any part of the model sees, hears or reads something other than words."""
    return bool(_named(subject, *SENSES))


def check_text_apart(subject: Subject, found: Findings) -> None:
    """Changing everything that sees or hears leaves what the model makes of words alone bit-identical."""
    senses = _named(subject, *SENSES)
    plain = _spoken(subject)
    with subject.scaled(senses, 1.5):
        found.say("apart.text", torch.equal(_spoken(subject), plain), "vision, audio or the projector changes what comes of words alone")


def check_pictures_apart(subject: Subject, found: Findings, features: Callable[[], list[Tensor]]) -> None:
    """Changing the language tower leaves a picture's features bit-identical; changing vision, or the projector, does not."""
    plain = features()
    with subject.scaled(_named(subject, "language", "head"), 1.5):
        found.say("apart.pictures", _same(features(), plain), "the language tower changes a picture's features")
    for tower in ("vision", "projector"):
        names = _named(subject, tower)
        if names:
            with subject.scaled(names, 1.5):
                found.say(f"apart.{tower}", not _same(features(), plain), f"{tower} changes nothing in a picture's features")


@torch.no_grad()
def _spoken(subject: Subject) -> Tensor:
    return first(subject.on_words(subject.net, WORDS).to_tuple()).clone()


def _named(subject: Subject, *towers: str) -> list[str]:
    return [name for name in subject.components if name.split(".")[0].split("_")[0] in towers]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))
