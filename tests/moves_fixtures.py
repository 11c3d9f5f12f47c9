"""Moves that somebody forged, or took from elsewhere, as events for the log of a registry whose policy wants moves signed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from governance_fixtures import NAMES, Governed
from selectune.errors import (
    BadSignature,
    ClockApart,
    DocumentError,
    NotSigned,
    SelectuneError,
    UnknownKey,
    WrongMeaning,
    WrongRole,
)
from selectune.governance import Motion, seal
from selectune.governance.documents import now_text
from selectune.registry.events import Event


def inserted(ours: Governed, kind: str, number: int = 0, name: str | None = None, **body: Any) -> dict[str, Any]:
    """An event as somebody writes it into the database, who then signs it or not."""
    return {**ours.registry._event(kind, "Ann Author"), "name": name, "subject": ours.ids[number], "body": {"reason": "because", **body}}


def signed(ours: Governed, event: dict[str, Any], who: str = "ann", **changes: Any) -> dict[str, Any]:
    """The event with the signature that its place in the log needs, or with another text."""
    last = ours.registry._log.read()[-1]
    motion = Event.following(last.seq, last.hash, event).motion()
    said = {"name": NAMES[who], "role": "author", "utc": now_text(ours.clock()), "event": motion, **changes}
    envelope = seal(Motion.model_validate(said), ours.keys[who])
    return {**event, "body": {**event["body"], "signed": envelope.to_json()}}


def wanted(ours: Governed) -> dict[str, Any]:
    return inserted(ours, "promote", 1, "candidate", previous=None, verdict="passed")


def _with(event: dict[str, Any], **body: Any) -> dict[str, Any]:
    return {**event, "body": {**event["body"], **body}}


def _later(ours: Governed) -> dict[str, Any]:
    """The signature of an event that was to be the next one; another one came first."""
    event = signed(ours, wanted(ours))
    ours.submit(0)
    return event


def _edited(ours: Governed) -> dict[str, Any]:
    event = signed(ours, wanted(ours))
    envelope = event["body"]["signed"]
    return _with(event, signed={**envelope, "signatures": [{**envelope["signatures"][0], "sig": "A" * 86 + "=="}]})


FORGED: dict[str, tuple[Callable[[Governed], dict[str, Any]], type[SelectuneError], str]] = {
    "by nobody": (wanted, NotSigned, "the policy wants a promote signed"),
    "by a stranger": (lambda ours: signed(ours, wanted(ours), "mallory", name="Ann Author"), UnknownKey, "is not in the policy"),
    "in another's name": (lambda ours: signed(ours, wanted(ours), "cy", name="Ann Author"), WrongMeaning, "with a key of Cy Second"),
    "in a role that is not theirs": (lambda ours: signed(ours, wanted(ours), role="admin"), WrongRole, "is author, not admin"),
    "for another actor": (lambda ours: signed(ours, {**wanted(ours), "actor": "Ben Boss"}), WrongMeaning, "signed by Ann Author"),
    "for another name": (lambda ours: {**signed(ours, wanted(ours)), "name": "other"}, WrongMeaning, "of another event"),
    "for another update": (lambda ours: {**signed(ours, wanted(ours)), "subject": ours.ids[0]}, WrongMeaning, "of another event"),
    "for another kind": (lambda ours: {**signed(ours, wanted(ours)), "kind": "tag"}, WrongMeaning, "of another event"),
    "with another reason": (lambda ours: _with(signed(ours, wanted(ours)), reason="other"), WrongMeaning, "of another event"),
    "at another place": (_later, WrongMeaning, "of another event"),
    "long ago": (lambda ours: signed(ours, wanted(ours), utc="2026-11-24T10:00:00Z"), ClockApart, "minutes apart"),
    "edited": (_edited, BadSignature, "does not fit"),
    "as no envelope": (lambda ours: _with(wanted(ours), signed={}), DocumentError, "no signed document"),
    "as an approval": (lambda ours: _with(wanted(ours), signed=ours.submit(0).to_json()), DocumentError, "not 'application"),
}
