"""Law 4: the digest of a fixed tiny delta equals the literal printed in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from delta_fixtures import model_of, selecting
from selectune.delta import Delta, extract, snapshot

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"


class Example(torch.nn.Module):
    """The parent that the page describes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.ones(1))
        self.q = torch.nn.Linear(3, 2)
        self.q.weight = torch.nn.Parameter(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.bfloat16))
        self.q.bias = torch.nn.Parameter(torch.tensor([0.5, 0.25, 0.125, 1]))


def example() -> Delta:
    """The delta that the page describes, made by the library."""
    net = Example()
    model = model_of(net)
    selection = selecting(net, {"q.weight": None, "q.bias": ((0, 1, 4, 2),)})
    before = snapshot(model, selection)
    with torch.no_grad():
        net.q.weight.copy_(torch.tensor([[1, 2.5, 3], [4, 5, -6]]))
        net.q.bias.copy_(torch.tensor([0.5, 0.75, 0.125, 2]))
    made = extract(model, before, selection, meta={"skill": "counting"})
    return Delta(
        parent=made.parent, child=made.child, patterns=("language.layers.0.attn.q",), tensors=made.tensors, parts=made.parts, meta=made.meta
    )


def test_the_digest_of_the_example_is_the_one_that_the_page_prints() -> None:
    (printed,) = re.findall(r"```text\n([0-9a-f]{64})\n```", PAGE.read_text())
    assert example().digest == printed


def test_the_header_of_the_example_is_the_one_that_the_page_prints() -> None:
    printed = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    assert json.loads(example().header()) == json.loads(printed)


def test_the_payloads_of_the_example_are_those_that_the_page_prints() -> None:
    (first, second) = re.findall(r"The payloads are `([0-9a-f]+)` and `([0-9a-f]+)`", PAGE.read_text())[0]
    assert [part.data.hex() for part in example().parts] == [first, second]
