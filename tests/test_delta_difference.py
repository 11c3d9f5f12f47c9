"""What lies between two updates: counted from the deltas, measured from the tensors that they touch, shown side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from delta_fixtures import model_of, quick_disk, step_of, tied
from deriving_fixtures import base_folder, loaded, record, update_of
from selectune.cli import app
from selectune.delta import Delta, apply, revert
from selectune.delta.difference import Row, difference
from selectune.delta.rebasing import carry, differing
from selectune.errors import DeltaError, InputError, WrongParent
from selectune.hashing import manifest
from selectune.models import Model
from selectune.network import state
from selectune.pipeline import diff_updates, load_version, rebase_update
from selectune.registry import Registry
from selectune.reporting.difference import DiffPage, DiffRow, by_role, render_diff


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def read_of(model: Model) -> Callable[[str], Tensor]:
    return lambda name: state(model.net)[name].detach()


@pytest.fixture(name="line", scope="module")
def _line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """A base folder, a registry, and a line of updates: a and b of the base, c of a; low is a change of rank 1."""
    with pytest.MonkeyPatch.context() as patch:
        quick_disk(patch)
        place = tmp_path_factory.mktemp("difference")
        base = base_folder(place / "base", torch.float32)
        model = loaded(base)
        registry = Registry.open(place / "registry", create=True)
        rule = {"name": "held_out", "task": "fish", "against": "previous", "n": 8, "verdict": "passed"}
        metrics = [
            {"scores": {"cats": {"value": 0.5, "n": 8}}, "rules": [{**rule, "value": 0.01, "low": -0.1, "high": 0.1}]},
            {"scores": {"cats": {"value": 0.75, "n": 8}, "dogs": {"value": 0.25, "n": 4}}},
        ]
        a, b = update_of(model, ["language.layers.*.attn.q"], 1), update_of(model, ["language.layers.*.attn.{q,v}"], 2)
        low = update_of(model, ["language.layers.0.attn.q"], 3, _flatten_to(model, 1))
        ids = {
            "a": record(registry, a, base, place, skill="a", metrics=metrics[0], verdict="passed"),
            "b": record(registry, b, base, place, skill="b", metrics=metrics[1]),
            "low": record(registry, low, base, place, skill="low"),
        }
        child = apply(model, a)
        c = update_of(child, ["mlp"], 4)
        ids["c"] = record(registry, c, base, place, skill="c", parent=ids["a"])
        revert(child, a)
    return base, place / "registry", ids


def _flatten_to(model: Model, rank: int) -> Callable[[Tensor], None]:
    """Makes what was nudged a change of this rank, for the one tensor of the test."""
    original = {
        tuple(one.shape): one.detach().clone() for name, one in model.net.named_parameters() if name.endswith("0.self_attn.q_proj.weight")
    }

    def change(tensor: Tensor) -> None:
        before = original[tuple(tensor.shape)]
        u, s, v = torch.linalg.svd(tensor - before)
        tensor.copy_(before + (u[:, :rank] * s[:rank]) @ v[:rank])

    return change


def rows_of(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_counts_come_from_the_deltas_alone() -> None:
    model = model_of(tied())
    child, a = step_of(model, {"q.weight": ((0, 0, 5, 1),)}, 0.25)
    revert(child, a)
    child, b = step_of(model, {"q.weight": ((0, 4, 8, 1),), "o.weight": None}, 0.5)
    revert(child, b)
    found = difference([a], [b])
    rows = rows_of(found.rows)
    assert (found.common, found.a, found.b, found.numbers) == (a.parent, a.child, b.child, None)
    q = rows["q.weight"]
    assert (q.elements, q.moved, q.moved_a, q.moved_b, q.both) == (48, 48, 30, 24, 6)
    assert rows["o.weight"].moved_b == rows["o.weight"].moved == 48
    assert found.touched == 96


def test_numbers_are_those_of_the_models_themselves(line: tuple[Path, Path, dict[str, str]]) -> None:
    base, place, ids = line
    registry = Registry.open(place)
    found = diff_updates(registry, ids["a"], ids["b"], spectra=100, k=4)
    models = [loaded(base), load_version(registry, ids["a"]), load_version(registry, ids["b"])]
    rows = rows_of(found.difference.rows)
    assert set(rows) == {f"language.layers.{layer}.attn.{part}" for layer in (0, 1) for part in "qv"}
    for row in rows.values():
        start, a, b = (state(model.net)[row.parameter].detach().double() for model in models)
        assert row.numbers is not None
        assert row.numbers.norm == pytest.approx(float((b - a).norm()), rel=1e-6)
        assert row.numbers.relative == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-6)
        assert row.moved == int((a != b).sum())
        if row.name.endswith("q"):
            angle = torch.nn.functional.cosine_similarity((a - start).flatten(), (b - start).flatten(), dim=0)
            assert row.numbers.cosine == pytest.approx(float(angle), abs=1e-6)
        else:
            assert row.numbers.cosine is None, "a did not move v"
        squares = torch.linalg.svdvals(b - a).square()
        assert row.top == pytest.approx(float(squares[:4].sum() / squares.sum()), rel=1e-4)
        assert sum(row.spectrum) == pytest.approx(1.0)
    assert found.difference.total == models[0].map.elements


def test_a_change_of_rank_one_has_all_of_its_norm_in_one_singular_value(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    registry = Registry.open(place)
    merged = diff_updates(registry, ids["low"], ids["a"], k=1)
    assert rows_of(merged.difference.rows)["language.layers.0.attn.q"].top < 0.9  # type: ignore[operator]
    delta = registry.delta(ids["low"])
    model = loaded(line[0])
    alone = difference([], [delta], read_of(model), components=model.map, k=1)
    assert alone.rows[0].top == pytest.approx(1.0, abs=1e-5)


def test_an_update_and_its_descendant_differ_by_what_lies_between(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    registry = Registry.open(place)
    found = diff_updates(registry, ids["a"], ids["c"])
    assert found.difference.common == registry.show(ids["a"]).child
    assert {row.name.split(".")[3] for row in found.difference.rows} == {"mlp"}
    assert all(row.numbers and row.numbers.cosine is None for row in found.difference.rows)
    with pytest.raises(InputError, match="there is no delta between them"):
        diff_updates(registry, ids["a"], ids["a"])


def test_what_has_no_spectrum_says_why() -> None:
    model = model_of(tied())
    child, delta = step_of(model, {"q.weight": ((0, 0, 4, 1),), "q.bias": None, "o.weight": None, "embed.weight": None}, 0.5)
    revert(child, delta)
    rows = rows_of(difference([], [delta], read_of(model), spectra=2).rows)
    assert rows["q.bias"].note == "a vector: no spectrum"
    assert {row.name for row in rows.values() if row.spectrum} == {"embed.weight", "o.weight"}
    assert rows["q.weight"].note == "others moved farther: no spectrum computed"


def test_a_slice_has_the_spectrum_of_the_slice_and_says_so(tiny: Callable[[str], Any]) -> None:
    from selectune.components import map_model

    net = tiny("phi3")
    found = map_model(net, "phi3")
    model = model_of(net)
    chosen = [component for component in found.components if component.name == "language.layers.0.attn.v"]
    child, delta = step_of(model, {chosen[0].parameter: chosen[0].slice}, 0.5)
    revert(child, delta)
    (row,) = difference([], [delta], read_of(model), components=found).rows
    assert row.name == "language.layers.0.attn.v"
    assert row.note == f"of this part of {chosen[0].parameter} alone"
    assert row.top == pytest.approx(1.0, abs=1e-5), "the same number everywhere has rank 1"


def test_numbers_that_are_not_finite_are_named_and_do_not_reach_json() -> None:
    model = model_of(tied())
    child, delta = step_of(model, {"o.weight": None}, math.inf)
    revert(child, delta)
    found = difference([], [delta], read_of(model))
    assert found.rows[0].numbers is not None
    assert found.rows[0].numbers.norm is None
    assert found.rows[0].note == "no finite real numbers: no spectrum"
    json.dumps(found.to_json(), allow_nan=False)


def test_only_the_touched_tensors_of_the_common_model_are_read() -> None:
    model = model_of(tied())
    child, delta = step_of(model, {"o.weight": None}, 0.5)
    revert(child, delta)
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return read_of(model)(name)

    difference([], [delta], read)
    assert set(asked) == {"o.weight"}
    with pytest.raises(WrongParent, match=r'"o\.weight" is not what the delta was made on'):
        difference([], [delta], read_of(model_of(tied(seed=4))))


def test_scores_stand_side_by_side(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    found = diff_updates(Registry.open(place), ids["a"], ids["b"])
    rows = {(row.what, row.task): row for row in found.behaviour}
    assert rows["score", "cats"].a is not None
    assert rows["score", "cats"].b is not None
    assert (rows["score", "cats"].a.value, rows["score", "cats"].b.value) == (0.5, 0.75)
    assert rows["score", "dogs"].a is None
    assert rows["held_out", "fish"].b is None


def test_an_update_without_its_base_is_compared_by_bits_with_a_note(line: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    _, place, ids = line
    registry = Registry.open(tmp_path / "registry", create=True)
    source = Registry.open(place)
    lost = [record(registry, source.delta(ids[name]), tmp_path / "gone", tmp_path, skill=name) for name in ("a", "b")]
    found = diff_updates(registry, *lost)
    assert found.difference.numbers is None
    assert "no norms, angles and spectra" in found.notes[0]
    assert found.difference.moved > 0


def test_diff_on_the_command_line_draws_a_page_that_loads_nothing(line: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    _, place, ids = line
    page = tmp_path / "diff.html"
    words = ["diff", ids["a"], ids["b"], "--registry", str(place), "--html", str(page)]
    done = CliRunner(env={"COLUMNS": "140"}).invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "language.layers.0.attn.q" in done.stdout
    assert "0.7500" in done.stdout
    text = page.read_text()
    assert "<svg" in text
    assert "polyline" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    document = json.loads(CliRunner().invoke(app, ["diff", ids["a"], ids["b"], "--registry", str(place), "--json"]).stdout)
    assert document["difference"]["moved"] == sum(row["moved"] for row in document["difference"]["rows"])


def test_components_of_one_role_are_one_row_and_their_pattern(line: tuple[Path, Path, dict[str, str]]) -> None:
    base, place, ids = line
    registry, model = Registry.open(place), loaded(base)
    page = DiffPage.model_validate(diff_updates(registry, ids["a"], ids["b"]))
    groups = by_role(page.difference.rows)
    assert {group.role for group in groups} == {"language.layers.*.attn.q", "language.layers.*.attn.v"}
    assert [group.norm for group in groups] == sorted((group.norm for group in groups), reverse=True)  # type: ignore[type-var]
    a, b = (state(load_version(registry, ids[name]).net) for name in "ab")
    for group in groups:
        assert set(model.map.select([group.name]).names) == {row.name for row in group.rows}
        names = [f"model.layers.{n}.self_attn.{group.role[-1]}_proj.weight" for n in (0, 1)]
        old, new = (torch.cat([side[name].detach().reshape(-1) for name in names]) for side in (a, b))
        assert group.relative == pytest.approx(float((new - old).double().norm() / old.double().norm()))
        assert group.moved == pytest.approx(float((new != old).double().mean()))
        assert (len(group.bars), "█" in group.bars) == (2, True)


def test_of_many_layers_several_share_a_bar_and_what_is_not_known_has_none() -> None:
    known = {"norm": 2.0, "relative": 0.5, "cosine": None}
    rows = [
        _shown(f"language.layers.{n}.attn.q", {**known, "relative": 0.5 if n < 30 else 0.05}) for n in range(40) if n not in (8, 9, 10, 11)
    ]
    (group,) = by_role(rows)
    assert group.name == "language.layers[0-7,12-39].attn.q"
    assert group.bars == "██ ████▂▂▂"
    (alone,) = by_role([_shown("embed", None)])
    assert (alone.name, alone.norm, alone.relative, alone.bars, alone.cosines) == ("embed", None, None, "", None)
    assert by_role([_shown("language.layers.3.mlp.up", known)])[0].name == "language.layers.3.mlp.up"


def _shown(name: str, numbers: dict[str, float | None] | None) -> DiffRow:
    row = {"name": name, "shape": (2, 2), "elements": 4, "moved": 2, "both": 1, "top": None, "spectrum": (), "note": ""}
    return DiffRow.model_validate(row | {"numbers": numbers})


def test_every_component_is_shown_where_all_are_asked_for(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    words = ["diff", ids["a"], ids["b"], "--registry", str(place), "--spectra", "1"]
    few, every = (CliRunner(env={"COLUMNS": "140"}).invoke(app, [*words, *more]).stdout for more in ([], ["--all"]))
    assert "language.layers[0:2].attn.q" in few
    assert "3 more components: --all" in few
    assert "more components" not in every
    assert {f"language.layers.{n}.attn.{part}" for n in (0, 1) for part in "qv"} <= set(every.split())


def test_the_page_escapes_what_others_wrote(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    page = DiffPage.model_validate(diff_updates(Registry.open(place), ids["a"], ids["b"]))
    hostile = page.model_copy(update={"notes": ("<img src=x onerror=alert(1)>",)})
    assert "<img src=x" not in render_diff(hostile)


def _rebased(delta: Delta, model: Model, newer: Model) -> Delta:
    return carry(delta, newer.manifest, read_of(model), read_of(newer))


def test_an_update_is_carried_by_adding_its_change_and_rounding_once() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, newer = model_of(tied(dtype=dtype)), model_of(tied(seed=1, dtype=dtype))
        child, delta = step_of(model, {"q.weight": ((0, 0, 4, 1),), "o.weight": None}, 0.25)
        change = {name: state(child.net)[name].detach().clone() for name in ("q.weight", "o.weight")}
        revert(child, delta)
        wide = torch.float64 if dtype == torch.float32 else torch.float32
        expected = {
            name: (state(newer.net)[name].to(wide) + (value.to(wide) - state(model.net)[name].to(wide))).to(dtype).detach()
            for name, value in change.items()
        }
        kept = state(newer.net)["q.weight"].detach().clone()[4:]
        moved = apply(newer, _rebased(delta, model, newer))
        assert manifest(moved.net).id == moved.id
        assert torch.equal(state(moved.net)["o.weight"], expected["o.weight"])
        assert torch.equal(state(moved.net)["q.weight"][:4], expected["q.weight"][:4])
        assert torch.equal(state(moved.net)["q.weight"][4:], kept), "what the update did not move stays as the new base has it"


def test_tensors_that_agree_become_exactly_what_they_were() -> None:
    model = model_of(tied())
    child, delta = step_of(model, {"q.weight": None, "o.weight": None}, 0.1)
    revert(child, delta)
    newer, _ = step_of(model_of(tied()), {"o.weight": None}, 0.3)
    assert differing(delta, newer.manifest) == ("o.weight",)
    carried = _rebased(delta, model, newer)
    assert carried.tensors["q.weight"] == delta.tensors["q.weight"]
    assert carried.meta["rebased"]["differing"] == ["o.weight"]


def test_another_architecture_is_no_newer_base() -> None:
    model = model_of(tied())
    child, delta = step_of(model, {"o.weight": None}, 0.1)
    revert(child, delta)
    other = torch.nn.Linear(3, 3)
    with pytest.raises(WrongParent, match=r'"o\.weight", \[6, 8\], and model .* is another: that has none of this name'):
        differing(delta, manifest(other))


def test_integers_and_overflow_are_refused_when_carried() -> None:
    model, newer = model_of(tied(dtype=torch.float16)), model_of(tied(seed=1, dtype=torch.float16))
    child, delta = step_of(model, {"o.weight": None}, 60000.0)
    revert(child, delta)
    with torch.no_grad():
        state(newer.net)["o.weight"].add_(60000.0)
    with pytest.raises(DeltaError, match=r'48 numbers of "o\.weight" overflow F16'):
        _rebased(delta, model, newer.updated(manifest(newer.net)))


def test_rebase_is_exact_where_tensors_agree_and_refused_where_they_do_not(line: tuple[Path, Path, dict[str, str]]) -> None:
    _, place, ids = line
    registry = Registry.open(place)
    with pytest.raises(WrongParent, match=r"2 of 4 tensors that .* touches are others in model .*--as-candidate"):
        rebase_update(registry, ids["b"], ids["a"])
    found = rebase_update(registry, ids["b"], ids["a"], as_candidate=True)
    assert [name.split(".")[-2] for name in found.differing] == ["q_proj", "q_proj"]
    update = registry.show(found.update)
    assert (update.parent, update.verdict, update.meta["rebased"]["of"]) == (ids["a"], "", ids["b"])
    assert manifest(load_version(registry, update.id).net).id == update.child
    document = json.loads(CliRunner().invoke(app, ["rebase", ids["c"], ids["b"], "--registry", str(place), "--json"]).stdout)
    assert (document["exact"], document["differing"]) == (True, [])
    exact = registry.show(document["update"])
    assert registry.delta(exact.id).tensors == registry.delta(ids["c"]).tensors
    assert manifest(load_version(registry, exact.id).net).id == exact.child
    with pytest.raises(WrongParent, match="already"):
        rebase_update(registry, ids["c"], ids["a"])
