"""Registries in S3, against a server of the tests' own: the same verbs, uploads that go on, and two writers at once."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from moto.s3.responses import S3Response

from database_fixtures import Server
from delta_fixtures import quick_disk
from remotes_fixtures import BUCKET, deltas_in, filled, move_at_once
from selectune.errors import ObjectDamaged, RegistryError, StorageError
from selectune.registry import Registry, multipart, remote
from selectune.registry.remote import RemoteBlobs
from selectune.registry.shelves import RemoteShelf

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="url")
def _url(bucket: str) -> str:
    return f"{bucket}/{uuid4().hex}"


@pytest.fixture(name="ours", scope="module")
def _ours(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("ours")
    registry = Registry.open(folder / "registry", create=True)
    filled(registry, deltas_in(folder))
    return registry


@pytest.fixture(name="big", scope="module")
def _big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four parts of 5 MiB, the last one of 3."""
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(random.Random(0).randbytes(18 * MIB))
    return path


@pytest.fixture(name="sent")
def _sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that are sent, one thread at a time."""
    sent: list[int] = []
    send = multipart._send

    def counting(fs: Any, place: dict[str, str], number: int, data: bytes) -> str:
        sent.append(number)
        return send(fs, place, number, data)

    monkeypatch.setattr(multipart, "PART", 5 * MIB)
    monkeypatch.setattr(multipart, "_THREADS", 1)
    monkeypatch.setattr(multipart, "_send", counting)
    return sent


def test_a_history_goes_to_a_bucket_and_back(ours: Registry, url: str, tmp_path: Path) -> None:
    there = Registry.at(url)
    sent = ours.push(there)
    assert (sent.objects, sent.events) == (6, 5)
    assert ours.push(Registry.at(url)).objects == 0
    back = Registry.at(tmp_path / "back")
    assert back.pull(Registry.open(url)).bytes == sent.bytes
    assert back.head() == ours.head()
    assert back.verify().ok
    assert Registry.open(url).verify().ok


def test_a_bucket_is_a_registry_of_its_own(url: str, tmp_path: Path) -> None:
    registry = Registry.open(url, create=True)
    ids = filled(registry, deltas_in(tmp_path))
    registry.promote(ids[0], "production", "older", "ben")
    registry.revert("production", "newer again", "ben")
    again = Registry.open(url, create=True)
    assert again.show("production").id == ids[2]
    assert [delta.child for delta in again.chain("production")] == [update.child for update in again.log()[::-1]]
    report = again.verify().demand()
    assert (report.events, report.objects, report.leftovers) == (7, 6, ())


def test_two_writers_never_both_write_an_event(url: str, ours: Registry) -> None:
    ours.push(Registry.at(url))
    move_at_once(url, [update.id for update in ours.log()], writers=2, moves=4)


def test_writers_in_processes_of_their_own_lose_no_move(url: str, ours: Registry) -> None:
    ours.push(Registry.at(url))
    ids = [update.id for update in ours.log()]
    code = """
import sys
from selectune.registry import Registry
url, who, *ids = sys.argv[1:]
registry = Registry.open(url)
for turn in range(4):
    registry.promote(ids[turn % 3], f"name-{who}", f"turn {turn}", who)
"""
    both = [subprocess.Popen([sys.executable, "-c", code, url, who, *ids]) for who in ("a", "b")]
    assert [process.wait(120) for process in both] == [0, 0]
    registry = Registry.open(url)
    assert registry.verify().ok
    assert registry.head().count == 5 + 8
    assert len(registry.history("name-a")) == len(registry.history("name-b")) == 4


def test_the_server_honours_if_none_match(url: str) -> None:
    shelf = RemoteShelf(url)
    assert [shelf.create("x", b"first"), shelf.create("x", b"second")] == [True, False]
    assert shelf.get("x", 100) == b"first"


def test_an_upload_goes_on_where_it_was_interrupted(url: str, big: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, moved = RemoteBlobs(url), list[int]()

    def stop(count: int) -> None:
        moved.append(count)
        if len(moved) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blobs.put(big, moved=stop)
    assert sent == [1, 2]
    name = hashlib.sha256(big.read_bytes()).hexdigest()
    assert not blobs.has(name)
    assert blobs.put(big) == name
    # 8 of the 18 MiB are sent again: those that had not arrived.
    assert sent == [1, 2, 3, 4]
    assert blobs.fault(name) is None
    assert blobs.size(name) == 18 * MIB
    assert blobs.put(big) == name
    assert sent == [1, 2, 3, 4]


def test_a_download_whose_connection_breaks_goes_on_with_what_had_arrived(
    url: str, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, asked, answer = RemoteBlobs(url), list[str](), S3Response.get_object

    def breaking(self: Any) -> Any:
        place = self.headers.get("Range", "")
        asked.append(place)
        status, headers, data = answer(self)
        return (status, headers, data[: MIB // 2]) if place.startswith("bytes=10485760-") and broken else (status, headers, data)

    monkeypatch.setattr(S3Response, "get_object", breaking)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(remote, "_cache", remote._Cache())
    monkeypatch.setattr(remote, "_CHUNK", 5 * MIB)
    monkeypatch.setattr(blobs._store.fs, "retries", 1)
    name, broken = blobs.put(big), True
    with pytest.raises(StorageError, match="cannot be read"):
        blobs.read(name)
    (left,) = tmp_path.glob("selectune-partial-*/*.left")
    assert left.read_bytes() == big.read_bytes()[: 10 * MIB]
    asked.clear()
    broken = False
    assert RemoteBlobs(url).read(name) == big.read_bytes()
    assert sorted(asked) == ["bytes=10485760-15728639", "bytes=15728640-18874367"]


def test_a_part_of_other_bytes_is_not_taken_over(url: str, big: Path, sent: list[int]) -> None:
    blobs = RemoteBlobs(url)
    name = hashlib.sha256(big.read_bytes()).hexdigest()
    shelf = blobs._shelf
    place = {"Bucket": BUCKET, "Key": shelf.path(name).partition("/")[2]}
    upload = shelf.fs.call_s3("create_multipart_upload", **place)["UploadId"]
    for number, data in ((1, b"x" * 5 * MIB), (2, big.read_bytes()[5 * MIB : 10 * MIB])):
        shelf.fs.call_s3("upload_part", **place, UploadId=upload, PartNumber=number, Body=data)
    assert blobs.put(big) == name
    assert sent == [1, 3, 4]
    assert blobs.fault(name) is None


def test_a_file_that_changes_while_it_is_sent_is_not_stored(url: str, big: Path, tmp_path: Path, sent: list[int]) -> None:
    path = tmp_path / "changing"
    path.write_bytes(big.read_bytes())
    name = hashlib.sha256(path.read_bytes()).hexdigest()

    def change(_: int) -> None:
        with path.open("r+b") as file:
            file.seek(12 * MIB)
            file.write(b"other")

    blobs = RemoteBlobs(url)
    with pytest.raises(StorageError, match="changed while it was read"):
        blobs.put(path, moved=change)
    assert not blobs.has(name)


def test_two_who_send_the_same_object_both_succeed(url: str, big: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, send, done = RemoteBlobs(url), RemoteBlobs(url), multipart._send, list[str]()

    def other(fs: Any, place: dict[str, str], number: int, data: bytes) -> str:
        if number == 3 and not done:
            done.append("")
            done[0] = two.put(big)
            raise FileNotFoundError("NoSuchUpload")  # S3's word for an upload that is finished; moto answers 500
        return send(fs, place, number, data)

    monkeypatch.setattr(multipart, "_send", other)
    assert one.put(big) == done[0]
    assert sent == [1, 2, 3, 4]
    assert one.fault(done[0]) is None
    with pytest.raises(StorageError, match="there is no such bucket"):
        RemoteBlobs("s3://nobody-has-this/x").put(big)


def test_a_swapped_object_in_a_bucket_is_refused(url: str, ours: Registry, tmp_path: Path) -> None:
    there = Registry.at(url)
    ours.push(there)
    shelf = RemoteShelf(f"{url}/blobs/sha256")
    name = ours.show("production").delta
    size = shelf.size(name)
    assert size
    shelf.fs.pipe_file(shelf.path(name), bytes(size))
    with pytest.raises(ObjectDamaged):
        Registry.at(tmp_path / "new").pull(Registry.open(url))
    assert not (tmp_path / "new" / "registry.sqlite").exists()
    assert next(problem.text for problem in Registry.open(url).verify().problems if problem.kind == "object") == "damaged"
    assert there.fsck(ours).ok


def test_what_cannot_be_reached_or_is_not_there_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="there is no such bucket"):
        Registry.open("s3://nobody-has-this/x", create=True)
    with pytest.raises(RegistryError, match="this is no registry"):
        Registry.open(f"{bucket}/nothing")
    shelf = RemoteShelf(f"{bucket}/x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(shelf.fs, "ls", refuse)
    with pytest.raises(StorageError, match=r"cannot be listed .PermissionError: Access Denied"):
        shelf.sizes()


def test_a_team_keeps_events_in_postgresql_and_objects_in_a_bucket(postgres: Server, ours: Registry, url: str, tmp_path: Path) -> None:
    team = f"{postgres.new_database()}&blobs={url}"
    done = ours.push(Registry.at(team))
    assert (done.objects, done.events) == (6, 5)
    there = Registry.open(team)
    assert there.head() == ours.head()
    assert there.verify().ok
    there.promote(ours.log()[0].id, "staging", "for the team", "ben")
    assert Registry.at(tmp_path / "back").pull(there).events == 6
    assert ours.push(there).behind == 1
