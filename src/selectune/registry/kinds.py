"""What an event of each kind may hold: the contract by which a log that somebody else wrote is read.

A registry of our own holds what this version wrote. What comes from elsewhere is refused where it holds anything that no version writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from selectune.errors import EventMalformed, RegistryError, UnknownKind
from selectune.registry.blobs import is_digest
from selectune.registry.events import Event
from selectune.registry.lineage import update_of
from selectune.registry.update import check_attachment, check_name

__all__ = ["KINDS", "check_event"]

_Hex = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
_Words = Annotated[str, StringConstraints(max_length=100_000)]
_Line = Annotated[str, StringConstraints(max_length=1000)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Ids = Annotated[list[_Hex], Field(max_length=100_000)]
_Names = Annotated[list[_Line], Field(max_length=100_000)]
_Process = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{8}-[0-9]{1,10}-[0-9a-f]{16}\z")]
_Day = Annotated[str, StringConstraints(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\z")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Signable(_Strict):
    signed: dict[str, Any] = Field(default_factory=dict)
    """An envelope; early versions, and registries without a policy, write none."""


class _Event(_Strict):
    seq: Annotated[int, Field(ge=1, lt=2**53)]
    utc: Annotated[str, StringConstraints(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\z")]
    actor: _Line
    kind: Annotated[str, StringConstraints(pattern=r"\A[a-z][a-z-]{0,39}\z")]
    name: _Line | None
    subject: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None
    body: dict[str, Any]
    prev: _Hex
    hash: _Hex


class _Create(_Strict):
    format: Literal[1]
    id: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{32}\z")] = ""
    """Random, so that no two registries begin with the same event; early versions wrote none."""


class _Move(_Signable):
    previous: _Hex | None
    reason: _Words
    verdict: _Line = ""


class _Reason(_Strict):
    reason: _Words


class _Said(_Signable):
    reason: _Words


class _Hold(_Signable):
    until: _Day
    reason: _Words


class _Signed(_Strict):
    signed: dict[str, Any]


class _Snapshot(_Strict):
    snapshot: _Hex


class _Look(_Strict):
    sets: dict[str, _Line]
    alpha: _Share
    total: _Share
    recipe: _Line


class _Collection(_Signable):
    updates: _Ids
    objects: _Ids
    leftovers: _Names
    keep_days: _Count
    candidate_days: _Count
    by: _Process = ""
    """Who removes them; early versions wrote none."""


class _Taken(_Signable):
    taken: list[_Count]
    by: _Process


class _Collected(_Signable):
    finished: list[_Count]


class _Update(BaseModel):
    """Looked at by `update_of`."""


class _Note(BaseModel):
    """Words that decide nothing."""


KINDS: Mapping[str, tuple[type[BaseModel], ...]] = {
    "create": (_Create,),
    "add": (_Update,),
    "snapshot": (_Snapshot,),
    "promote": (_Move,),
    "revert": (_Move,),
    "tag": (_Said,),
    "retire": (_Said,),
    "hold": (_Hold,),
    "release": (_Said,),
    "look": (_Look,),
    "policy": (_Signed,),
    "approve": (_Signed,),
    "revoke": (_Reason, _Signed),
    "gc": (_Collection, _Taken, _Collected),
    "import": (_Note,),
    "export": (_Note,),
    "verify": (_Note,),
}
"""The kinds of events that this version writes, each with the forms of its body."""
_NAMED = ("promote", "revert", "tag")
_OF_UPDATES = ("add", "snapshot", "promote", "revert", "tag", "retire", "hold", "release", "approve", "revoke")


def check_event(event: Event, where: str) -> None:
    """Raises EventMalformed for an event that no version writes, UnknownKind for one of a kind that this version does not know.

    Its hash, its place in the log and its signatures are for others to check.
    """
    at = f"{where}: event {str(event.seq)[:20]}"
    try:
        _Event.model_validate({one.name: getattr(event, one.name) for one in fields(event)})
    except ValidationError as error:
        raise _malformed(error, at) from error
    if event.kind not in KINDS:
        raise UnknownKind(f"kind {event.kind!r} is not known", where=at, then="Install the version of selectune that wrote it.")
    try:
        if event.kind in _NAMED:
            check_name(event.name or "")
        elif event.name is not None:
            raise RegistryError(f"an event of kind {event.kind} has the name {event.name[:80]!r}")
        if event.kind in _OF_UPDATES and not is_digest(event.subject or ""):
            raise RegistryError(f"{str(event.subject)[:80]!r} is no update's id")
        if event.kind == "add":
            for name in update_of(event).attachments:
                check_attachment(name)
    except (RegistryError, TypeError) as error:
        text = error.what if isinstance(error, RegistryError) else str(error)
        raise EventMalformed(text, where=at, then=_THEN) from error
    _check_body(event, at)


_THEN = "Take nothing from there; find out who wrote it."


def _check_body(event: Event, at: str) -> None:
    faults = []
    for form in KINDS[event.kind]:
        try:
            form.model_validate(dict(event.body))
        except ValidationError as error:
            faults.append(error)
        else:
            return
    raise _malformed(faults[0], f"{at}: {event.kind}") from faults[0]


def _malformed(error: ValidationError, where: str) -> EventMalformed:
    first = error.errors()[0]
    return EventMalformed(f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}", where=where, then=_THEN)
