"""Attacks on approvals, policies, heads and the log: each is refused by its own error, before a weight is used."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from delta_fixtures import model_of, quick_disk, tied
from governance_fixtures import Governed, governed, policy_of, rewrite
from selectune.delta import apply
from selectune.errors import (
    BadSignature,
    ClockApart,
    DocumentError,
    KeyFileError,
    NotApproved,
    OwnApproval,
    PolicyRefused,
    RegistryError,
    RevokedKey,
    RevokedVersion,
    StaleApproval,
    UnknownKey,
    Untrusted,
    VerdictRefused,
    VerifyFailed,
    WrongMeaning,
    WrongParent,
    WrongRole,
)
from selectune.governance import Approval, Envelope, PrivateKey, Witness, approve, seal
from selectune.governance.documents import now_text
from selectune.governance.heads import SignedHead
from selectune.registry import Registry
from selectune.registry.signatures import target_of


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    return governed(tmp_path / "registry", keys, deltas)


def forged(envelope: Envelope, **changes: Any) -> Envelope:
    """The envelope with another text below the old signature."""
    return replace(
        envelope, payload=json.dumps({**json.loads(envelope.payload), **changes}, sort_keys=True, separators=(",", ":")).encode()
    )


def test_a_version_that_author_and_approver_signed_is_promoted_and_loaded(ours: Governed) -> None:
    ours.release(0)
    admitted = ours.registry.admit("production")
    assert admitted.update.id == ours.ids[0]
    assert [delta.child for delta in admitted.deltas] == [admitted.update.child]
    assert any("approved for production by Ben Boss (approver)" in note for note in admitted.notes)
    assert ours.registry.verify().demand().policy == ours.policy.digest


def test_a_name_that_needs_approval_does_not_move_without_it(ours: Governed) -> None:
    with pytest.raises(NotApproved, match="0 of 1 approvals"):
        ours.promote(0)
    ours.promote(0, "candidate")
    assert ours.registry.names() == {"candidate": ours.ids[0]}
    ours.approve(0)
    with pytest.raises(NotApproved, match="nobody has signed as its author"):
        ours.promote(0)


def test_two_approvals_are_of_two_people(ours: Governed) -> None:
    ours.change(names={"production": {"approvals": 2}})
    ours.submit(0)
    ours.approve(0)
    ours.approve(0)
    with pytest.raises(NotApproved, match="1 of 2 approvals"):
        ours.promote(0)
    ours.approve(0, "cy")
    ours.promote(0)


@pytest.mark.parametrize("changes", [{"name": "Ada Admin"}, {"update": "0" * 64}, {"meaning": "approved for production!"}])
def test_a_forged_approval_is_refused(ours: Governed, changes: dict[str, str]) -> None:
    ours.submit(0)
    good = ours.approve(0)
    false = forged(good, **{**changes, "update": ours.ids[1] if "update" in changes else ours.ids[0]})
    with pytest.raises(BadSignature, match="does not fit the bytes"):
        ours.registry.record(false)


def test_a_forged_approval_in_the_database_is_refused_when_it_is_used(ours: Governed) -> None:
    ours.submit(0)
    good = ours.approve(0)
    ours.submit(1)
    ours.insert("approve", forged(good, update=ours.ids[1]), ours.ids[1])
    with pytest.raises(BadSignature):
        ours.promote(1)
    assert any(problem.kind == "approve" and "BadSignature" in problem.text for problem in ours.registry.verify().problems)


def test_an_approval_of_another_record_is_refused(ours: Governed) -> None:
    ours.submit(0)
    ours.submit(1)
    ours.insert("approve", ours.approve(0), ours.ids[1])
    with pytest.raises(WrongMeaning, match=f"it is for update {ours.ids[0][:12]}, not {ours.ids[1][:12]}"):
        ours.promote(1)


def test_an_approval_for_another_name_does_not_count(ours: Governed) -> None:
    ours.submit(0)
    ours.approve(0, name="candidate")
    with pytest.raises(WrongMeaning, match="'approved for candidate', not 'approved for production'"):
        ours.promote(0)


def test_an_author_cannot_approve(ours: Governed) -> None:
    ours.submit(0, "cy")
    with pytest.raises(OwnApproval, match="Cy Second is its author"):
        ours.approve(0, "cy")
    ours.approve(1, "cy")
    with pytest.raises(OwnApproval):
        ours.submit(1, "cy")


def test_an_authors_approval_in_the_database_is_refused_when_it_is_used(ours: Governed) -> None:
    ours.submit(0, "cy")
    target = target_of(ours.registry.show(ours.ids[0]))
    ours.insert("approve", approve(ours.policy, ours.keys["cy"], ("approver", "production"), target, ours.clock()), ours.ids[0])
    with pytest.raises(OwnApproval):
        ours.promote(0)


def test_who_added_an_update_under_the_approvers_name_cannot_approve_it(ours: Governed, deltas: list[Path]) -> None:
    from selectune.registry import Update

    id_ = ours.registry.add(Update(skill="x", verdict="passed", actor="ben boss"), deltas[0])
    with pytest.raises(OwnApproval):
        ours.registry.approve(id_, ours.keys["ben"])
    ours.registry.approve(id_, ours.keys["ann"], role="author")
    target = target_of(ours.registry.show(id_))
    ours.insert("approve", approve(ours.policy, ours.keys["ben"], ("approver", "production"), target, ours.clock()), id_)
    with pytest.raises(OwnApproval):
        ours.registry.promote(id_, "production", "why", "ann")


def test_one_person_may_do_both_where_the_policy_says_so_and_it_is_printed(ours: Governed) -> None:
    ours.change(single_person=True)
    ours.submit(0, "cy")
    ours.approve(0, "cy")
    ours.promote(0)
    assert "single person: the policy lets an author approve an update of theirs" in ours.registry.admit("production").notes


def test_a_key_that_is_not_in_the_policy_is_refused(ours: Governed) -> None:
    with pytest.raises(UnknownKey, match="is not in the policy"):
        ours.approve(0, "mallory")


def test_somebody_without_the_role_is_refused(ours: Governed) -> None:
    with pytest.raises(WrongRole, match="Ann Author is author, not approver"):
        ours.approve(0, "ann")
    with pytest.raises(WrongRole, match="Ben Boss is approver, not author"):
        ours.submit(0, "ben")


def test_a_name_on_an_approval_that_is_not_the_keys_is_refused(ours: Governed) -> None:
    target = target_of(ours.registry.show(ours.ids[0]))
    made = approve(ours.policy, ours.keys["ben"], ("approver", "production"), target, ours.clock())
    false = forged(made, name="Cy Second")
    with pytest.raises(WrongMeaning, match="signed as Cy Second, with a key of Ben Boss"):
        ours.registry.record(seal(Approval.parse(false.payload, "x"), ours.keys["ben"]))


def test_an_author_cannot_say_what_an_approver_says(ours: Governed) -> None:
    target, utc = target_of(ours.registry.show(ours.ids[0])), now_text(ours.clock())
    said = {"name": "Ann Author", "role": "author", "meaning": "approved for production", "utc": utc}
    false = seal(Approval.model_validate({**said, "update": target.update, "record": target.record}), ours.keys["ann"])
    with pytest.raises(WrongMeaning, match="'approved for production' is not for an author to say"):
        ours.registry.record(false)
    ours.insert("approve", false, target.update)
    ours.submit(0, "cy")
    with pytest.raises(WrongMeaning):
        ours.promote(0)


def test_a_revoked_key_is_refused_and_what_it_signed_counts_no_more(ours: Governed) -> None:
    ours.release(0)
    ours.change(revoked=[ours.keys["ben"].public.id])
    with pytest.raises(RevokedKey, match="is revoked"):
        ours.approve(1)
    with pytest.raises(RevokedKey, match="was revoked"):
        ours.registry.admit("production")
    assert [problem.kind for problem in ours.registry.verify().problems] == ["name"]
    ours.approve(0, "cy")
    assert ours.registry.admit("production").update.id == ours.ids[0]


def test_what_somebody_signed_who_has_left_still_counts(ours: Governed) -> None:
    ours.release(0)
    people = [person.model_dump(mode="json") for person in ours.policy.people if person.name != "Ben Boss"]
    ours.change(people=people)
    assert ours.registry.admit("production").update.id == ours.ids[0]
    with pytest.raises(UnknownKey):
        ours.approve(1)


def test_an_edited_event_is_refused(ours: Governed) -> None:
    ours.release(0)
    import sqlite3

    connection = sqlite3.connect(Path(ours.registry.where) / "registry.sqlite")
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute("UPDATE events SET actor = 'mallory' WHERE seq = 2")
    connection.commit()
    connection.close()
    with pytest.raises(VerifyFailed, match="event 2: was edited"):
        ours.registry.admit("production")
    with pytest.raises(VerifyFailed):
        ours.promote(1)


def test_a_record_that_changed_after_its_approval_is_refused(ours: Governed) -> None:
    ours.submit(2)
    ours.approve(2)
    with pytest.raises(VerdictRefused, match="the gate's word is failed, and the policy wants passed"):
        ours.promote(2)

    def pass_it(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["body"] = row["body"].replace('"verdict":"failed"', '"verdict":"passed"')

    ours.rewrite(pass_it)
    with pytest.raises(StaleApproval, match=r"the record was .* when Ben Boss signed it"):
        ours.promote(2)


def test_a_version_that_was_revoked_is_neither_loaded_nor_named_nor_reverted_to(ours: Governed) -> None:
    ours.release(0)
    ours.release(1)
    ours.registry.revoke(ours.ids[0], "poisoned records", "ben", ours.keys["ben"])
    for wanted in (ours.ids[0], ours.ids[0][:8]):
        with pytest.raises(RevokedVersion, match=r"was revoked by Ben Boss at .*: poisoned records"):
            ours.registry.admit(wanted)
    with pytest.raises(RevokedVersion):
        ours.registry.revert("production", "back", "ann")
    with pytest.raises(RevokedVersion):
        ours.promote(0, "candidate")
    with pytest.raises(RevokedVersion):
        ours.approve(0)
    with pytest.raises(RegistryError, match="revoked already"):
        ours.registry.revoke(ours.ids[0], "again", "ben", ours.keys["ben"])
    assert ours.registry.admit("production").update.id == ours.ids[1]
    assert ours.registry.verify().ok


def test_a_name_that_was_moved_behind_the_policys_back_is_found(ours: Governed) -> None:
    ours.registry.revoke(ours.ids[0], "poisoned records", "ben", ours.keys["ben"])
    for name, number, kind in (("old", 0, "RevokedVersion"), ("production", 1, "NotApproved")):
        event = {**ours.registry._event("promote", "mallory"), "name": name, "subject": ours.ids[number]}
        ours.registry._log.append({**event, "body": {"previous": None, "reason": "x", "verdict": "passed"}})
        assert [problem.text.split(":")[0] for problem in ours.registry.verify().problems if problem.subject == name] == [kind]
    with pytest.raises(NotApproved):
        ours.registry.admit("production")


def test_a_revocation_needs_a_reason_and_somebody_who_may(ours: Governed) -> None:
    with pytest.raises(RegistryError, match="the reason or the actor is empty"):
        ours.registry.revoke(ours.ids[0], " ", "ben", ours.keys["ben"])
    with pytest.raises(RegistryError, match="wants revocations signed"):
        ours.registry.revoke(ours.ids[0], "bad", "ben")
    with pytest.raises(WrongRole):
        ours.registry.revoke(ours.ids[0], "bad", "ann", ours.keys["ann"])
    with pytest.raises(UnknownKey):
        ours.registry.revoke(ours.ids[0], "bad", "x", ours.keys["mallory"])


def test_a_forged_revocation_stops_the_version_until_somebody_has_looked(ours: Governed) -> None:
    ours.release(0)
    ours.insert("revoke", ours.submit(1), ours.ids[0])
    with pytest.raises(RevokedVersion, match="its signature does not count"):
        ours.registry.admit("production")
    assert any(problem.kind == "revoke" for problem in ours.registry.verify().problems)


def test_a_policy_that_no_admin_of_the_one_before_signed_is_refused(ours: Governed) -> None:
    mine = policy_of({**ours.keys, "ada": ours.keys["mallory"]}, ours.policy)
    for who in ("mallory", "ben"):
        with pytest.raises(PolicyRefused, match="no admin of the policy before it has signed"):
            ours.registry.set_policy(seal(mine, ours.keys[who]))
    ours.insert("policy", seal(mine, ours.keys["mallory"]), mine.digest)
    with pytest.raises(PolicyRefused):
        ours.approve(0)
    with pytest.raises(PolicyRefused):
        ours.registry.admit(ours.ids[0])
    with pytest.raises(PolicyRefused):
        ours.promote(0, "candidate")
    with pytest.raises(PolicyRefused):
        ours.change()


def test_an_older_policy_is_not_put_in_force_again(ours: Governed) -> None:
    first = seal(ours.policy, ours.keys["ada"])
    ours.change(names={"production": {"approvals": 2}})
    with pytest.raises(PolicyRefused, match="says that the policy before it is none"):
        ours.registry.set_policy(first)


def test_a_policy_whose_admin_lost_the_role_signs_no_other(ours: Governed) -> None:
    people = [{**person.model_dump(mode="json"), "roles": ["author"]} for person in ours.policy.people if person.name == "Ada Admin"]
    people += [{**person.model_dump(mode="json"), "roles": ["admin"]} for person in ours.policy.people if person.name == "Ben Boss"]
    ours.change(people=people)
    with pytest.raises(PolicyRefused, match="Ada Admin is author, not admin"):
        ours.change()


def test_a_signature_of_another_kind_of_document_is_refused(ours: Governed) -> None:
    head = seal(SignedHead(registry="0" * 64, count=1, hash="0" * 64, utc="2026-11-24T12:00:00Z"), ours.keys["ben"])
    with pytest.raises(DocumentError, match="neither an approval nor a revocation"):
        ours.registry.record(head)
    made = ours.approve(0)
    with pytest.raises(BadSignature):
        replace(made, payload_type="application/vnd.selectune.head+json").verify(ours.keys["ben"].public)


def test_clocks_that_are_far_apart_are_refused(ours: Governed) -> None:
    target = target_of(ours.registry.show(ours.ids[0]))
    for minutes in (-11, 11):
        late = approve(ours.policy, ours.keys["ben"], ("approver", "production"), target, ours.clock.now + timedelta(minutes=minutes))
        with pytest.raises(ClockApart, match="more than 10 minutes apart"):
            ours.registry.record(late)
    ours.clock.now -= timedelta(hours=1)
    with pytest.raises(ClockApart, match="and this machine"):
        ours.approve(0)


def test_an_approval_that_was_entered_long_after_it_was_signed_does_not_count(ours: Governed) -> None:
    ours.submit(0)
    made = approve(ours.policy, ours.keys["ben"], ("approver", "production"), target_of(ours.registry.show(ours.ids[0])), ours.clock())
    ours.clock.now += timedelta(hours=1)
    ours.insert("approve", made, ours.ids[0])
    with pytest.raises(ClockApart):
        ours.promote(0)


def test_a_clock_that_went_back_is_found_in_the_log(ours: Governed) -> None:
    ours.clock.now -= timedelta(hours=1)
    ours.registry._log.append({**ours.registry._event("look", "x"), "body": {"sets": {}, "alpha": 0.1, "total": 0.1, "recipe": ""}})
    assert any("is before that of the event before it" in problem.text for problem in ours.registry.verify().problems)


def test_a_delta_on_another_base_is_refused(ours: Governed) -> None:
    ours.release(0)
    (delta,) = ours.registry.admit("production").deltas
    assert apply(model_of(tied()), delta).id == ours.registry.show("production").child
    with pytest.raises(WrongParent):
        apply(model_of(tied(seed=5)), delta)


@pytest.mark.parametrize("which", ["delta", "measurement"])
def test_an_object_that_was_swapped_is_refused(ours: Governed, which: str) -> None:
    ours.release(0)
    update = ours.registry.show("production")
    digest = update.delta if which == "delta" else update.attachments["measurement.json"]
    ours.registry.blob(digest).write_bytes(b"something else")
    with pytest.raises(RegistryError, match="is damaged"):
        ours.registry.admit("production")


def test_a_tail_that_was_cut_is_found_with_the_head_and_nothing_is_loaded(ours: Governed, tmp_path: Path) -> None:
    ours.release(0)
    place = str(tmp_path / "elsewhere.json")
    watched = ours.witnessed(place)
    watched.revoke(ours.ids[0], "poisoned", "ben", ours.keys["ben"])
    rewrite(watched, lambda rows: rows.pop())
    assert ours.registry.admit("production").update.id == ours.ids[0], "the log alone cannot show it"
    with pytest.raises(VerifyFailed, match="the log was cut"):
        watched.admit("production")
    with pytest.raises(VerifyFailed, match="the log was cut"):
        watched.revert("production", "x", "x")
    assert [problem.kind for problem in watched.verify_signed(place).problems] == ["head"]


def test_a_fork_of_the_log_is_found_with_the_head_which_stays(ours: Governed, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere.json"
    watched = ours.witnessed(str(place))
    ours.submit(0)
    watched.approve(ours.ids[0], ours.keys["ben"])
    kept = place.read_bytes()
    rewrite(watched, lambda rows: rows.pop())
    ours.approve(1)
    for act in (
        lambda: watched.admit(ours.ids[0]),
        lambda: watched.promote(ours.ids[0], "x", "y", "z"),
        lambda: watched.approve(ours.ids[1], ours.keys["ben"]),
        lambda: watched.keep_head(Witness(place=str(place), key=ours.keys["ada"])),
    ):
        with pytest.raises(VerifyFailed, match="the log was rewritten"):
            act()
    assert place.read_bytes() == kept
    assert watched.verify_signed(str(place)).problems[0].text.startswith("the log was rewritten")


def test_a_head_of_another_key_or_with_another_text_is_refused(ours: Governed, tmp_path: Path) -> None:
    place = str(tmp_path / "elsewhere.json")
    ours.registry.keep_head(Witness(place=place, key=ours.keys["mallory"]))
    with pytest.raises(UnknownKey, match="the head is signed with key"):
        ours.registry.verify_signed(place)
    with pytest.raises(UnknownKey):
        ours.registry.verify_signed(place, ours.keys["ada"].public)
    assert ours.registry.verify_signed(place, ours.keys["mallory"].public).ok
    with pytest.raises(UnknownKey):
        ours.witnessed(place).admit(ours.ids[0])
    document = json.loads(Path(place).read_text())
    document["payload"] = base64.b64encode(base64.b64decode(document["payload"]).replace(b'"count":5', b'"count":4')).decode()
    Path(place).write_text(json.dumps(document))
    with pytest.raises(BadSignature):
        ours.registry.verify_signed(place, ours.keys["mallory"].public)


def test_a_log_that_was_made_anew_is_found_with_the_head(ours: Governed, tmp_path: Path) -> None:
    place = str(tmp_path / "elsewhere.json")
    watched = ours.witnessed(place)
    watched.approve(ours.ids[0], ours.keys["ben"])
    rewrite(watched, lambda rows: rows[0].update(actor="mallory"))
    with pytest.raises(VerifyFailed, match="another registry"):
        watched.admit(ours.ids[0])
    with pytest.raises(VerifyFailed, match="another registry"):
        watched.verify_signed(place)


def test_a_policy_that_wants_a_signed_head_lets_no_name_move_without_one(ours: Governed, tmp_path: Path) -> None:
    ours.change(signed_head=True)
    with pytest.raises(RegistryError, match=r"signed and kept elsewhere.*SELECTUNE_HEAD"):
        ours.promote(0, "candidate")
    place = tmp_path / "elsewhere.json"
    checking = Registry.open(ours.registry.where, witness=Witness(place=str(place), key=ours.keys["ada"].public))
    before = ours.registry.head()
    with pytest.raises(KeyFileError, match="is public, and a head has to be signed"):
        checking.promote(ours.ids[0], "candidate", "why", "ann")
    assert ours.registry.head() == before
    ours.witnessed(str(place)).promote(ours.ids[0], "candidate", "why", "ann")
    assert ours.registry.verify_signed(str(place)).ok
    assert ours.registry.verify_signed(str(place)).events == json.loads(base64.b64decode(json.loads(place.read_text())["payload"]))["count"]


def test_without_a_policy_names_move_as_ever_and_verify_says_so(tmp_path: Path, deltas: list[Path], keys: dict[str, PrivateKey]) -> None:
    from selectune.registry import Update

    registry = Registry.open(tmp_path / "r", create=True)
    id_ = registry.add(Update(skill="x", verdict="failed"), deltas[0])
    registry.promote(id_, "production", "why", "ann")
    assert registry.verify().demand().policy is None
    assert registry.admit("production").notes == ()
    with pytest.raises(RegistryError, match="there is no policy"):
        registry.approve(id_, keys["ben"])
    registry.revoke(id_, "poisoned", "ann")
    with pytest.raises(RevokedVersion):
        registry.admit("production")


def test_every_refusal_ends_a_program_with_one() -> None:
    assert {kind.exit_code for kind in (Untrusted, *Untrusted.__subclasses__())} == {1}
    assert len(Untrusted.__subclasses__()) == 13
