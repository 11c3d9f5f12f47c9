"""One version as one file: written the same each time, and read as if an enemy had written it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from governance_fixtures import Governed, governed
from selectune.cli import app
from selectune.errors import Collected, EventEdited, EventMalformed, ObjectDamaged, Oversize, RevokedVersion, SelectuneError, StorageError
from selectune.governance import PrivateKey, seal
from selectune.hashing import canonical
from selectune.registry import Registry
from selectune.registry.collecting import Keep
from selectune.registry.packing import MAGIC


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    return governed(tmp_path / "registry", keys, deltas)


@pytest.fixture(name="anywhere")
def _anywhere(place: str, keys: dict[str, PrivateKey], deltas: list[Path]) -> Governed:
    """The same in a place of each kind."""
    return governed(place, keys, deltas)


@pytest.fixture(name="file")
def _file(ours: Governed, tmp_path: Path) -> Path:
    return packed(ours, tmp_path)


def packed(there: Governed, tmp_path: Path) -> Path:
    """The second update, released and in a file."""
    there.release(1)
    there.registry.export("production", tmp_path / "v2.selectune", "ann")
    return tmp_path / "v2.selectune"


def taken_apart(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    return json.loads(data[16 : 16 + length]), data[16 + length :]


def put_together(file: Path, header: Any, objects: bytes) -> None:
    text = header if isinstance(header, bytes) else canonical(header)
    file.write_bytes(MAGIC + len(text).to_bytes(8, "little") + text + objects)


def empty(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "theirs", create=True)


def test_a_version_goes_from_one_registry_to_another_in_a_file(anywhere: Governed, another: str, tmp_path: Path) -> None:
    ours, theirs = anywhere, Registry.open(another, create=True)
    file = packed(ours, tmp_path)
    found = theirs.import_pack(file, "zoe")
    assert (found.update, found.added) == (ours.ids[1], tuple(ours.ids[:2]))
    assert theirs.chain(ours.ids[1]) == ours.registry.chain(ours.ids[1])
    assert theirs.attachment(ours.ids[1], "measurement.json") == b'{"n":1}'
    assert theirs.verify().ok
    assert (found.approvals, len(found.refused)) == (0, 2)  # nobody's policy is in force there
    head = theirs.head()
    assert theirs.import_pack(file, "zoe").added == ()
    assert theirs.head() == head


def test_the_log_says_what_went_out_and_what_came_in(anywhere: Governed, another: str, tmp_path: Path) -> None:
    ours, theirs = anywhere, Registry.open(another, create=True)
    file = packed(ours, tmp_path)
    theirs.import_pack(file, "zoe")
    out, into = ours.registry._log.read()[-1], theirs._log.read()[-1]
    assert (out.kind, out.actor, out.subject, into.kind, into.actor, into.subject) == (
        *("export", "ann", ours.ids[1]),
        *("import", "zoe", ours.ids[1]),
    )
    assert out.body["sha256"] == into.body["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_version_is_written_the_same_each_time(anywhere: Governed, tmp_path: Path) -> None:
    file = packed(anywhere, tmp_path)
    anywhere.registry.export(anywhere.ids[1], tmp_path / "again.selectune", "bob")
    assert (tmp_path / "again.selectune").read_bytes() == file.read_bytes()


def test_approvals_count_where_the_policy_knows_their_signers(anywhere: Governed, another: str, tmp_path: Path) -> None:
    ours, theirs = anywhere, Registry.open(another, create=True, clock=anywhere.clock)
    file = packed(ours, tmp_path)
    theirs.set_policy(seal(ours.policy, ours.keys["ada"]))
    found = theirs.import_pack(file, "zoe")
    assert (found.approvals, found.refused) == (2, ())
    theirs.promote(ours.ids[1], "production", "approved elsewhere", "zoe")
    assert theirs.admit("production").update.id == ours.ids[1]


def test_a_revoked_version_does_not_come_in(ours: Governed, file: Path, tmp_path: Path) -> None:
    ours.registry.revoke(ours.ids[1], "wrong data", "ben", ours.keys["ben"])
    ours.registry.export(ours.ids[1], file, "ann")
    with pytest.raises(RevokedVersion, match=r"was revoked there by Ben Boss"):
        empty(tmp_path).import_pack(file, "zoe")


def test_a_collected_version_is_not_exported(anywhere: Governed, tmp_path: Path) -> None:
    ours = anywhere
    ours.clock.now = ours.clock.now.replace(year=2030)
    ours.registry.gc(keep=Keep(days=0, candidate_days=0), delete=True)
    with pytest.raises(Collected):
        ours.registry.export(ours.ids[0], tmp_path / "x.selectune", "ann")
    assert not (tmp_path / "x.selectune").exists()


def edited(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        header["events"][0][name] = value

    return edit


CASES: dict[str, tuple[Callable[[dict[str, Any]], None], type[SelectuneError]]] = {
    "another actor": (edited("actor", "mallory"), EventEdited),
    "another subject": (edited("subject", "0" * 64), EventEdited),
    "a kind of its own": (edited("kind", "own"), EventMalformed),
    "no event": (lambda header: header["events"].clear(), EventMalformed),
    "an event less": (lambda header: header["events"].pop(0), EventEdited),
    "another field": (lambda header: header.update(more=1), EventMalformed),
    "another update": (lambda header: header.update(update="0" * 64), EventMalformed),
    "a path as an object": (lambda header: header["objects"].append(["../../x", 0]), EventMalformed),
    "an object twice": (lambda header: header["objects"].append(header["objects"][-1]), EventMalformed),
    "an object too many": (lambda header: header["objects"].append(["f" * 64, 0]), EventMalformed),
    "an object less": (lambda header: header["objects"].pop(), Oversize),
    "more bytes than there are": (lambda header: header["objects"].__setitem__(0, [header["objects"][0][0], 1 << 40]), Oversize),
    "a size below nothing": (lambda header: header["objects"].__setitem__(0, [header["objects"][0][0], -1]), EventMalformed),
    "objects in another order": (lambda header: header["objects"].reverse(), EventMalformed),
}


@pytest.mark.parametrize("case", CASES)
def test_a_header_that_lies_is_refused_and_nothing_is_recorded(file: Path, tmp_path: Path, case: str) -> None:
    edit, kind = CASES[case]
    header, objects = taken_apart(file)
    edit(header)
    put_together(file, header, objects)
    theirs = empty(tmp_path)
    with pytest.raises(kind):
        theirs.import_pack(file, "zoe")
    assert theirs.log() == []
    assert theirs.verify().leftovers == ()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"a":NaN}', b"[" * 200_000, b'{ "objects": [] }', b'{"a":1,"a":1}'])
def test_a_header_that_is_no_canonical_json_is_refused(file: Path, tmp_path: Path, text: bytes) -> None:
    put_together(file, text, b"")
    with pytest.raises(EventMalformed):
        empty(tmp_path).import_pack(file, "zoe")


def test_bytes_that_are_not_what_they_were_are_refused(file: Path, place: str, tmp_path: Path) -> None:
    theirs, whole = Registry.open(place, create=True), file.read_bytes()
    for data, kind in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), ObjectDamaged),
        (whole[:-1], Oversize),
        (whole + b"\0", Oversize),
        (b"PK\x03\x04" + whole, EventMalformed),
        (MAGIC, EventMalformed),
        (MAGIC + (1 << 40).to_bytes(8, "little"), Oversize),
    ):
        file.write_bytes(data)
        with pytest.raises(kind):
            theirs.import_pack(file, "zoe")
    assert theirs.log() == []
    assert theirs.verify().demand().leftovers == ()
    with pytest.raises(StorageError, match="there is no such file"):
        theirs.import_pack(tmp_path / "none", "zoe")


def test_the_verbs_tell_a_version_from_a_checkpoint_by_what_is_in_it(ours: Governed, file: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        result = CliRunner().invoke(app, [*words, "--json"])
        return result.exit_code, json.loads(result.stdout)

    moved = file.rename(tmp_path / "model.safetensors")
    code, document = run("import", str(moved), "--registry", str(tmp_path / "new"))
    assert (code, document["update"], document["added"]) == (0, ours.ids[1], ours.ids[:2])
    code, document = run("export", ours.ids[1][:12], str(tmp_path / "out"), "--registry", str(tmp_path / "new"))
    assert (code, document["updates"], document["objects"]) == (0, 2, 4)
    assert run("import", str(moved), "--base", "x", "--registry", str(tmp_path / "new"))[0] == 2
    assert "Give --base" in run("import", str(tmp_path), "--registry", str(tmp_path / "new"))[1]["error"]["message"]
