"""No version takes more than eight deltas to rebuild, and an old delta that is lost takes none along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from delta_fixtures import model_of, quick_disk, step_of, tied
from selectune.delta import Delta, Part, Touched, apply
from selectune.delta.composing import compose
from selectune.delta.encoding import PLANES
from selectune.errors import DeltaError, RegistryError, WrongParent
from selectune.hashing import manifest
from selectune.network import state
from selectune.registry import Registry, Update
from selectune.registry.snapshots import DEPTH

PARTS = ({"q.weight": ((0, 0, 4, 1),), "o.weight": None}, {"q.weight": ((0, 2, 6, 1),)}, {"q.bias": None})
LENGTH = 18


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def _line(registry: Registry, folder: Path, *, give: bool = False) -> list[str]:
    """A line of updates; with `give` the registry sees the tensors of each one's model."""
    model, ids = model_of(tied()), []
    for number in range(LENGTH):
        model, delta = step_of(model, PARTS[number % 3], 0.1 * (number + 1))
        path = folder / f"{number}.delta"
        delta.save(path)
        update = Update(parent=ids[-1] if ids else None, skill=f"s{number}", actor="ann")
        ids.append(registry.add(update, path, values=state(model.net).__getitem__ if give else None))
    return ids


@pytest.fixture(name="registry")
def _registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry", create=True)


def _snapshots(registry: Registry) -> list[str]:
    return [event.subject or "" for event in registry._log.read() if event.kind == "snapshot"]


@pytest.mark.parametrize("give", [False, True])
def test_no_version_takes_more_than_eight_deltas_and_each_is_rebuilt_to_the_bit(registry: Registry, tmp_path: Path, give: bool) -> None:
    ids = _line(registry, tmp_path, give=give)
    assert _snapshots(registry) == [ids[8], ids[16]]
    for number, id_ in enumerate(ids):
        chain = registry.chain(id_)
        assert len(chain) == (number % DEPTH) + 1
        assert len(registry.steps(id_)) == number + 1
        model = model_of(tied())
        for delta in chain:
            model = apply(model, delta)
        assert model.id == manifest(model.net).id == registry.show(id_).child
    assert registry.verify().ok


def test_an_old_delta_that_is_lost_or_damaged_takes_no_later_version_along(registry: Registry, tmp_path: Path) -> None:
    ids = _line(registry, tmp_path)
    registry.blob(registry.show(ids[2]).delta).write_bytes(b"lost")
    with pytest.raises(RegistryError, match="is damaged"):
        registry.chain(ids[7])
    for id_ in ids[8:]:
        assert registry.chain(id_)[-1].child == registry.admit(id_).update.child
    assert [problem.kind for problem in registry.verify().problems] == ["object"]


def test_a_snapshot_that_is_damaged_is_reported_and_the_deltas_still_lead_there(registry: Registry, tmp_path: Path) -> None:
    ids = _line(registry, tmp_path)
    digest = next(event.body["snapshot"] for event in registry._log.read() if event.kind == "snapshot")
    registry.blob(digest).write_bytes(b"lost")
    assert len(registry.chain(ids[8])) == 9
    assert [(problem.kind, problem.subject) for problem in registry.verify().problems] == [("object", digest)]


def test_verify_finds_a_snapshot_that_says_something_else(registry: Registry, tmp_path: Path) -> None:
    ids = _line(registry, tmp_path)
    steps = registry.steps(ids[7])
    wrong = compose(steps[:7])
    wrong.save(tmp_path / "wrong.delta")
    digest = registry._blobs.put(tmp_path / "wrong.delta")
    registry._log.append({**registry._ledger.event("snapshot", "eve"), "subject": ids[7], "body": {"snapshot": digest}})
    (problem,) = registry.verify().problems
    assert (problem.kind, problem.subject) == ("snapshot", ids[7])
    assert "between other models" in problem.text


def test_adding_again_makes_no_second_snapshot(registry: Registry, tmp_path: Path) -> None:
    ids = _line(registry, tmp_path)
    head = registry.head()
    assert _line(registry, tmp_path) == ids
    assert registry.head() == head


def test_a_tensor_that_a_header_makes_larger_than_memory_is_refused_before_room_is_made() -> None:
    touched = Touched(dtype="F32", shape=(1 << 44,), old="0" * 64, new="1" * 64)
    part = Part(parameter="w", slice=None, shape=touched.shape, sha256="0" * 64, encoding=PLANES, data=memoryview(b""))
    with pytest.raises(DeltaError, match="more than this machine's memory"):
        compose([Delta(parent="a", child="b", patterns=(), tensors={"w": touched}, parts=(part,))])


def test_deltas_that_do_not_follow_are_not_composed() -> None:
    child, first = step_of(model_of(tied()), PARTS[0], 0.5)
    _, second = step_of(child, PARTS[1], 0.5)
    with pytest.raises(WrongParent, match="starts from"):
        compose([second, first])
    with pytest.raises(DeltaError, match="is not what the last delta leads to"):
        compose([first], lambda name: torch.zeros(6, 8))
