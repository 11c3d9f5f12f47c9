"""Moves that people sign: where the policy wants them, an event without a good signature is refused, and counts for nothing where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from delta_fixtures import quick_disk
from governance_fixtures import Governed, governed
from moves_fixtures import FORGED, inserted
from selectune.errors import (
    DocumentError,
    NotSigned,
    RegistryError,
    RevokedKey,
    SelectuneError,
    UnknownKey,
    VerifyFailed,
    WrongMeaning,
    WrongRole,
)
from selectune.governance import Policy, PrivateKey, seal
from selectune.registry import Registry


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    return governed(tmp_path / "registry", keys, deltas, signed_moves=True)


def signing(ours: Governed, who: str) -> Registry:
    """The registry, with moves signed by somebody."""
    return Registry.open(ours.registry.where, clock=ours.clock, signer=ours.keys[who])


def test_every_move_is_signed_by_who_has_the_key_and_counts(ours: Governed) -> None:
    ann, ben = signing(ours, "ann"), signing(ours, "ben")
    assert ann.promote(ours.ids[0], "candidate", "because", "whoever").actor == "Ann Author"
    ann.promote(ours.ids[1], "candidate", "better", "whoever")
    ann.revert("candidate", "worse", "whoever")
    ann.tag(ours.ids[0], "v1", "because")
    ann.hold(ours.ids[1], date(2030, 1, 1), "audit", "x")
    ben.release(ours.ids[1], "done", "x")
    ben.retire(ours.ids[2], "failed", "x")
    made = ours.registry._log.read()[-7:]
    assert [(event.kind, event.actor) for event in made] == [
        *((kind, "Ann Author") for kind in ("promote", "promote", "revert", "tag", "hold")),
        *((kind, "Ben Boss") for kind in ("release", "retire")),
    ]
    assert ours.registry.verify().ok
    assert ours.registry.admit("candidate").update.id == ours.ids[0]
    assert ours.registry.admit("v1").update.id == ours.ids[0]


@pytest.mark.parametrize("verb", ["promote", "revert", "tag", "retire", "hold", "release", "gc"])
def test_a_move_without_a_key_is_refused(ours: Governed, verb: str) -> None:
    signing(ours, "ann").promote(ours.ids[0], "candidate", "because", "x")
    signing(ours, "ann").promote(ours.ids[1], "candidate", "because", "x")
    signing(ours, "ann").hold(ours.ids[2], date(2030, 1, 1), "audit", "x")
    acts: dict[str, Callable[[Registry], object]] = {
        "promote": lambda one: one.promote(ours.ids[2], "candidate", "because", "ann"),
        "revert": lambda one: one.revert("candidate", "because", "ann"),
        "tag": lambda one: one.tag(ours.ids[0], "v1"),
        "retire": lambda one: one.retire(ours.ids[0], "old", "ann"),
        "hold": lambda one: one.hold(ours.ids[0], date(2030, 1, 1), "audit", "ann"),
        "release": lambda one: one.release(ours.ids[2], "done", "ann"),
        "gc": lambda one: one._ledger.deciding().__enter__().append({**one._event("gc", "ann"), "body": {"finished": []}}),
    }
    before = len(ours.registry._log.read())
    with pytest.raises(NotSigned, match=f"the policy wants a {verb} signed"):
        acts[verb](ours.registry)
    assert len(ours.registry._log.read()) == before


def test_what_takes_something_away_is_not_for_an_author_to_sign(ours: Governed) -> None:
    with pytest.raises(WrongRole, match="Ann Author signed a retire as author"):
        signing(ours, "ann").retire(ours.ids[0], "old", "x")
    with pytest.raises(UnknownKey, match="is not in the policy"):
        signing(ours, "mallory").tag(ours.ids[0], "v1")
    ours.change(signed_moves=True, revoked=[ours.keys["ben"].public.id])
    with pytest.raises(RevokedKey, match="is revoked"):
        signing(ours, "ben").tag(ours.ids[0], "v1")


def test_a_key_without_a_policy_is_refused_and_a_policy_may_leave_signing_to_people(
    tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]
) -> None:
    ours = governed(tmp_path / "registry", keys, deltas)
    ours.registry.tag(ours.ids[0], "v1")
    signing(ours, "ann").tag(ours.ids[0], "v2")
    assert ours.registry.verify().ok
    plain = Registry.open(tmp_path / "plain", create=True, signer=keys["ann"])
    first = plain.add(replace(ours.registry.show(ours.ids[0]), parent=None, id=""), deltas[0])
    with pytest.raises(RegistryError, match="there is no policy"):
        plain.tag(first, "v1")


def test_a_move_that_nobody_signed_counts_for_nothing(ours: Governed) -> None:
    signing(ours, "ann").promote(ours.ids[0], "candidate", "because", "x")
    signing(ours, "ann").hold(ours.ids[1], date(2030, 1, 1), "audit", "x")
    log = ours.registry._log
    log.append(inserted(ours, "promote", 1, "candidate", previous=ours.ids[0], verdict=""))
    log.append(inserted(ours, "tag", 1, "v9"))
    log.append(inserted(ours, "retire", 0))
    log.append(inserted(ours, "release", 1))
    for name in ("candidate", "v9"):
        with pytest.raises(NotSigned, match="signed"):
            ours.registry.admit(name)
    standing = ours.registry.standing()
    assert standing.retired == {}
    assert list(standing.held) == [ours.ids[1]]
    assert [problem.kind for problem in ours.registry.verify().problems] == ["promote", "tag", "retire", "release"]
    # The name is set right by somebody who may.
    signing(ours, "ann").promote(ours.ids[0], "candidate", "set right", "x")
    assert ours.registry.admit("candidate").update.id == ours.ids[0]


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_or_replayed_move_counts_for_nothing(ours: Governed, how: str) -> None:
    make, error, words = FORGED[how]
    event = make(ours)
    ours.registry._log.append(event)
    with pytest.raises(error, match=words):
        ours.registry.admit(event["name"])
    report = ours.registry.verify()
    assert [problem.kind for problem in report.problems] == [event["kind"]]
    with pytest.raises(SelectuneError):
        Registry.at(Path(ours.registry.where).parent / "copy", clock=ours.clock).pull(ours.registry)


def test_a_move_signed_twice_the_same_is_refused(ours: Governed) -> None:
    signing(ours, "ann").promote(ours.ids[0], "candidate", "because", "x")
    signing(ours, "ann").promote(ours.ids[1], "candidate", "because", "x")
    first = ours.registry._log.read()[-2]
    ours.registry._log.append(first.said())
    with pytest.raises(WrongMeaning, match="of another event"):
        ours.registry.admit("candidate")


def test_no_revert_leads_back_to_where_an_unsigned_event_pointed(ours: Governed) -> None:
    ann = signing(ours, "ann")
    ann.promote(ours.ids[0], "candidate", "because", "x")
    ours.registry._log.append(inserted(ours, "promote", 1, "candidate", previous=ours.ids[0], verdict="passed"))
    ann.promote(ours.ids[2], "candidate", "set right", "x")
    with pytest.raises(NotSigned, match="signature does not count"):
        ann.revert("candidate", "worse", "x")
    ann.promote(ours.ids[1], "candidate", "after all", "x")
    ann.promote(ours.ids[2], "candidate", "because", "x")
    assert ann.revert("candidate", "worse", "x").update == ours.ids[1]


def test_what_was_signed_before_its_key_was_revoked_stays_where_it_was_put(ours: Governed) -> None:
    signing(ours, "ben").tag(ours.ids[0], "v1")
    ours.change(signed_moves=True, revoked=[ours.keys["ben"].public.id])
    assert ours.registry.admit("v1").update.id == ours.ids[0]
    assert ours.registry.verify().ok


def test_signed_moves_travel_with_the_history(ours: Governed, tmp_path: Path) -> None:
    signing(ours, "ann").promote(ours.ids[0], "candidate", "because", "x")
    copy = Registry.at(tmp_path / "copy", clock=ours.clock)
    copy.pull(ours.registry)
    assert copy.admit("candidate").update.id == ours.ids[0]
    assert copy.verify().ok


def test_a_policy_without_the_word_has_the_bytes_that_it_always_had(ours: Governed) -> None:
    plain = ours.policy.model_copy(update={"signed_moves": False})
    assert b"signed_moves" in ours.policy.to_bytes()
    assert b"signed_moves" not in plain.to_bytes()
    spelled = plain.to_bytes().replace(b'"single_person"', b'"signed_moves":false,"single_person"')
    assert Policy.model_validate_json(spelled) == plain
    envelope = replace(seal(plain, ours.keys["ada"]), payload=spelled)
    with pytest.raises(DocumentError, match="not canonical"):
        envelope.read(Policy, "policy")


def test_an_edited_log_is_refused_before_a_move_is_signed(ours: Governed) -> None:
    ours.rewrite(lambda rows: rows[-1].update(actor="mallory"))
    registry = signing(ours, "ann")
    log: Any = registry._log
    with log.database.transaction(writing=True) as connection:
        connection.exec_driver_sql("UPDATE events SET actor = 'eve' WHERE seq = 2")
    with pytest.raises(VerifyFailed, match="event 2: was edited"):
        registry.tag(ours.ids[0], "v1")
