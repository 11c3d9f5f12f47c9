"""What the log says of people: the policy in force, who signed what, what is revoked, and whether a name may point to an update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from selectune.errors import Collected, NotApproved, NotSigned, OwnApproval, RegistryError, RevokedVersion, VerdictRefused, WrongMeaning
from selectune.governance.policy import Policy, Rule
from selectune.governance.statements import meaning
from selectune.registry.events import Event
from selectune.registry.lineage import collected
from selectune.registry.marks import Hold, Mark, holds, marked
from selectune.registry.signatures import Fault, Given, Signed, signed
from selectune.registry.update import Update

__all__ = ["Standing", "own_approval", "standing", "standing_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What the events add up to."""

    policies: tuple[tuple[int, Policy], ...] = ()
    """Each with the number of its event, in order."""
    given: dict[str, tuple[Given, ...]] = field(default_factory=dict)
    """By update id."""
    revoked: dict[str, Mark] = field(default_factory=dict)
    retired: dict[str, Mark] = field(default_factory=dict)
    held: dict[str, Hold] = field(default_factory=dict)
    collected: dict[str, int] = field(default_factory=dict)
    """The updates whose bytes are gone, each with the number of the event that says so."""
    faults: tuple[Fault, ...] = ()
    moved: dict[str, Fault] = field(default_factory=dict)
    """The names and tags that an event last pointed where they are whose signature does not count."""
    forged: frozenset[tuple[str, str]] = frozenset()
    """Names, each with an update that only such events have pointed it to."""

    @property
    def policy(self) -> Policy | None:
        """The one in force."""
        return self.policies[-1][1] if self.policies else None

    def rule(self, name: str) -> Rule | None:
        """What a name needs, None for a name that needs nothing."""
        return self.policy.names.get(name) if self.policy else None

    def signatures(self, update: str) -> tuple[Given, ...]:
        """Everything that was signed below an update."""
        return self.given.get(update, ())

    def notes(self, update: str) -> list[str]:
        """What has to be printed wherever an update appears."""
        found = []
        if update in self.revoked:
            end = self.revoked[update]
            found.append(f"revoked by {end.actor} at {end.created}: {end.reason}")
        if update in self.retired:
            mark = self.retired[update]
            found.append(f"retired by {mark.actor} at {mark.created}: {mark.reason}")
        if update in self.held:
            hold = self.held[update]
            found.append(f"held until {hold.until} by {hold.actor}: {hold.reason}")
        if update in self.collected:
            found.append(f"collected: its bytes are gone since event {self.collected[update]}")
        for one in self.signatures(update):
            if one.approval and not one.fault:
                said = one.approval
                found.append(f"{said.meaning} by {said.name} ({said.role}) at {said.utc}, key {one.key[:12]}")
            elif one.fault:
                found.append(f"a signature does not count: {one.fault.what}")
        if self.policy and self.policy.single_person and any(one.approval for one in self.signatures(update)):
            found.append("single person: the policy lets an author approve an update of theirs")
        return found

    def demand_sound(self) -> None:
        """Raises what is wrong with the policy's events, if anything is: then nothing that hangs on it can be trusted."""
        for fault in self.faults:
            if fault.kind == "policy":
                raise fault.error

    def demand_alive(self, update: str) -> None:
        """Raises RevokedVersion for an update that was revoked."""
        if update in self.revoked:
            end = self.revoked[update]
            raise RevokedVersion(
                f"update {update[:12]} was revoked by {end.actor} at {end.created}: {end.reason}",
                where="registry",
                then="Use another version: selectune log",
            )

    def demand_kept(self, update: str) -> None:
        """Raises Collected for an update whose bytes `gc` has taken."""
        if update in self.collected:
            raise Collected(
                f"update {update[:12]} was collected (event {self.collected[update]}): its bytes are gone",
                where="registry",
                then="Add it again, or import it from a file or a registry that has it.",
            )

    def demand_current(self, update: str) -> None:
        """Raises RegistryError for an update that was retired: it is loaded as before, and given no name again."""
        if update in self.retired:
            mark = self.retired[update]
            raise RegistryError(
                f"update {update[:12]} was retired by {mark.actor} at {mark.created}: {mark.reason}",
                where="registry",
                then="Promote another version: selectune log",
            )

    def demand_moved(self, name: str) -> None:
        """Raises what is wrong with the signature of the event that pointed this name where it points."""
        if name in self.moved:
            raise self.moved[name].error

    def demand_placed(self, update: str, name: str) -> None:
        """Raises NotSigned for an update that had this name only by events whose signature does not count: no revert leads back to it."""
        if (name, update) in self.forged:
            raise NotSigned(
                f"{name} pointed to {update[:12]} by an event whose signature does not count",
                where=name,
                then=f"Point it to another version: selectune promote ID {name} --reason TEXT",
            )

    def demand(self, update: Update, name: str, *, judged: bool = True) -> None:
        """Raises what speaks against `name` pointing to this update; with `judged` the gate's word counts as well.

        RevokedVersion; VerdictRefused; and for approvals: the fault of one that does not count, OwnApproval, or NotApproved.
        """
        self.demand_sound()
        self.demand_alive(update.id)
        rule, policy = self.rule(name), self.policy
        if rule is None or policy is None:
            return
        where = f"{name} → {update.id[:12]}"
        if judged and update.verdict not in rule.verdicts:
            allowed = " or ".join(verdict or "not judged" for verdict in rule.verdicts)
            raise VerdictRefused(
                f"the gate's word is {update.verdict or 'none: it was not judged'}, and the policy wants {allowed}",
                where=where,
                then="Train a better update, or ask an admin for another policy.",
            )
        ours = self.signatures(update.id)
        good = [one.approval for one in ours if one.approval and not one.fault]
        authors = {one.name for one in good if one.role == "author"}
        approvers = {one.name for one in good if one.meaning == meaning("approver", name)}
        if not policy.single_person:
            if own := sorted(approvers & authors | {one for one in approvers if one.casefold() == update.actor.casefold()}):
                raise own_approval(own[0], where)
            if approvers and not authors:
                raise NotApproved(
                    "nobody has signed as its author", where=where, then="The author signs first: selectune approve ID --role author"
                )
        if len(approvers) < rule.approvals:
            self._explain(ours, name)
            raise NotApproved(
                f"{len(approvers)} of {rule.approvals} approvals are there",
                where=where,
                then="Ask for one: selectune approve ID",
            )

    def _explain(self, ours: Sequence[Given], name: str) -> None:
        """Raises why a signature that is there does not count, the newest first."""
        for one in reversed(ours):
            if one.fault:
                raise one.fault
        for one in reversed(ours):
            if one.approval and one.approval.role == "approver" and one.approval.meaning != meaning("approver", name):
                raise WrongMeaning(
                    f"it is {one.approval.meaning!r}, not {meaning('approver', name)!r}",
                    where=f"approval by {one.approval.name}",
                    then=f"Let it be approved for {name}.",
                )


def own_approval(name: str, where: str) -> OwnApproval:
    """The error for somebody who is author and approver of one update."""
    return OwnApproval(f"{name} is its author and cannot approve it", where=where, then="Ask another person with the role approver.")


def standing(events: Sequence[Event], updates: Iterable[Update]) -> Standing:
    """Reads everything that people signed of `updates`; what is wrong is kept beside it and counts for nothing."""
    known = {update.id: update for update in updates}
    found = signed(events, known.get)
    sound = found.sound(events)
    return standing_of(found, retired=marked(sound, "retire"), held=holds(sound), collected=collected(events))


def standing_of(signed: Signed, *, retired: Mapping[str, Mark], held: Mapping[str, Hold], collected: Mapping[str, int]) -> Standing:
    """What was signed and said, in one."""
    return Standing(
        policies=signed.policies,
        given=dict(signed.given),
        revoked=dict(signed.revoked),
        retired=dict(retired),
        held=dict(held),
        collected=dict(collected),
        faults=(*signed.refused, *signed.faults, *signed.astray),
        moved=dict(signed.moved),
        forged=signed.forged,
    )
