"""Ten updates of a real run whose ninth is kept whole, by new bits: every verb on versions 1, 8, 9 and 10 gives the very model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

import evaluation_fixtures as tiny
from delta_fixtures import quick_disk
from deriving_fixtures import base_folder, loaded, nudge, record, update_of
from pipeline_fixtures import jsonl, rows, save_model, write_recipe
from selectune.delta import Delta, after, applied, revert
from selectune.delta.bits import bit_view
from selectune.delta.composing import compose
from selectune.delta.encoding import pack
from selectune.delta.values import parts_of
from selectune.errors import DeltaError
from selectune.evaluation import Suite, Task, evaluate
from selectune.evaluation.evaluator import in_turn
from selectune.hashing import manifest
from selectune.models import Model
from selectune.pipeline import (
    Question,
    Silent,
    bisect,
    diff_updates,
    import_checkpoint,
    load_version,
    merge_updates,
    rebase_update,
    run,
    save_full,
)
from selectune.pipeline.publishing import render_card
from selectune.recipe import read_recipe
from selectune.registry import Registry
from selectune.registry.collecting import Keep
from selectune.registry.oci import add_layout, write_layout
from selectune.registry.snapshots import DEPTH, snapshots

LOOKED_AT = (1, 8, 9, 10)
OPTIM = {"lr": 0.05, "weight_decay": 20.0, "batch": 2, "max_steps": 1, "warmup": 0.0}
"""One step takes the weights to nothing and adds the rate or takes it off: few values, which pack smaller than their changed bits."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run left."""

    registry: Registry
    base: Path
    ids: list[str]
    """Of the ten updates, the oldest first."""

    def copied(self, folder: Path) -> Registry:
        """The same registry in another folder."""
        return Registry.open(shutil.copytree(self.registry.where, folder))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def taught(folder: Path, base: Path, count: int, **changes: object) -> Told:
    """What a run of so many skills leaves, a step each."""
    names = [f"s{number}" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        jsonl(folder / f"{name}-train.jsonl", rows(100 * number, 2, lambda _: "a cat"))
        jsonl(folder / f"{name}-test.jsonl", rows(100 * number + 50, 1, lambda _: "a cat"))
    skills = [{"name": name, "train": f"{name}-train.jsonl", "test": f"{name}-test.jsonl"} for name in names]
    held_out = [{"name": "plain", "test": "plain.jsonl", "kind": "perplexity", "margin": 0.5}]
    plan = {"optim": OPTIM, "skills": skills, "held_out": held_out, "gate": {"min_n": 1}, **changes}
    run(read_recipe(write_recipe(folder, base, **plan)), registry=str(folder / "registry"), out=folder / "runs")
    registry = Registry.open(folder / "registry")
    return Told(registry=registry, base=base, ids=[update.id for update in registry.log()[::-1]])


@pytest.fixture(name="told", scope="module")
def _told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("ten")
    with pytest.MonkeyPatch.context() as patch:
        quick_disk(patch)
        return taught(folder, save_model(tiny.llama(), folder / "base"), 10)


def same(model: Model, registry: Registry, id_: str) -> bool:
    """Whether a model is an update's to the bit."""
    return manifest(model.net).id == model.id == registry.show(id_).child


def snapshot_of(registry: Registry, id_: str) -> Delta:
    """The snapshot of an update."""
    return Delta.from_bytes(registry.blob(snapshots(registry._log.read())[id_]).read_bytes())


def test_a_runs_ninth_update_is_kept_whole_and_each_tensor_by_what_is_smaller(told: Told) -> None:
    registry, ids = told.registry, told.ids
    assert list(snapshots(registry._log.read())) == [ids[8]]
    held, bits, model = snapshot_of(registry, ids[8]), compose(registry.steps(ids[8])), load_version(registry, ids[8])
    assert any(part.replaces for part in held.parts)
    new = model.net.state_dict()
    for part in held.parts:
        (xor,) = parts_of(bits, part.parameter)
        raw = new[part.parameter].contiguous().view(torch.uint8).numpy().reshape(-1)
        whole = len(pack(raw, held.itemsize(part), new=True)[1])
        assert len(part.data) == min(len(xor.data), whole)
        assert part.replaces == (whole < len(xor.data))
    assert registry.verify().ok


def test_so_is_that_of_a_run_in_another_dtype_than_its_model(tmp_path: Path) -> None:
    wide = taught(tmp_path, base_folder(tmp_path / "base", torch.bfloat16), 9, dtype="float32")
    snapshot = snapshot_of(wide.registry, wide.ids[8])
    assert {one.dtype for one in snapshot.tensors.values()} == {"BF16"}
    assert any(part.replaces for part in snapshot.parts)
    assert same(load_version(wide.registry, wide.ids[8]), wide.registry, wide.ids[8])


@pytest.mark.parametrize("number", LOOKED_AT)
def test_a_version_is_loaded_and_written_to_the_bit(told: Told, tmp_path: Path, number: int) -> None:
    registry, id_ = told.registry, told.ids[number - 1]
    assert (len(registry.chain(id_)), len(registry.steps(id_))) == ({1: 1, 8: 8, 9: 1, 10: 2}[number], number)
    assert same(load_version(registry, id_), registry, id_)
    assert same(loaded(save_full(registry, id_, tmp_path / "full")), registry, id_)


def test_a_snapshot_of_new_bits_comes_off_again_by_what_was_kept_and_not_by_itself(told: Told) -> None:
    model = loaded(told.base)
    (whole,) = told.registry.chain(told.ids[8])
    with applied(model, whole) as child:
        assert same(child, told.registry, told.ids[8])
        with pytest.raises(DeltaError, match="cannot be taken back"):
            revert(child, whole)
    assert manifest(model.net).id == model.id == whole.parent


def test_names_go_back_over_it(told: Told, tmp_path: Path) -> None:
    registry = told.copied(tmp_path / "registry")
    for number in LOOKED_AT:
        registry.promote(told.ids[number - 1], "production", "next", "ann")
    for number in LOOKED_AT[-2::-1]:
        assert registry.revert("production", "back", "ann").update == told.ids[number - 1]
        assert same(load_version(registry, "production"), registry, told.ids[number - 1])


def test_bisect_measures_on_both_sides_of_it_and_leaves_the_model(told: Told) -> None:
    texts = ["What is in the picture?", "a cat, a dog", "one two three four"]
    words = tiny.records(*(tiny.text(f"t{number}", text) for number, text in enumerate(texts)))
    suite, model = Suite(tasks=(Task(name="words", records=words, kind="perplexity"),)), loaded(told.base)
    scores: dict[str, float] = {}
    for start in (told.ids[0], told.ids[7], "base"):
        found = bisect(told.registry, (start, told.ids[9]), Question.of(suite, "words", None), lambda _: model, Silent())
        for one in (found.good, found.bad, *found.looked):
            assert scores.setdefault(one.update, one.score) == one.score
    assert set(scores) >= {model.id, told.ids[0], told.ids[7], told.ids[9]}
    for id_, score in scores.items():
        fresh = model if id_ == model.id else load_version(told.registry, id_)
        assert evaluate(fresh, suite).score("words") == score
    versions = {id_: told.registry.chain(id_) for id_ in (told.ids[8], told.ids[0], told.ids[9], told.ids[7])}
    for id_, version in in_turn(model, versions):
        assert same(version, told.registry, id_)
    assert manifest(model.net).id == model.id


def test_it_travels_with_the_history_alone_and_in_files(told: Told, tmp_path: Path) -> None:
    registry, ids = told.copied(tmp_path / "registry"), told.ids
    whole = Registry.at(tmp_path / "whole")
    registry.push(whole)
    assert snapshots(whole._log.read()) == snapshots(registry._log.read())
    alone, packed, laid = (Registry.open(tmp_path / name, create=True) for name in ("alone", "packed", "laid"))
    alone.pull(registry, update=ids[9])
    for number in LOOKED_AT:
        registry.export(ids[number - 1], tmp_path / "pack")
        packed.import_pack(tmp_path / "pack")
    write_layout(registry, ids, tmp_path / "layout")
    assert list(add_layout(laid, tmp_path / "layout", "ann")) == ids
    for other in (whole, alone, packed, laid):
        for number in LOOKED_AT:
            assert len(other.chain(ids[number - 1])) <= DEPTH
            assert same(load_version(other, ids[number - 1]), registry, ids[number - 1])
        assert other.verify().ok


def test_gc_takes_it_with_its_version_and_it_comes_again_with_it(told: Told, tmp_path: Path) -> None:
    ids, later = told.ids, datetime.now(UTC) + timedelta(days=40)
    registry = Registry.open(told.copied(tmp_path / "registry").where, clock=lambda: later)
    nine = registry.show(ids[8])
    delta, files = registry.delta(nine.id), {name: registry.attachment(nine.id, name) for name in nine.attachments}
    held = snapshots(registry._log.read())[nine.id]
    registry.tag(ids[9], "kept")
    assert registry.gc(keep=Keep(candidate_days=0), delete=True).updates == (), "the tenth stands on it"
    other = told.copied(tmp_path / "other").where
    registry = Registry.open(other, clock=lambda: later)
    registry.tag(ids[7], "kept")
    gone = registry.gc(keep=Keep(candidate_days=0), delete=True)
    assert [update.id for update in gone.updates] == [ids[9], ids[8]]
    assert held in {item.name for item in gone.objects}
    assert not registry._blobs.has(held)
    assert snapshots(registry._log.read()) == {}
    assert same(load_version(registry, "kept"), registry, ids[7])
    delta.save(tmp_path / "nine.delta")
    values = load_version(told.registry, nine.id).net.state_dict().__getitem__
    assert registry.add(nine, tmp_path / "nine.delta", files, values=values) == nine.id
    assert snapshots(registry._log.read()) == {nine.id: held}
    assert len(registry.chain(nine.id)) == 1
    assert same(load_version(registry, nine.id), registry, nine.id)
    assert registry.verify().ok


def test_differences_are_those_of_the_tensors(told: Told) -> None:
    for first, second in ((1, 8), (8, 9), (9, 10), (1, 10)):
        a, b = (load_version(told.registry, told.ids[number - 1]) for number in (first, second))
        found = diff_updates(told.registry, told.ids[first - 1], told.ids[second - 1], spectra=0).difference
        assert (found.a, found.b) == (a.id, b.id)
        new = b.net.state_dict()
        moved = sum(int((bit_view(old) != bit_view(new[name])).sum()) for name, old in a.net.state_dict().items())
        assert found.moved == moved > 0


def beside(told: Told, registry: Registry, folder: Path, parent: str | None) -> tuple[str, Delta]:
    """An update of the MLPs, beside those of the run."""
    model = loaded(told.base) if parent is None else load_version(registry, parent)
    delta = update_of(model, ["mlp"], seed=3)
    return record(registry, delta, told.base, folder, parent=parent, skill="beside"), delta


def put_on(model: Model, delta: Delta) -> str:
    """The id of what a delta of other tensors makes of a model too."""
    return after(delta, model.manifest).id


def test_merged_and_rebased_updates_stand_on_either_side_of_it(told: Told, tmp_path: Path) -> None:
    registry, ids = told.copied(tmp_path / "registry"), told.ids
    for number in (8, 9):
        mine, delta = beside(told, registry, tmp_path, ids[number - 1])
        merged = merge_updates(registry, ids[number], mine)
        assert merged.child == put_on(load_version(registry, ids[number]), delta)
        assert same(load_version(registry, merged.id), registry, merged.id)
    mine, delta = beside(told, registry, tmp_path, None)
    for number in LOOKED_AT:
        moved = rebase_update(registry, mine, ids[number - 1])
        assert registry.show(moved.update).child == put_on(load_version(registry, ids[number - 1]), delta)
        assert same(load_version(registry, moved.update), registry, moved.update)
        assert len(registry.chain(moved.update)) <= DEPTH
    assert registry.verify().ok


def test_derived_and_imported_updates_are_kept_whole_too(told: Told, tmp_path: Path) -> None:
    registry, ids = told.copied(tmp_path / "registry"), told.ids
    mine, _ = beside(told, registry, tmp_path, ids[7])
    merged = merge_updates(registry, ids[8], mine).id
    alone, _ = beside(told, registry, tmp_path, None)
    rebased = rebase_update(registry, alone, ids[7]).update
    model = load_version(registry, ids[8])
    nudge(model.net, model, ["mlp"])
    imported = import_checkpoint(save_model(model, tmp_path / "tuned"), ids[7], registry).update
    for id_ in (merged, rebased, imported):
        snapshot = snapshot_of(registry, id_)
        assert {part.parameter for part in snapshot.parts if part.replaces}, id_
        assert {part.parameter for part in snapshot.parts if not part.replaces}, id_
        assert same(load_version(registry, id_), registry, id_)


def test_a_card_tells_of_the_updates_own_delta(told: Told, tmp_path: Path) -> None:
    registry = told.copied(tmp_path / "registry")
    mine, delta = beside(told, registry, tmp_path, told.ids[7])
    (snapshot,) = registry.chain(mine)
    assert len(snapshot.tensors) > len(delta.tensors)
    card = render_card(registry.admit(mine), registry.delta(mine))
    assert f"\n{len(delta.tensors)} tensors were changed" in card
    assert "Selected by: mlp." in card
