"""A real PostgreSQL server that the tests start and end, with a fresh database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

MISSING = (
    "the tests need a PostgreSQL server and found none under /usr/lib/postgresql or on the PATH: "
    "install it, as on Debian by `apt-get install postgresql`, which .ci/run does"
)
SECONDS = 30.0
"""How long a server may take to start."""


class Server:
    """A server of its own on a Unix socket; nothing listens on the network.

    `durable`: with fsync, as in use. A server that is only asked what it answers does without.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self.programs = programs()
        # A socket's path may have about a hundred characters, so it is not pytest's folder.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.durable = durable
        self._made = 0
        # The server refuses to run as root.
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            user = next(entry for name in ("postgres", "nobody") for entry in pwd.getpwall() if entry.pw_name == name)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        options = ("--auth=trust", "--username=tests", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        self._run("initdb", "--pgdata", str(self.folder / "data"), *options)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, *arguments], cwd=self.folder, capture_output=True, text=True, check=False, **self._as
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        """Starts it and waits until it answers; after a crash it first puts itself right."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "max_connections": "60",
            "shared_buffers": "16MB",
            "fsync": "on" if self.durable else "off",
        }
        # The kernel ends it when this process is gone, however that came about: a killed pytest leaves no server behind.
        command = ["setpriv", "--pdeathsig", "QUIT", str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, **self._as)
        until = time.monotonic() + SECONDS
        while True:
            try:
                self.execute("SELECT 1")
            except OSError as error:
                gone = self.process.poll() is not None
                if gone or time.monotonic() > until:
                    raise AssertionError(f"the server does not answer ({error}):\n{(self.folder / 'log').read_text()[-3000:]}") from error
                time.sleep(0.02)
            else:
                return

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Runs one statement as an administrator. Raises OSError where the server does not answer."""
        import psycopg

        try:
            with closing(psycopg.connect(host=str(self.folder), user="tests", dbname=database, autocommit=True)) as connection:
                cursor = connection.execute(statement)
                return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from error

    def new_database(self, ending: str = "") -> str:
        """The URL of a new, empty database, without a folder for objects."""
        self._made += 1
        name = f"registry{self._made}"
        self.execute(f"CREATE DATABASE {name} {ending}")
        return f"postgresql+psycopg://tests@/{name}?host={self.folder}"

    def crash(self) -> None:
        """Ends the server and all of its processes as a power cut does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ends it, and removes what it had."""
        self.process.send_signal(signal.SIGQUIT if not self.durable else signal.SIGINT)
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.crash()
        shutil.rmtree(self.folder)


def programs() -> Path:
    """The folder of the server's programs. Fails, and does not skip, where there is none: nobody would notice what is not tested."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which("postgres")
    if path is None:
        pytest.fail(MISSING)
    return Path(path).parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for all tests of this process."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new registry can be made: a folder, and then a new database with a folder for its objects."""
    if request.param == "sqlite":
        return str(tmp_path / "registry")
    return team_url(request.getfixturevalue("postgres"), tmp_path / "objects")


def team_url(server: Server, objects: Path) -> str:
    """A new database with a folder for its objects."""
    return f"{server.new_database()}&blobs={objects}"
