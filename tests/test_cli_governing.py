"""keys, policy, approve, revoke, head, verify and signed checkpoints at the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from governance_fixtures import make_deltas
from selectune.cli import app
from selectune.registry import Registry, Update


class Shell:
    """The program in one folder."""

    def __init__(self, registry: Path) -> None:
        self.registry = str(registry)

    def __call__(self, *arguments: object, code: int = 0) -> Any:
        """The document that a verb prints."""
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def on(self, *arguments: object, code: int = 0) -> Any:
        """The same, of a verb that takes a registry."""
        return self(*arguments, "--registry", self.registry, code=code)

    def text(self, *arguments: object) -> str:
        """What a person reads."""
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture(name="shell")
def _shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    quick_disk(monkeypatch)
    monkeypatch.setenv("SELECTUNE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("SELECTUNE_PASSPHRASE", "secret")
    registry, parent = Registry.open(tmp_path / "registry", create=True), None
    for number, path in enumerate(make_deltas(tmp_path)[:2]):
        parent = registry.add(Update(parent=parent, skill=f"s{number}", verdict="passed"), path)
        registry.promote(parent, f"s{number}", "to name it", "ann")
    return Shell(tmp_path / "registry")


def with_policy(shell: Shell, folder: Path, **changes: Any) -> None:
    """Three people, and a policy in force."""
    people = [
        {"name": name, "roles": roles, "keys": [shell("keys", "new", key)["pem"]]}
        for key, name, roles in (("ada", "Ada", ["admin"]), ("ann", "Ann", ["author"]), ("ben", "Ben", ["approver", "author"]))
    ]
    (folder / "policy.yaml").write_text(yaml.safe_dump({"people": people, "names": {"production": {}}, **changes}))
    signed = shell.on("policy", "sign", folder / "policy.yaml", folder / "policy.json", "--key", "ada")
    assert shell.on("policy", "set", folder / "policy.json") == {"policy": signed["policy"]}


def test_a_version_is_approved_promoted_and_shown_with_who_signed(shell: Shell, tmp_path: Path) -> None:
    assert shell.on("verify")["policy"] is None
    assert "no policy: any update may get any name" in shell.text("verify", "--registry", shell.registry)
    with_policy(shell, tmp_path)
    refused = shell.on("promote", "s0", "production", "--reason", "x", code=1)
    assert refused["error"]["kind"] == "NotApproved"
    shell.on("approve", "s0", "--role", "author", "--key", "ann")
    notes = shell.on("approve", "s0", "--key", "ben")["notes"]
    assert [note.split(" at ")[0] for note in notes] == [
        "submitted for production by Ann (author)",
        "approved for production by Ben (approver)",
    ]
    shell.on("promote", "s0", "production", "--reason", "x")
    shown = shell.on("show", "production")
    assert [one["name"] for one in shown["approvals"]] == ["Ann", "Ben"]
    assert [one["fault"] for one in shown["approvals"]] == [None, None]
    assert "approved for production by Ben" in shell.text("log", "--registry", shell.registry)
    assert shell.on("log")["updates"][1]["notes"] == notes
    assert shell.on("verify")["policy"] == shell.on("policy", "show")["policy"]


def test_a_move_is_signed_with_a_key_where_the_policy_wants_it(shell: Shell, tmp_path: Path) -> None:
    with_policy(shell, tmp_path, names={}, signed_moves=True)
    refused = shell.on("promote", "s0", "candidate", "--reason", "x", code=1)
    assert refused["error"]["kind"] == "NotSigned"
    assert shell.on("promote", "s0", "candidate", "--reason", "x", "--actor", "me", "--key", "ann")["actor"] == "Ann"
    shell.on("promote", "s1", "candidate", "--reason", "x", "--key", "ann")
    shell.on("revert", "candidate", "--reason", "x", "--key", "ann")
    shell.on("tag", "s0", "v1", "--key", "ann")
    shell.on("hold", "s0", "--until", "2099-01-01", "--reason", "x", "--key", "ann")
    assert shell.on("retire", "s1", "--reason", "x", "--key", "ann", code=1)["error"]["kind"] == "WrongRole"
    shell.on("retire", "s1", "--reason", "x", "--key", "ben")
    shell.on("gc", "--delete", "--key", "ben")
    assert shell.on("verify")["ok"]


def test_one_person_who_does_both_is_printed_wherever_the_version_is(shell: Shell, tmp_path: Path) -> None:
    with_policy(shell, tmp_path, single_person=True)
    shell.on("approve", "s0", "--role", "author", "--key", "ben")
    shell.on("approve", "s0", "--key", "ben")
    shell.on("promote", "s0", "production", "--reason", "x")
    for verb in (("log",), ("show", "production")):
        assert "single person: the policy lets an author approve" in shell.text(*verb, "--registry", shell.registry).replace("\n", " ")


def test_a_revoked_version_is_shown_as_one_and_not_applied(shell: Shell, tmp_path: Path) -> None:
    shell.on("revoke", "s1", "--reason", "poisoned", "--actor", "ann")
    assert shell.on("show", "s1")["revoked"]["reason"] == "poisoned"
    assert shell.on("apply", "s1", tmp_path / "out", code=1)["error"]["kind"] == "RevokedVersion"
    assert not (tmp_path / "out").exists()


def test_keys_are_listed_and_shown_without_a_passphrase(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shell("keys", "new", "ann")
    shell("keys", "new", "plain", "--kind", "p256", "--no-passphrase")
    monkeypatch.delenv("SELECTUNE_PASSPHRASE")
    assert [(one["name"], one["kind"]) for one in shell("keys", "list")["keys"]] == [("ann", "ed25519"), ("plain", "p256")]
    assert shell("keys", "show", "ann") == made
    assert shell("keys", "new", "x", code=2)["error"]["message"].startswith("there is no passphrase")
    refused = shell.on("head", "head.json", "--key", "ann", code=2)
    assert "there is no terminal to ask on" in refused["error"]["message"]


def test_a_head_is_kept_by_the_environment_and_checked(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("keys", "new", "ada")
    monkeypatch.setenv("SELECTUNE_HEAD", str(tmp_path / "head.json"))
    assert "SELECTUNE_HEAD_KEY is not set" in shell.on("revert", "s0", "--reason", "x", code=2)["error"]["message"]
    monkeypatch.setenv("SELECTUNE_HEAD_KEY", "ada")
    shell.on("promote", "s1", "other", "--reason", "x")
    checked = shell.on("verify", "--head", tmp_path / "head.json", "--key", tmp_path / "keys" / "ada.pub.pem")
    assert checked["ok"]
    assert checked["head"]["count"] == checked["events"] == 6
    assert "there is no policy" in shell.on("verify", "--head", tmp_path / "head.json", code=2)["error"]["message"]
    shell("keys", "new", "eve")
    assert (
        shell.on("verify", "--head", tmp_path / "head.json", "--key", tmp_path / "keys" / "eve.pub.pem", code=1)["error"]["kind"]
        == "UnknownKey"
    )


def test_a_folders_signature_is_checked(shell: Shell) -> None:
    recorded = Path(__file__).parent / "recorded" / "model-signing"
    arguments = ("verify", recorded / "folder", "--signature", recorded / "theirs.sig", "--key", recorded / "signer.pub.pem")
    assert shell(*arguments)["files"] == 5
    assert shell("verify", recorded, *arguments[2:], code=1)["error"]["kind"] == "OtherBytes"
    assert "belong together" in shell("verify", recorded / "folder", code=2)["error"]["message"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "is no mapping"),
        ("a: [", "is no YAML"),
        ("people: []\n", "people: "),
        ("single_person: false\nsingle_person: true\n", "is no YAML"),
    ],
)
def test_a_policy_file_that_is_none_is_told(shell: Shell, tmp_path: Path, text: str, words: str) -> None:
    shell("keys", "new", "ada")
    (tmp_path / "policy.yaml").write_text(text)
    refused = shell.on("policy", "sign", tmp_path / "policy.yaml", tmp_path / "out.json", "--key", "ada", code=2)
    assert words in refused["error"]["message"]
    assert shell.on("policy", "set", tmp_path / "policy.yaml", code=2)["error"]["kind"] == "DocumentError"
    assert shell.on("policy", "set", tmp_path / "none", code=2)["error"]["kind"] == "DocumentError"
