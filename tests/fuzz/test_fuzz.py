"""The inputs that fuzzing found worth keeping, and fresh ones: only selectune's own errors come out, in little memory.

Nothing else is read meanwhile.
"""

from __future__ import annotations

import builtins
import sys
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mutating import mutated  # noqa: E402  # found by the line above
from readers import Reader, readers  # noqa: E402
from run import SHARES, outcome  # noqa: E402

FRESH = 2000
MEGABYTES = 64
CORPUS = sorted((HERE / "corpus").iterdir())


@pytest.fixture(name="known", scope="module")
def _known() -> dict[str, Reader]:
    return dict(readers())


def test_the_corpus_is_small_and_of_every_reader(known: dict[str, Reader]) -> None:
    assert {path.name.split("-")[0] for path in CORPUS} == set(known) == set(SHARES)
    assert len(CORPUS) <= 300
    assert sum(path.stat().st_size for path in CORPUS) <= 1 << 20


def test_good_inputs_are_read(known: dict[str, Reader]) -> None:
    assert {outcome(reader, seed) for reader in known.values() for seed in reader.seeds} == {"read"}


def test_the_corpus_is_refused_by_errors_of_ours_alone(known: dict[str, Reader]) -> None:
    shapes = {outcome(known[path.name.split("-")[0]], path.read_bytes()) for path in CORPUS}
    assert len(shapes) > 150, "the corpus reaches many messages"


def test_fresh_inputs_are_refused_by_errors_of_ours_in_little_memory(known: dict[str, Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(20261128)
    pools = {name: [*one.seeds, *(path.read_bytes() for path in CORPUS if path.name.startswith(f"{name}-"))] for name, one in known.items()}
    inside, real = str(Path("/tmp")), builtins.open
    outside: list[str] = []

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path) and not str(file).startswith(inside):
            outside.append(str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", watched)
    tracemalloc.start()
    try:
        for name in random.choices(list(SHARES), list(SHARES.values()), k=FRESH):
            outcome(known[name], mutated(random.choice(pools[name]), random, pools[name]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES << 20
    assert not [path for path in outside if not path.startswith((sys.prefix, sys.base_prefix, str(HERE.parents[1])))]
