"""Looks at sets of test records: each judges one model at an error rate of its own, and what is spent on a set adds up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selectune.errors import LooksSpent, RegistryError
from selectune.registry.events import Event

__all__ = ["KIND", "Look", "check_budget", "looks"]

KIND = "look"
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One model is judged by some sets of test records."""

    model: str
    """The model's id. To judge it again tells nothing new and costs nothing."""
    sets: Mapping[str, str]
    """Task to the digest of its records: the same records are the same set, whatever the task or its scorer is called."""
    alpha: float
    """The error rate at which this look judges."""
    total: float
    """What all looks at a set together may spend."""
    recipe: str = ""
    """The recipe's digest."""
    actor: str = ""
    created: str = ""

    def body(self) -> dict[str, Any]:
        """What the event holds besides the model."""
        return {"sets": dict(self.sets), "alpha": self.alpha, "total": self.total, "recipe": self.recipe}


def looks(events: Iterable[Event], before: Sequence[Look] = ()) -> list[Look]:
    """Every look, oldest first, after those that are known already.

    Raises RegistryError for one that cannot be read: what it spent would not be counted.
    """
    found = list(before)
    for event in events:
        if event.kind == KIND:
            body = event.content()
            match body:
                case {"sets": {**sets}, "alpha": int() | float(), "total": int() | float(), "recipe": str()} if len(body) == 4:
                    if all(isinstance(one, str) for one in sets.values()):
                        found.append(Look(model=event.subject or "", actor=event.actor, created=event.utc, **body))
                        continue
            raise RegistryError(
                f"event {event.seq} is no look at test records", where="log", then="See what else is wrong: selectune verify"
            )
    return found


def check_budget(past: Sequence[Look], wanted: Look, *, times: int = 1) -> bool:
    """Whether `wanted` spends anything: not if its model has been judged by all of its sets at no lower rate.

    `times` is how many such looks are meant to be taken. Raises LooksSpent where a set's looks at other models leave too little of `total`.
    """
    spends = False
    for task, digest in wanted.sets.items():
        by_model: dict[str, float] = {}
        for look in past:
            if digest in look.sets.values():
                by_model[look.model] = max(look.alpha, by_model.get(look.model, 0.0))
        if by_model.get(wanted.model, 0.0) >= wanted.alpha:
            continue
        spends = True
        spent = sum(alpha for model, alpha in by_model.items() if model != wanted.model)
        if spent + times * wanted.alpha > wanted.total * (1 + _ROUNDING):
            more = f"{times} more looks need" if times > 1 else "one more look needs"
            raise LooksSpent(
                f"its test records ({digest[:12]}) have judged {len(by_model.keys() - {wanted.model})} models, which spent {spent:.3g} of "
                f"alpha {wanted.total:g}; {more} {times * wanted.alpha:.3g}",
                where=f"task {task}",
                then="Judge by test records that were not looked at yet; with them gone, what passes by chance is no longer bounded.",
            )
    return spends
