"""Registries at other places, an S3 server for them, and logs that somebody has been at."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from delta_fixtures import model_of, step_of, tied
from selectune.hashing import canonical
from selectune.registry import Registry, Update
from selectune.registry.events import GENESIS, Event

BUCKET = "models"


@contextmanager
def s3_server() -> Iterator[str]:
    """A bucket on an S3 server of this process; the address of a prefix in it. The driver finds server and key in the environment."""
    import fsspec

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # S3 looks whether an object is there and writes it in one step; this server does so in two, with other requests in between.
        patch.setattr(S3Response, "put_object", _alone(S3Response.put_object))
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        store = fsspec.filesystem("s3", use_listings_cache=False)
        store.mkdir(BUCKET)
        yield f"s3://{BUCKET}/team"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    def alone(*arguments: Any) -> Any:
        with lock:
            return method(*arguments)

    return alone


def deltas_in(folder: Path, count: int = 3) -> list[Path]:
    """Deltas in sequence, as files."""
    model, paths = model_of(tied()), []
    for number in range(count):
        model, delta = step_of(model, {"o.weight": None}, 0.1 * (number + 1))
        paths.append(folder / f"{number}.delta")
        delta.save(paths[-1])
    return paths


def filled(registry: Registry, deltas: list[Path]) -> list[str]:
    """Adds an update for each delta; the last one is `production`."""
    ids: list[str] = []
    for number, path in enumerate(deltas):
        update = Update(parent=ids[-1] if ids else None, skill=f"skill-{number}", verdict="passed", actor="ann")
        ids.append(registry.add(update, path, {"result.json": b'{"n": %d}' % number}))
    registry.promote(ids[-1], "production", "good", "ann")
    return ids


def poison(folder: Path, edit: Callable[[list[dict[str, Any]]], None], *, chained: bool = True) -> None:
    """Edits the log of a ``file://`` registry as whoever may write there can; `chained`, with hashes that fit."""
    place = folder / "events"
    rows = [json.loads(path.read_bytes()) for path in sorted(place.iterdir())]
    edit(rows)
    for path in place.iterdir():
        path.unlink()
    prev = GENESIS
    for seq, row in enumerate(rows, start=1):
        if chained:
            row |= {"seq": seq, "prev": prev}
            row["hash"] = prev = Event(**row).computed_hash()
        (place / f"{seq:08d}.json").write_bytes(canonical(row))


def move_at_once(url: str, ids: list[str], *, writers: int, moves: int) -> None:
    """Several writers move names at the same time; every move is in the log, once."""
    before, barrier = Registry.open(url).head().count, threading.Barrier(writers)

    def work(number: int) -> None:
        registry = Registry.open(url)
        barrier.wait()
        for turn in range(moves):
            registry.promote(ids[turn % len(ids)], f"name-{number}", f"turn {turn}", f"writer {number}")

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(work, range(writers)))
    registry = Registry.open(url)
    assert registry.verify().ok
    assert registry.head().count == before + writers * moves
    assert all(len(registry.history(f"name-{number}")) == moves for number in range(writers))
