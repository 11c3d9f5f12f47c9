"""A full disk and one that is mounted read-only: one clear error each, nothing half-written, and it works again afterwards.

The disk is a small one of the test's own. Where nothing may be mounted, files may not grow (RLIMIT_FSIZE) and folders may not be written
to by another user; the tests' ids say which.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from delta_fixtures import quick_disk
from selectune.delta.files import TEMPORARY
from selectune.errors import StorageError
from selectune.governance import Witness, new_key
from selectune.registry import Registry, Update, collecting
from selectune.registry.collecting import Keep
from selectune.registry.events import Log
from selectune.registry.lineage import collected, condemned

SIZE = 4 << 20
BIG = os.urandom(600_000)
"""More than fits where `SOME` is left."""
SOME = 128 << 10
PAGE = 4096
NONE = Keep(days=0, candidate_days=0)
FOREVER = Keep(days=365_000, candidate_days=365_000)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def mount(path: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", path], check=True)


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if not mount(Path(folder)):
            return False
        unmount(Path(folder))
        return True


class Mounted:
    """A disk of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def full(self, left: int) -> Iterator[None]:
        """Nothing but `left` bytes fits any more."""
        ballast = self.path / "ballast"
        free = os.statvfs(self.path)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left // PAGE * PAGE)
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", self.path], check=True)


class Limited:
    """A folder in which no file may grow, or nothing be made by somebody else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def full(self, left: int) -> Iterator[None]:
        """No file may have more than `left` bytes."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @contextmanager
    def read_only(self) -> Iterator[None]:
        user, folders = os.geteuid(), [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(user)
            for folder in folders:
                folder.chmod(0o755)


Disk = Mounted | Limited
MOUNTS = may_mount()


@pytest.fixture(name="disk", params=["mounted" if MOUNTS else "not-mounted-but-limited"])
def _disk(tmp_path: Path) -> Iterator[Disk]:
    if not MOUNTS:
        # pytest's own folder is shut to other users.
        with tempfile.TemporaryDirectory(prefix="disk-") as folder:
            yield Limited(Path(folder))
        return
    path = tmp_path / "disk"
    path.mkdir()
    assert mount(path)
    try:
        yield Mounted(path)
    finally:
        unmount(path)


def filled(folder: Path, deltas: list[Path], **options: Any) -> Registry:
    """A registry of one small update."""
    registry = Registry.open(folder, create=True, **options)
    registry.add(Update(skill="first"), deltas[0], {"result.json": b"{}"})
    return registry


def refused(block: AbstractContextManager[None], work: Callable[[], Any]) -> StorageError:
    """The error of `work`, which says what is wrong, where, and what to do."""
    with block, pytest.raises(StorageError) as caught:
        work()
    error = caught.value
    assert error.what, error
    assert error.where, error
    assert error.then, error
    words = ("No space left", "File too large", "disk is full", "disk I/O error", "ead-only file system", "readonly", "ermission denied")
    assert any(word in error.what for word in (*words, "unable to open")), error
    return error


def later(registry: Registry) -> Registry:
    """The same one when all times to keep anything are over."""
    return Registry.open(registry.where, clock=lambda: datetime(2100, 1, 1, tzinfo=UTC))


def files(folder: Path) -> dict[str, bytes]:
    """What is there, but for the files that SQLite keeps beside its database."""
    return {
        str(path.relative_to(folder)): b"" if path.name == "registry.sqlite" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


def whole(registry: Registry, events: int) -> None:
    """Nothing is wrong with it, and nothing unfinished lies there."""
    assert registry.verify().demand().events == events
    assert not list(Path(registry.where).rglob(f"{TEMPORARY}*"))


def test_a_disk_that_is_full_in_the_middle_of_an_object_leaves_none(disk: Disk, deltas: list[Path]) -> None:
    registry = filled(disk.path / "registry", deltas)
    before = files(disk.path)
    error = refused(disk.full(SOME), lambda: registry.add(Update(skill="big"), deltas[0], {"big.bin": BIG}))
    assert "sha256" in str(error.where)
    assert files(disk.path) == before
    whole(registry, 2)
    id_ = registry.add(Update(skill="big"), deltas[0], {"big.bin": BIG})
    assert registry.attachment(id_, "big.bin") == BIG
    whole(registry, 3)


@pytest.mark.parametrize("left", [0, 12 << 10, 40 << 10, SOME])
def test_a_disk_that_is_full_in_the_middle_of_the_log_takes_nothing_of_the_event(disk: Disk, deltas: list[Path], left: int) -> None:
    registry = filled(disk.path / "registry", deltas)
    id_, events = registry.log()[0].id, registry._log.read()
    reason = "because " * 50_000
    error = refused(disk.full(left), lambda: registry.promote(id_, "production", reason, "ann"))
    assert "registry.sqlite" in str(error.where)
    assert registry._log.read() == events
    assert registry.names() == {}
    whole(registry, 2)
    registry.promote(id_, "production", reason, "ann")
    assert Registry.open(disk.path / "registry").names() == {"production": id_}
    whole(registry, 3)


def test_a_disk_that_is_full_where_the_head_is_kept_leaves_the_head_before(disk: Disk, deltas: list[Path], tmp_path: Path) -> None:
    witness = Witness(place=str(disk.path / "head.json"), key=new_key("ada", tmp_path, passphrase=None))
    registry = filled(tmp_path / "registry", deltas, witness=witness)
    id_ = registry.log()[0].id
    registry.promote(id_, "candidate", "why", "ann")
    before = files(disk.path)
    if MOUNTS:
        error = refused(disk.full(0), lambda: registry.promote(id_, "production", "why", "ann"))
        assert "the event is in the log and stays there" in error.what
    else:
        # The limit is on every file, those of the log too: so the log first, and then the head alone.
        Registry.open(registry.where).promote(id_, "production", "why", "ann")
        head = registry.head()
        first = registry._log.read()[0]
        error = refused(disk.full(0), lambda: witness.keep(first.hash, head.count, head.hash, datetime.now(UTC)))
    assert error.where == witness.place
    assert files(disk.path) == before
    # The move itself is in the log, which is on another disk; the head that is kept is of its past.
    assert registry.names() == {"candidate": id_, "production": id_}
    assert registry.verify_signed(witness.place, witness.signer().public).ok
    assert registry.keep_head(witness) == registry.head()
    registry.promote(id_, "again", "why", "ann")
    whole(registry, 5)


def test_a_gc_on_a_full_disk_removes_nothing_that_the_log_does_not_tell_of(disk: Disk, deltas: list[Path]) -> None:
    registry = filled(disk.path / "registry", deltas)
    id_ = registry.add(Update(skill="big"), deltas[1], {"big.bin": BIG})
    registry.promote(registry.log()[1].id, "production", "why", "ann")
    before = files(disk.path)
    refused(disk.full(0), lambda: later(registry).gc(keep=NONE, delete=True, actor="ann"))
    assert files(disk.path) == before
    whole(registry, 4)
    done = later(registry).gc(keep=NONE, delete=True, actor="ann")
    assert [update.id for update in done.updates] == [id_]
    whole(registry, 6)


def test_a_gc_whose_disk_is_full_before_it_can_say_that_all_is_gone_is_finished_by_the_next(
    disk: Disk, deltas: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = filled(disk.path / "registry", deltas)
    id_ = registry.add(Update(skill="big"), deltas[1], {"big.bin": BIG})
    registry.promote(registry.log()[1].id, "production", "why", "ann")
    finish = collecting._finish

    def full(*arguments: Any) -> None:
        with disk.full(0):
            finish(*arguments)

    monkeypatch.setattr(collecting, "_finish", full)
    before = set(files(disk.path))
    refused(nullcontext(), lambda: later(registry).gc(keep=NONE, delete=True, actor="ann"))
    monkeypatch.undo()
    assert len(before - set(files(disk.path))) == 2, "both objects are gone"
    events = registry._log.read()
    assert (len(condemned(events)), collected(events)) == (2, {id_: 5})
    whole(registry, 5)
    # The same objects come again while the log does not say yet that they are gone, for nobody is at it.
    assert registry.add(Update(skill="big"), deltas[1], {"big.bin": BIG}) == id_
    assert later(registry).gc(delete=True, actor="ann", keep=FOREVER).updates == ()
    assert registry.attachment(id_, "big.bin") == BIG
    assert condemned(registry._log.read()) == {}
    whole(registry, 8)


def test_a_full_disk_leaves_nothing_of_a_version_file(disk: Disk, deltas: list[Path], tmp_path: Path) -> None:
    registry = filled(tmp_path / "registry", deltas)
    id_ = registry.add(Update(skill="big"), deltas[0], {"big.bin": BIG})
    path = disk.path / "version.pack"
    assert refused(disk.full(SOME), lambda: registry.export(id_, path, "ann")).where == str(path)
    assert files(disk.path) == {}
    whole(registry, 3)
    done = registry.export(id_, path, "ann")
    assert path.stat().st_size == done.bytes
    whole(registry, 4)


def test_an_import_onto_a_full_disk_records_nothing_of_the_version(disk: Disk, deltas: list[Path], tmp_path: Path) -> None:
    sender = filled(tmp_path / "sender", deltas)
    id_ = sender.add(Update(skill="big"), deltas[0], {"big.bin": BIG})
    sender.export(id_, tmp_path / "version.pack", "ann")
    registry = filled(disk.path / "registry", deltas)
    before = [update.id for update in registry.log()]
    refused(disk.full(SOME), lambda: registry.import_pack(tmp_path / "version.pack", "ann"))
    assert [update.id for update in registry.log()] == before
    whole(registry, 2)
    assert registry.import_pack(tmp_path / "version.pack", "ann").added == (id_,)
    assert registry.attachment(id_, "big.bin") == BIG
    whole(registry, 4)


def test_a_pull_onto_a_full_disk_records_nothing_and_goes_on_when_there_is_room(disk: Disk, deltas: list[Path], tmp_path: Path) -> None:
    sender = filled(tmp_path / "sender", deltas)
    id_ = sender.add(Update(skill="big"), deltas[0], {"big.bin": BIG})
    (disk.path / "registry").mkdir()
    registry = Registry.at(disk.path / "registry")
    refused(disk.full(SOME), lambda: registry.pull(sender))
    assert not list((disk.path / "registry").glob("registry.sqlite*")), "there is no registry yet"
    assert not list(disk.path.rglob(f"{TEMPORARY}*"))
    again = Registry.at(disk.path / "registry")
    assert again.pull(sender).updates == tuple(update.id for update in sender.log()[::-1])
    assert again.attachment(id_, "big.bin") == BIG
    whole(Registry.open(disk.path / "registry"), 3)


def test_a_read_only_folder_is_read_and_every_write_is_refused(disk: Disk, deltas: list[Path], tmp_path: Path) -> None:
    folder = disk.path / "registry"
    registry = filled(folder, deltas)
    id_ = registry.log()[0].id
    before = files(disk.path)
    writes: dict[str, Callable[[], Any]] = {
        "add": lambda: registry.add(Update(skill="second"), deltas[1]),
        "promote": lambda: registry.promote(id_, "production", "why", "ann"),
        "gc": lambda: later(registry).gc(keep=NONE, delete=True, actor="ann"),
        "note": lambda: registry.note("verify", None, {}, "ann"),
        "export into it": lambda: registry.export(id_, disk.path / "version.pack", "ann"),
        "a new one in it": lambda: Registry.open(disk.path / "new", create=True),
    }
    with disk.read_only():
        if MOUNTS:
            again = Registry.open(folder)
            assert ([update.id for update in again.log()], again.names()) == ([id_], {})
            assert again.verify().demand().events == 2
            assert again.attachment(id_, "result.json") == b"{}"
    for work in writes.values():
        refused(disk.read_only(), work)
        assert files(disk.path) == before
    whole(registry, 2)
    registry.promote(id_, "production", "why", "ann")
    registry.add(Update(skill="second"), deltas[1])
    whole(registry, 4)


def test_events_that_are_only_in_the_write_ahead_log_are_read_from_a_read_only_disk(disk: Disk, deltas: list[Path], tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    log = registry._log
    assert isinstance(log, Log)
    with log.database.transaction(writing=False) as connection:
        connection.exec_driver_sql("SELECT seq FROM events").all()
        id_ = registry.add(Update(skill="first"), deltas[0])
        shutil.copytree(tmp_path / "registry", disk.path / "copy")
    assert (disk.path / "copy" / "registry.sqlite-wal").stat().st_size
    with disk.read_only():
        copy = Registry.open(disk.path / "copy")
        assert [update.id for update in copy.log()] == [id_]
        assert copy.verify().demand().events == 2
