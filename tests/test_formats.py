"""docs/reference/formats.md: its literal digests, every dtype of safetensors, and bytes that do not depend on the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_fixtures import model_of, scramble, selecting
from selectune.components import Region, views
from selectune.delta import Delta, apply, extract, revert, snapshot
from selectune.delta.composing import compose
from selectune.delta.encoding import PLANES, RAW, pack, unpack
from selectune.errors import DeltaError
from selectune.hashing import DTYPES, digest, manifest, tensor_digest
from selectune.network import state

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "formats.md").read_text()
LITERALS = [(json.loads(text), literal) for text, literal in re.findall(r"```json\n([^`]*)```\n\n`([0-9a-f]{64})`", PAGE)]


@pytest.mark.parametrize(("kind", "number"), [("model", 0), ("update", 1), ("event", 2), ("event", 3)])
def test_each_literal_digest_of_the_page_is_that_of_what_stands_above_it(kind: str, number: int) -> None:
    value, literal = LITERALS[number]
    assert digest(kind, value) == literal
    assert len(LITERALS) == 4


def test_the_page_lists_every_dtype_that_is_read() -> None:
    listed = re.search(r"safetensors' word:\n  ((?:`\w+`(?:, )?)+)", PAGE)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(DTYPES)


class Bag(torch.nn.Module):
    """Buffers of any dtype and shape."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def _tensor(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    made = torch.zeros(shape, dtype=getattr(torch, DTYPES[dtype][0]))
    if dtype == "BOOL":
        return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).bool()
    scramble(made, seed)
    return made


@st.composite
def _models(draw: st.DrawFn) -> tuple[Bag, dict[str, Region | None], int]:
    seed = draw(st.integers(0, 10_000))
    tensors, parts = {}, {}
    for number in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        tensors[f"t{number}"] = _tensor(draw(st.sampled_from(list(DTYPES))), shape, seed + number)
        parts[f"t{number}"] = draw(st.sampled_from([None, ((0, 0, 1, 1),), ((len(shape) - 1, 0, shape[-1], 2),)]))
    return Bag(tensors), parts, seed


@settings(max_examples=200, deadline=None)
@given(_models(), st.sampled_from(["random", "constant", "still"]))
def test_a_child_and_its_parent_come_back_to_the_bit_whatever_dtype_and_encoding(
    drawn: tuple[Bag, dict[str, Region | None], int], change: str
) -> None:
    net, parts, seed = drawn
    parent = model_of(net)
    selection = selecting(net, parts)
    before = snapshot(parent, selection)
    for component in selection.components:
        tensor = state(net)[component.parameter]
        (view,) = views(tensor, component.slice)
        if change != "still":
            new = _tensor(component.dtype, tuple(view.shape), seed + 99) if change == "random" else torch.zeros_like(view)
            view.copy_(new)
    made = extract(parent, before, selection)
    live = {name: tensor.clone() for name, tensor in state(net).items()}
    child = parent.updated(manifest(net))
    whole = compose([made], live.__getitem__)
    loaded = Delta.from_bytes(_bytes(made))
    back = revert(child, loaded)
    assert back.id == manifest(net).id == parent.id
    assert apply(back, loaded).id == manifest(net).id == made.child
    base = revert(child, loaded)
    assert apply(base, Delta.from_bytes(_bytes(whole))).id == manifest(net).id == made.child


def _bytes(delta: Delta) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        delta.save(Path(folder) / "one.delta")
        return (Path(folder) / "one.delta").read_bytes()


def test_new_bits_are_stored_where_they_pack_smaller_and_cannot_be_taken_back() -> None:
    net = Bag({"t": _tensor("BF16", (64, 64), 1)})
    parent, selection = model_of(net), selecting(net, {"t": None})
    before = snapshot(parent, selection)
    net.t.fill_(0.25)
    made = extract(parent, before, selection)
    whole = compose([made], state(net).__getitem__)
    assert [part.encoding for part in (*made.parts, *whole.parts)] == [RAW, "replace-planes-zstd"]
    assert whole.parts[0].sha256 == tensor_digest(net.t)
    assert json.loads(whole.header())["format"] == 2
    assert json.loads(made.header())["format"] == 1
    child = parent.updated(manifest(net))
    with pytest.raises(DeltaError, match="cannot be taken back"):
        revert(child, whole)
    with pytest.raises(DeltaError, match="new bits alone"):
        whole.moved()
    assert apply(revert(child, made), whole).id == manifest(net).id == made.child


@pytest.mark.parametrize("kind", ["u2", "u4", "u8", "f4", "f8", "c8"])
def test_a_part_is_the_same_bytes_from_numbers_of_either_byte_order(kind: str) -> None:
    numbers = np.arange(1, 9).astype(f"<{kind}")
    swapped = numbers.astype(f">{kind}")
    size = numbers.itemsize
    assert swapped.tobytes() != numbers.tobytes()
    assert pack(_little(swapped), size) == pack(_little(numbers), size)
    encoding, data = pack(_little(swapped), size)
    assert encoding in (RAW, PLANES)
    assert unpack(memoryview(data), encoding, numbers.nbytes, size).view(f"<{kind}").tolist() == numbers.tolist()


def _little(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes(), dtype=np.uint8)
