"""New registries of every kind of place that this machine can have: files, databases, and a bucket of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from database_fixtures import team_url

KINDS = ("sqlite", "postgresql", "file", "s3")


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A prefix of a bucket, for all tests of this process."""
    from remotes_fixtures import s3_server

    with s3_server() as url:
        yield url


def new_place(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Where a new registry can be made; `folder` is for its files."""
    match kind:
        case "postgresql":
            return team_url(request.getfixturevalue("postgres"), folder)
        case "file":
            return f"file://{folder}"
        case "memory":
            return f"memory://{uuid4().hex}"
        case "s3":
            return f"{request.getfixturevalue('bucket')}/{uuid4().hex}"
    return str(folder)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of place."""
    return str(request.param)


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new registry of this kind can be made."""
    return new_place(kind, request, tmp_path / "place")


@pytest.fixture
def another(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Another one of the same kind."""
    return new_place(kind, request, tmp_path / "another")
