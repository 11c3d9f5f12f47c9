"""Extract, apply, revert, interpolate: exact, in place, and refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from delta_fixtures import Tied, model_of, quick_disk, scramble, selecting, step_of, tied
from selectune.components import Region
from selectune.delta import Delta, applied, apply, extract, interpolate, revert, snapshot
from selectune.delta.bits import bit_view
from selectune.errors import DeltaError, InputError, SelectionViolated, WrongParent
from selectune.hashing import DTYPES, manifest
from selectune.models import Model
from selectune.network import state

REGIONS: list[Region | None] = [
    None,
    ((0, 2, 5, 1),),
    ((0, 0, 8, 2),),
    ((1, 1, 2, 1),),
    ((0, 0, 2, 1), (0, 4, 6, 1), (1, 0, 6, 3)),
]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


class Bits(nn.Module):
    """One 8 by 6 tensor of any dtype, and one that stays."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros(8, 6, dtype=torch.uint8).to(dtype))
        self.register_buffer("rest", torch.ones(3))
        scramble(self.x, 1)


@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64", "I8", "U8", "I64", "U16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"])
def test_every_bit_pattern_of_every_dtype_comes_back(name: str, region: Region | None, tmp_path: Path) -> None:
    net = Bits(getattr(torch, DTYPES[name][0]))
    model = model_of(net)
    selection = selecting(net, {"x": region})
    before, old = snapshot(model, selection), net.x.clone()
    fresh = net.x.clone()
    scramble(fresh, 2)
    from selectune.components import views

    for target, source in zip(views(net.x, region), views(fresh, region), strict=True):
        target.copy_(source)
    child = model.updated(manifest(net))
    extract(model, before, selection).save(tmp_path / "x.delta")
    delta = Delta.load(tmp_path / "x.delta")
    assert (delta.parent, delta.child) == (model.id, child.id)
    back = revert(child, delta)
    assert back.id == model.id == manifest(net).id
    assert net.x.view(torch.uint8).equal(old.view(torch.uint8))
    assert apply(back, delta).id == child.id == manifest(net).id


def test_tied_weights_stay_tied_and_buffers_stay() -> None:
    net = tied()
    child, delta = step_of(model_of(net), {"embed.weight": None}, 0.5)
    revert(child, delta)
    assert net.head.weight is net.embed.weight
    assert net.embed.weight.requires_grad
    assert list(delta.tensors) == ["embed.weight"]


def test_a_tensor_that_is_not_contiguous_is_changed_in_place() -> None:
    net = tied()
    net.q.weight = nn.Parameter(torch.arange(48.0).reshape(6, 8).T)
    old = net.q.weight.detach().clone()
    child, delta = step_of(model_of(net), {"q.weight": ((0, 1, 4, 1),)}, 0.25)
    revert(child, delta)
    assert not net.q.weight.is_contiguous()
    assert net.q.weight.equal(old)


def test_several_regions_of_one_parameter_are_parts_of_their_own() -> None:
    net = tied()
    child, delta = step_of(model_of(net), {"q.weight": (((0, 0, 2, 1),), ((0, 4, 8, 1), (1, 0, 3, 1)))}, 0.25)
    assert [part.shape for part in delta.parts] == [(2, 6), (4, 3)]
    assert delta.moved() == delta.elements == 12 + 12
    assert revert(child, delta).id == delta.parent


def test_a_wrong_parent_is_refused_and_says_what_is_wrong() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None}, 0.5)
    before = child.id
    with pytest.raises(WrongParent, match=rf"for model {delta.parent[:12]}, this is {child.id[:12]}\. This delta is already applied"):
        apply(child, delta)
    with pytest.raises(WrongParent, match="Apply the deltas of the parent's own chain first"):
        apply(model_of(tied(seed=5)), delta)
    with pytest.raises(WrongParent, match=f"leads to model {delta.child[:12]}"):
        revert(model_of(tied()), delta)
    assert manifest(child.net).id == before


def test_weights_that_changed_behind_the_manifest_are_noticed_and_left_bit_for_bit_as_they_were() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None, "q.bias": None}, 0.5)
    parent = revert(child, delta)
    with torch.no_grad():
        parent.net.q.bias[0] += 1
    before = {name: bit_view(tensor).clone() for name, tensor in state(parent.net).items()}
    with pytest.raises(DeltaError, match=r'"q\.bias" is not what the model\'s id says'):
        apply(parent, delta)
    after = state(parent.net)
    assert after.keys() == before.keys()
    assert all(torch.equal(bit_view(after[name]), bits) for name, bits in before.items())


def test_a_delta_with_damaged_bits_leaves_the_model_as_it_was() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None, "q.bias": None}, 0.5)
    parent = revert(child, delta)
    last = delta.parts[-1]
    data = bytearray(last.data)
    data[-1] ^= 1
    broken = replace(delta, parts=(*delta.parts[:-1], replace(last, data=memoryview(bytes(data)))))
    with pytest.raises(DeltaError, match=r"damaged|does not unpack"):
        apply(parent, broken)
    assert manifest(parent.net).id == parent.id


def test_a_delta_whose_parts_do_not_lead_to_its_tensors_is_taken_back() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None, "q.bias": None}, 0.5)
    parent = revert(child, delta)
    with pytest.raises(DeltaError, match=r'"q\.bias" became'):
        apply(parent, replace(delta, parts=delta.parts[:1]))
    assert manifest(parent.net).id == parent.id


def test_a_delta_that_lies_about_its_child_is_refused() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None}, 0.5)
    parent = revert(child, delta)
    with pytest.raises(DeltaError, match="do not lead to the model that it names"):
        apply(parent, replace(delta, child="0" * 64))
    stranger = replace(delta, tensors={"other": delta.tensors["o.weight"]})
    with pytest.raises(DeltaError, match='the model has no tensor "other"'):
        apply(parent, stranger)


def test_applied_gives_the_child_inside_and_the_parent_after_also_when_the_block_raises() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None}, 0.5)
    parent = revert(child, delta)
    with applied(parent, delta) as inside:
        assert inside.id == delta.child == manifest(parent.net).id
    assert manifest(parent.net).id == parent.id
    with pytest.raises(ZeroDivisionError), applied(parent, delta):
        _ = 1 / 0
    assert manifest(parent.net).id == parent.id


def test_applied_says_so_when_the_block_changed_the_weights() -> None:
    child, delta = step_of(model_of(tied()), {"o.weight": None}, 0.5)
    parent = revert(child, delta)
    with pytest.raises(DeltaError, match=r'revert: "o\.weight" is not what'), applied(parent, delta), torch.no_grad():
        parent.net.o.weight.add_(1)


@pytest.mark.parametrize("moved", ["q.weight", "seen", "embed.weight"])
def test_extract_refuses_what_moved_outside_the_selection(moved: str) -> None:
    net = tied()
    selection = selecting(net, {"o.weight": None})
    before = snapshot(net, selection)
    with torch.no_grad():
        state(net)[moved].view(-1)[0] += 1
    with pytest.raises(SelectionViolated, match=f"1 tensors moved outside the selection: {moved}"):
        extract(net, before, selection)


def test_extract_refuses_what_moved_outside_a_slice() -> None:
    net = tied()
    selection = selecting(net, {"q.weight": ((0, 0, 4, 1),)})
    before = snapshot(net, selection)
    with torch.no_grad():
        net.q.weight[3] += 1
    extract(net, before, selection)
    with torch.no_grad():
        net.q.weight[4, 0] += 1
    with pytest.raises(SelectionViolated, match=r"q\.weight"):
        extract(net, before, selection)


def test_extract_refuses_another_dtype_another_shape_and_other_tensors() -> None:
    selection = selecting(tied(), {"o.weight": None})
    for change, words in (
        (lambda net: net.to(torch.bfloat16), r'"embed\.weight" was F32 \[11, 6\] and is BF16 \[11, 6\]'),
        (lambda net: setattr(net, "q", nn.Linear(6, 9)), r'"q\.bias" was F32 \[8\] and is F32 \[9\]|"q\.weight" was'),
        (lambda net: net.register_buffer("more", torch.zeros(1)), 'gained or lost 1 tensors, "more"'),
    ):
        net = tied()
        before = snapshot(net, selection)
        change(net)
        with pytest.raises(DeltaError, match=words):
            extract(net, before, selection)


def test_a_selection_of_another_model_is_refused() -> None:
    with pytest.raises(DeltaError, match=r'parameter "o\.weight" that the model lacks'):
        snapshot(nn.Linear(2, 2), selecting(tied(), {"o.weight": None}))


def test_meta_that_json_cannot_hold_is_refused() -> None:
    net = tied()
    selection = selecting(net, {"o.weight": None})
    with pytest.raises(InputError, match="no canonical JSON"):
        extract(net, snapshot(net, selection), selection, meta={"loss": float("nan")})


def _pair(dtype: torch.dtype, region: Region | None = None) -> tuple[Model, Delta, torch.Tensor, torch.Tensor]:
    model = model_of(tied(dtype=dtype))
    old = model.net.get_parameter("q.weight").detach().clone()
    child, delta = step_of(model, {"q.weight": region, "o.weight": None}, 0.37)
    new = model.net.get_parameter("q.weight").detach().clone()
    return revert(child, delta), delta, old, new


@given(share=st.floats(-1, 2, width=32))
def test_interpolation_in_bf16_is_the_fp32_value_rounded_once(share: float) -> None:
    model, delta, old, new = _pair(torch.bfloat16)
    between = interpolate(model, delta, share)
    with applied(model, between):
        found = model.net.get_parameter("q.weight").detach().clone()
    # numpy as the oracle for the arithmetic; rounding to nearest even by hand on the bits.
    start, stop = old.float().numpy(), new.float().numpy()
    exact = (start + np.float32(share) * (stop - start)).astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((exact + 0x7FFF + ((exact >> 16) & 1)) >> 16).astype(np.uint16)
    assert found.view(torch.int16).numpy().view(np.uint16).tolist() == rounded.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("region", [None, ((0, 0, 4, 2),)])
def test_interpolation_ends_at_the_parent_and_at_the_child(dtype: torch.dtype, region: Region | None) -> None:
    model, delta, _, _ = _pair(dtype, region)
    assert interpolate(model, delta, 0.0).child == delta.parent
    assert interpolate(model, delta, 1.0).child == delta.child
    half = interpolate(model, delta, 0.5)
    assert half.child not in (delta.parent, delta.child)
    assert half.meta["interpolated"] == {"share": 0.5, "of": delta.digest}
    assert revert(apply(model, half), half).id == model.id == manifest(model.net).id


def test_interpolation_leaves_what_did_not_move_to_the_bit() -> None:
    net = tied()
    with torch.no_grad():
        net.o.weight.view(-1)[:3] = torch.tensor([-0.0, float("nan"), float("inf")])
    model = model_of(net)
    selection = selecting(net, {"o.weight": None})
    before = snapshot(model, selection)
    with torch.no_grad():
        net.o.weight.view(-1)[3:].add_(1)
    delta = extract(model, before, selection)
    parent = revert(model.updated(manifest(net)), delta)
    assert interpolate(parent, delta, 0.5).moved() == delta.moved() == 45


def test_interpolation_refuses_what_has_no_middle() -> None:
    model, delta, _, _ = _pair(torch.float16)
    with pytest.raises(InputError, match="share nan is not a finite number"):
        interpolate(model, delta, float("nan"))
    with pytest.raises(DeltaError, match=r"interpolate at share 1000000000\.0: \d+ numbers of .* overflow F16"):
        interpolate(model, delta, 1e9)
    with pytest.raises(WrongParent, match="Revert to the parent first"):
        interpolate(apply(model, delta), delta, 0.5)
    net = Bits(torch.int8)
    child, integers = step_of(model_of(net), {"x": None}, 1)
    with pytest.raises(DeltaError, match='"x" is I8 and moved'):
        interpolate(revert(child, integers), integers, 0.5)


def test_a_chain_of_deltas_goes_forward_and_back() -> None:
    model = model_of(tied(dtype=torch.bfloat16))
    root, deltas = model.id, []
    for amount in (0.1, 0.2, 0.3):
        model, delta = step_of(model, {"q.weight": ((0, 0, 4, 1),), "o.weight": None}, amount)
        deltas.append(delta)
    top = model.id
    for delta in reversed(deltas):
        model = revert(model, delta)
    assert model.id == root
    for delta in deltas:
        model = apply(model, delta)
    assert model.id == top == manifest(model.net).id
    assert isinstance(model.net, Tied)
