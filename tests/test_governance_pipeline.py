"""A version under a policy as a model and as a signed checkpoint: whatever is wrong is found before a weight of it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import evaluation_fixtures as tiny_models
from delta_fixtures import quick_disk
from governance_fixtures import Clock, Governed, make_keys, policy_of
from pipeline_fixtures import save_model
from selectune.delta import capture
from selectune.errors import NotApproved, RevokedVersion, SelectuneError, VerifyFailed, WrongParent
from selectune.governance import new_key, seal, verify_folder
from selectune.models import load
from selectune.pipeline import load_any, save_full
from selectune.pipeline import versions as pipeline_versions
from selectune.registry import Registry, Update


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Governed:
    """One update of a tiny language model in a folder, under a policy."""
    quick_disk(monkeypatch)
    model = load(str(save_model(tiny_models.llama(), tmp_path / "base")))
    selection = model.map.select(["attention"])
    with capture(model, selection) as captured, torch.no_grad():
        for name in selection.parameters:
            model.net.get_parameter(name).add_(0.5)
    captured.delta.save(tmp_path / "one.delta")
    clock, keys = Clock(), make_keys(tmp_path / "keys")
    registry = Registry.open(tmp_path / "registry", create=True, clock=clock)
    update = Update(skill="digits", verdict="passed", meta={"model": str(tmp_path / "base")})
    ids = [registry.add(update, tmp_path / "one.delta", {"measurement.json": b"{}"})]
    registry.promote(ids[0], "production", "before there was a policy", "ann")
    policy = policy_of(keys)
    registry.set_policy(seal(policy, keys["ada"]))
    return Governed(registry=registry, keys=keys, clock=clock, policy=policy, ids=ids)


def sign_both(ours: Governed) -> None:
    """What the policy asks for."""
    ours.submit(0)
    ours.approve(0)


def test_a_version_that_was_approved_is_loaded_by_its_name(ours: Governed) -> None:
    sign_both(ours)
    wanted = ours.registry.show("production").child
    for name in ("production", "registry:production", f"registry:{ours.ids[0][:8]}"):
        assert load_any(name, ours.registry.where).id == wanted


ATTACKS: dict[str, tuple[Callable[[Governed], object], type[SelectuneError]]] = {
    "no approval": (lambda ours: ours.submit(0), NotApproved),
    "revoked": (lambda ours: (sign_both(ours), ours.registry.revoke(ours.ids[0], "bad", "ben", ours.keys["ben"])), RevokedVersion),
    "an object swapped": (lambda ours: (sign_both(ours), _damage(ours)), SelectuneError),
    "an event taken out": (lambda ours: (sign_both(ours), _take_out(ours)), VerifyFailed),
}


def _damage(ours: Governed) -> None:
    ours.registry.blob(ours.registry.show("production").delta).write_bytes(b"x")


def _take_out(ours: Governed) -> None:
    import sqlite3

    connection = sqlite3.connect(Path(ours.registry.where) / "registry.sqlite")
    connection.execute("DROP TRIGGER events_no_delete")
    connection.execute("DELETE FROM events WHERE seq = 3")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_read_of_a_version_that_may_not_be_loaded(
    ours: Governed, attack: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    act, error = ATTACKS[attack]
    act(ours)
    read: list[str] = []
    monkeypatch.setattr(pipeline_versions, "load", read.append)
    monkeypatch.setattr(pipeline_versions, "save_checkpoint", lambda name, *_, **__: read.append(name))
    with pytest.raises(error):
        load_any("registry:production", ours.registry.where)
    with pytest.raises(error):
        save_full(ours.registry, "production", tmp_path / "out")
    assert read == []
    assert not (tmp_path / "out").exists()


def test_a_candidate_is_loaded_by_its_id_without_approval(ours: Governed) -> None:
    assert load_any(ours.ids[0], ours.registry.where).id == ours.registry.show("production").child


def test_a_head_in_the_environment_is_compared_before_loading(ours: Governed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from governance_fixtures import rewrite

    sign_both(ours)
    ours.witnessed(str(tmp_path / "head.json")).revoke(ours.ids[0], "bad", "ben", ours.keys["ben"])
    rewrite(ours.registry, lambda rows: rows.pop())
    assert load_any("production", ours.registry.where)
    monkeypatch.setenv("SELECTUNE_HEAD", str(tmp_path / "head.json"))
    monkeypatch.setenv("SELECTUNE_HEAD_KEY", str(tmp_path / "keys" / "ada.pub.pem"))
    with pytest.raises(VerifyFailed, match="the log was cut"):
        load_any("production", ours.registry.where)


def test_a_base_that_was_swapped_is_refused(ours: Governed, tmp_path: Path) -> None:
    sign_both(ours)
    save_model(tiny_models.llama(seed=1), tmp_path / "base")
    with pytest.raises(WrongParent):
        load_any("production", ours.registry.where)


def test_a_checkpoint_is_signed_whole_with_who_approved_it(ours: Governed, tmp_path: Path) -> None:
    sign_both(ours)
    key = new_key("release", tmp_path / "keys", "p256", passphrase=None)
    out = save_full(ours.registry, "production", tmp_path / "out", sign=key)
    signed = verify_folder(out, out / "model.sig", key.public)
    assert (signed.name, signed.files) == ("out", len(list(out.iterdir())) - 1)
    assert any("approved for production by Ben Boss" in note for note in json.loads((out / "selectune.json").read_text())["notes"])
    assert load(str(out)).id == ours.registry.show("production").child
