"""A repository of the Hugging Face Hub as a remote: huggingface_hub's own client, against a stub of the hub's HTTP API on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from hub_stub import Hub, reached
from remotes_fixtures import deltas_in, filled, move_at_once, poison
from selectune.cli import app
from selectune.delta.files import process_name
from selectune.errors import (
    EventEdited,
    EventMalformed,
    HistoriesDiffer,
    LogCut,
    ObjectDamaged,
    ObjectMissing,
    Oversize,
    Overtaken,
    RegistryError,
    StorageError,
)
from selectune.registry import Registry, Update, remote
from selectune.registry import hub as hub_module
from selectune.registry.lineage import condemned
from selectune.registry.partials import resuming

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
URL = "hf://ann/cats"
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)
    # The repository of another test has the same name: what was fetched from there must not help out.
    monkeypatch.setattr(remote, "_cache", remote._Cache())


@pytest.fixture(name="hub")
def _hub() -> Iterator[Hub]:
    with reached() as hub:
        yield hub


@pytest.fixture(name="deltas", scope="module")
def _deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return deltas_in(tmp_path_factory.mktemp("deltas"))


@pytest.fixture(name="ours")
def _ours(tmp_path: Path, deltas: list[Path]) -> Registry:
    registry = Registry.open(tmp_path / "ours", create=True)
    filled(registry, deltas)
    return registry


def commits(hub: Hub, repo: str = "ann/cats") -> list[set[str]]:
    """What each commit added to a repository, the first one, which the hub makes, left out."""
    states = [files.keys() for _, files in hub.repos[repo].commits]
    return [now - before for before, now in pairwise(states)]


def asked(hub: Hub, words: str) -> int:
    return sum(words in one for one in hub.asked)


@pytest.mark.parametrize(
    ("url", "repo"), [(URL, "ann/cats"), ("hf://models/ann/cats@main", "ann/cats"), ("hf://datasets/ann/d", "datasets/ann/d")]
)
def test_a_history_goes_to_a_new_private_repository_and_back_word_for_word(
    url: str, repo: str, hub: Hub, ours: Registry, tmp_path: Path
) -> None:
    sent = ours.push(Registry.at(url))
    assert (sent.objects, sent.skipped, sent.events) == (6, 0, 5)
    assert hub.repos[repo].private
    back = Registry.at(tmp_path / "back")
    assert back.pull(Registry.open(url)).bytes == sent.bytes
    assert back.head() == Registry.open(url).head() == ours.head()
    assert back.verify().ok
    assert Registry.open(url).verify().ok
    assert [delta.child for delta in Registry.open(url).chain("production")] == [delta.child for delta in ours.chain("production")]


def test_a_push_is_three_commits_the_objects_in_one_and_uploads_each_object_once(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    first, events, objects = {"events/00000001.json"}, {f"events/0000000{number}.json" for number in range(2, 6)}, commits(hub)[0]
    assert commits(hub) == [objects, first, events]
    assert {name.rpartition("/")[0] for name in objects} == {"blobs/sha256"}
    assert len(objects) == 6
    assert asked(hub, "PUT /lfs/") == 3, "the deltas; the reports are text, which goes in the commit"


def test_a_second_push_sends_nothing_and_a_third_what_is_missing(hub: Hub, ours: Registry, deltas: list[Path]) -> None:
    ours.push(Registry.at(URL))
    before = len(hub.repos["ann/cats"].commits)
    again = ours.push(Registry.at(URL))
    assert (again.objects, again.skipped, again.events) == (0, 6, 0)
    assert len(hub.repos["ann/cats"].commits) == before
    ours.add(Update(skill="another", actor="ben"), deltas[0], {"note.txt": b"new"})
    more = ours.push(Registry.at(URL))
    assert (more.objects, more.bytes, more.events) == (1, 3, 1)
    assert len(hub.repos["ann/cats"].commits) == before + 2


def test_an_object_that_somebody_removed_is_sent_again(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    delta = f"blobs/sha256/{ours.show('production').delta}"
    hub.commit(hub.repos["ann/cats"], {}, [delta])
    done = ours.push(Registry.at(URL))
    assert (done.objects, done.events) == (1, 0)
    assert delta in hub.repos["ann/cats"].commits[-1][1]


def test_listings_of_several_pages_are_followed_and_large_files_come_in_parts(
    hub: Hub, ours: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.push(Registry.at(URL))
    hub.page = 2
    hub.asked.clear()
    monkeypatch.setattr("selectune.registry.remote._CHUNK", 100)
    back = Registry.at(tmp_path / "back")
    assert back.pull(Registry.open(URL)).objects == 6
    assert back.head() == ours.head()
    assert asked(hub, "paths-info") == 0, "one listing tells every size"


@pytest.fixture(name="big")
def _big(hub: Hub, ours: Registry, deltas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bytes]:
    """An object of ten pieces that lies on the hub: its name, and its bytes."""
    data = Random(0).randbytes(10_000)
    ours.add(Update(skill="big", actor="ann"), deltas[0], {"big.bin": data})
    ours.push(Registry.at(URL))
    monkeypatch.setattr(remote, "_CHUNK", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return hashlib.sha256(data).hexdigest(), data


def test_a_download_whose_connection_breaks_goes_on_with_what_had_arrived(
    hub: Hub, big: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = big
    blobs = Registry.open(URL)._blobs
    hub.cut = 4500
    with pytest.raises(StorageError, match="the hub cannot be used"):
        blobs.read(name)
    (left,) = tmp_path.glob("selectune-partial-*/*.left")
    assert left.read_bytes() == data[:4000], "whole pieces"
    assert stat.S_IMODE(left.parent.stat().st_mode) == 0o700
    hub.cut, hub.sent = None, 0
    # Another process has a folder of its own for what it has fetched, and finds what the first one left.
    monkeypatch.setattr(remote, "_cache", remote._Cache())
    assert Registry.open(URL)._blobs.read(name) == data
    assert hub.sent == 6000 + sum(len(one) for path, one in hub.repos["ann/cats"].commits[-1][1].items() if path.startswith("events/"))
    assert not list(tmp_path.glob("selectune-partial-*/*"))


def test_a_partial_file_whose_bytes_are_wrong_is_thrown_away(hub: Hub, big: tuple[str, bytes], tmp_path: Path) -> None:
    name, data = big
    blobs = Registry.open(URL)._blobs
    hub.cut = 4500
    with pytest.raises(StorageError):
        blobs.read(name)
    (left,) = tmp_path.glob("selectune-partial-*/*.left")
    for wrong in (b"x" * 4000, b"x" * 20_000, data[:3999] + b"x"):
        left.write_bytes(wrong)
        remote._cache.path(f"{URL}/blobs/sha256", name).unlink(missing_ok=True)
        hub.cut = None
        assert blobs.read(name) == data
        assert not left.exists()


def test_what_another_one_is_writing_is_left_to_it_and_what_a_killed_one_wrote_is_not(
    hub: Hub, big: tuple[str, bytes], tmp_path: Path
) -> None:
    name, data = big
    key = remote._cache.path(f"{URL}/blobs/sha256", name).name
    with resuming(key) as mine:
        mine.write_bytes(data[:3000])
        blobs, hub.sent = Registry.open(URL)._blobs, 0
        assert blobs.read(name) == data
        assert hub.sent >= len(data)
        assert mine.read_bytes() == data[:3000]
    dead = tmp_path.joinpath(f"selectune-partial-{os.getuid()}", f"{key}.{process_name().partition('-')[0]}-{_gone()}-0123456789abcdef")
    dead.write_bytes(data[:3000])
    old = dead.with_name("old.left")
    old.touch()
    os.utime(old, (0, 0))
    remote._cache.path(f"{URL}/blobs/sha256", name).unlink()
    hub.sent = 0
    assert blobs.read(name) == data
    assert hub.sent == 7000
    assert not list(dead.parent.iterdir()), "and what is a week old goes"


def _gone() -> int:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_bytes_that_are_not_the_object_s_are_not_kept_for_the_next_time(hub: Hub, big: tuple[str, bytes], tmp_path: Path) -> None:
    name, data = big
    blobs = Registry.open(URL)._blobs
    hub.commit(hub.repos["ann/cats"], {f"blobs/sha256/{name}": data[::-1]})
    with pytest.raises(ObjectDamaged):
        Registry.open(URL)._blobs.read(name)
    assert not list(tmp_path.glob("selectune-partial-*/*"))
    hub.commit(hub.repos["ann/cats"], {f"blobs/sha256/{name}": data})
    assert blobs.read(name) == data


def test_a_folder_for_partial_files_that_others_may_write_is_refused(hub: Hub, big: tuple[str, bytes], tmp_path: Path) -> None:
    blobs = Registry.open(URL)._blobs
    folder = tmp_path / f"selectune-partial-{os.getuid()}"
    for make in (lambda: folder.mkdir(mode=0o755), lambda: folder.symlink_to(tmp_path), folder.touch):
        make()
        with pytest.raises(StorageError, match=r"[sS]et TMPDIR to a folder of yours"):
            blobs.read(big[0])
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()


def test_large_objects_are_uploaded_before_the_commit_and_small_ones_do_not_fill_the_memory(
    hub: Hub, ours: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_SMALL", 20)
    monkeypatch.setattr(hub_module, "_WAITING", 10)
    ours.push(Registry.at(URL))
    assert Registry.open(URL).verify().ok
    assert len(commits(hub)) > 3


def test_what_was_uploaded_before_an_interruption_is_not_uploaded_again(hub: Hub, ours: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_SMALL", 20)

    def stop(now: int, total: int) -> None:
        if now >= total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.push(Registry.at(URL), progress=stop)
    assert commits(hub) == []
    assert ours.push(Registry.at(URL)).objects == 6
    assert asked(hub, "PUT /lfs/") == 3


def test_who_comes_second_decides_again_on_what_is_there_then(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    ids = [update.id for update in ours.log()]
    registry = Registry.open(URL)
    hub.overtake = True
    registry.promote(ids[0], "staging", "good", "ann")
    assert "other.txt" in hub.repos["ann/cats"].commits[-2][1]
    assert Registry.open(URL).names()["staging"] == ids[0]
    assert asked(hub, "POST /api/models/ann/cats/commit/main") == 5


def test_what_was_decided_on_an_older_commit_is_not_written(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    slow, quick = Registry.open(URL), Registry.open(URL)
    said = {"utc": "2026-01-02T03:04:05Z", "actor": "ann", "kind": "verify", "name": None, "subject": None, "body": {}}

    def decide() -> None:
        with slow._log.deciding() as (_, pending):
            slow._log.append_to(pending, said)
            quick.promote(ours.log()[0].id, "staging", "good", "ben")

    with pytest.raises(Overtaken, match="somebody else committed in between"):
        decide()
    assert Registry.open(URL).names()["staging"] == ours.log()[0].id
    assert Registry.open(URL).head() == quick.head() == slow.head()


def test_an_event_that_the_hub_leaves_out_is_an_error(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    hub.ignored = {"events/00000006.json"}
    with pytest.raises(StorageError, match=r"did not take 00000006.json.*gitignore"):
        Registry.open(URL).promote(ours.log()[1].id, "staging", "good", "ben")


def test_two_writers_never_both_write_an_event(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    move_at_once(URL, [update.id for update in ours.log()], writers=2, moves=3)


def test_two_pushes_of_different_histories_at_once_leave_one_of_them(hub: Hub, ours: Registry, deltas: list[Path], tmp_path: Path) -> None:
    ours.push(Registry.at(URL))
    theirs = Registry.at(tmp_path / "theirs")
    theirs.pull(ours)
    for registry, skill in ((ours, "ours"), (theirs, "theirs")):
        registry.add(Update(skill=skill, actor="ben"), deltas[0])
    late = Registry.at(URL)
    ours.push(Registry.at(URL))
    with pytest.raises(HistoriesDiffer, match="differ from event 6 on"):
        theirs.push(late)
    assert Registry.open(URL).head() == ours.head()


def test_a_repository_is_a_registry_of_its_own(hub: Hub, deltas: list[Path]) -> None:
    registry = Registry.open(URL, create=True)
    ids = filled(registry, deltas)
    assert Registry.open(URL).show("production").id == ids[2]
    report = registry.verify().demand()
    assert (report.events, report.objects) == (5, 6)
    name = registry.show(ids[0]).attachments["result.json"]
    registry._blobs.delete(name)
    assert not registry._blobs.has(name)
    assert registry._blobs.modified(registry.show(ids[0]).delta) == 1767323045.0


def test_a_gc_removes_what_is_due_from_the_newest_commit(hub: Hub, deltas: list[Path]) -> None:
    early = Registry.open(URL, create=True, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    filled(early, deltas)
    due = early.add(Update(skill="due", actor="ann"), deltas[0], {"note.txt": b"due"})
    late = Registry.open(URL, clock=lambda: datetime(2026, 3, 1, tzinfo=UTC))
    assert [update.id for update in late.gc(delete=True, actor="ben").updates] == [due]
    files = hub.repos["ann/cats"].commits[-1][1]
    assert f"blobs/sha256/{hashlib.sha256(b'due').hexdigest()}" not in files
    assert condemned(late._log.read()) == {}
    assert Registry.open(URL).verify().demand().objects == 6


def swapped(files: Files) -> None:
    name = _largest(files)
    files[name] = bytes(len(files[name]))


def longer(files: Files) -> None:
    files[_largest(files)] += b"x"


def gone(files: Files) -> None:
    del files[_largest(files)]


def edited(files: Files) -> None:
    row = json.loads(files["events/00000005.json"])
    files["events/00000005.json"] = json.dumps({**row, "actor": "eve"}).encode()


def cut(files: Files) -> None:
    del files["events/00000003.json"]


def unreadable(files: Files) -> None:
    files["events/00000002.json"] = b"{"


def endless(files: Files) -> None:
    files["events/00000002.json"] = bytes((16 << 20) + 1)


def _largest(files: Files) -> str:
    return max((name for name in files if name.startswith("blobs/")), key=lambda name: len(files[name]))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (swapped, ObjectDamaged),
        (longer, ObjectDamaged),
        (gone, ObjectMissing),
        (edited, EventEdited),
        (cut, LogCut),
        (unreadable, EventMalformed),
        (endless, Oversize),
    ],
)
def test_a_repository_that_somebody_was_at_is_refused_and_nothing_is_taken(
    change: Callable[[Files], None], kind: type[Exception], hub: Hub, ours: Registry, tmp_path: Path
) -> None:
    ours.push(Registry.at(URL))
    repo = hub.repos["ann/cats"]
    files = dict(repo.commits[-1][1])
    change(files)
    hub.commit(repo, files, [name for name in repo.commits[-1][1] if name not in files])
    new = Registry.at(tmp_path / "new")
    with pytest.raises(kind) as caught:
        new.pull(Registry.open(URL))
    assert type(caught.value) is kind
    assert not (tmp_path / "new" / "registry.sqlite").exists()


def test_a_log_with_hashes_that_fit_is_refused_by_what_it_says(hub: Hub, ours: Registry, tmp_path: Path) -> None:
    ours.push(Registry.at(f"file://{tmp_path}/shared"))
    poison(tmp_path / "shared", lambda rows: rows[4].update(name="../../x"))
    # The files of the two kinds of place are the same.
    files = {path.relative_to(tmp_path / "shared").as_posix(): path.read_bytes() for path in (tmp_path / "shared").rglob("*.json")}
    ours.push(Registry.at(URL))
    hub.commit(hub.repos["ann/cats"], files)
    with pytest.raises(EventMalformed, match="cannot be a name"):
        Registry.at(tmp_path / "new").pull(Registry.open(URL))


def test_a_folder_without_end_is_refused(hub: Hub, ours: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.push(Registry.at(URL))
    monkeypatch.setattr(hub_module, "_MOST", 4)
    with pytest.raises(Oversize, match="over 4 files"):
        Registry.open(URL)


def test_a_server_that_sends_no_parts_is_told_from_a_hub(hub: Hub, ours: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.push(Registry.at(URL))
    hub.ranges = False
    monkeypatch.setattr("selectune.registry.remote._CHUNK", 100)
    with pytest.raises(StorageError, match="sends no part of a file"):
        Registry.at(tmp_path / "back").pull(Registry.open(URL))


def test_a_branch_that_is_not_there_is_refused_and_a_commit_can_be_read(hub: Hub, ours: Registry) -> None:
    ours.push(Registry.at(URL))
    commit = hub.repos["ann/cats"].commits[-1][0]
    ours.promote(ours.log()[1].id, "production", "back", "ann")
    ours.push(Registry.at(URL))
    assert Registry.open(f"{URL}@{commit}").head().count == 5
    with pytest.raises(StorageError, match="the hub refused"):
        Registry.at(f"{URL}@none")


@pytest.mark.parametrize(
    "url", ["hf://cats", "hf://a/b/c", "hf://spaces/a/b", "hf://../x", "hf://a/b@../x", "hf://a/b?x=y", "hf://token@a/b"]
)
def test_what_is_no_repository_is_refused_before_anybody_is_asked(url: str) -> None:
    with pytest.raises(RegistryError, match="names no repository of the hub"):
        Registry.at(url)


def test_there_is_no_registry_where_there_is_no_repository(hub: Hub) -> None:
    with pytest.raises(RegistryError, match="this is no registry"):
        Registry.open(URL)


def test_the_client_offline_is_an_error_of_its_own(ours: Registry) -> None:
    for verb in ("push", "pull"):
        done = CliRunner().invoke(app, [verb, URL, "--registry", ours.where])
        assert done.exit_code == 2
        assert "HF_HUB_OFFLINE is set, so the hub is not asked" in " ".join(done.stderr.split())


def test_the_verbs_take_a_repository(hub: Hub, ours: Registry, tmp_path: Path) -> None:
    sent = CliRunner().invoke(app, ["push", URL, "--registry", ours.where, "--json"])
    assert sent.exit_code == 0, sent.output
    assert (json.loads(sent.stdout)["objects"], json.loads(sent.stdout)["events"]) == (6, 5)
    taken: Any = CliRunner().invoke(app, ["pull", URL, "--registry", str(tmp_path / "new")])
    assert taken.exit_code == 0, taken.output
    assert Registry.open(tmp_path / "new").head() == ours.head()
