"""Prompts read by the network: keys and values, where they stand, and the logits of what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:
    from selectune.evaluation.asking import Asker, Inputs
    from selectune.evaluation.frozen import Frozen
    from selectune.evaluation.plans import Group
    from selectune.records import Encoded


@dataclass(kw_only=True, slots=True)
class Rows:
    """Texts side by side that can be continued. A row's padding stands on its left, or between two parts of it."""

    cache: Any
    """A DynamicCache: keys and values [rows, heads, width, size] of every layer."""
    mask: Tensor
    """[rows, width], 1 where there is a token."""
    places: Tensor | None
    """The position of each row's last token, [..., rows, 1]; None for a network that takes no positions."""
    logits: Tensor
    """Of each row's next token, [rows, vocabulary]."""

    def chosen(self, rows: Tensor) -> Rows:
        """Some of the rows, in this order, in tensors of their own."""
        return Rows(
            cache=selected(self.cache, rows),
            mask=self.mask[rows],
            places=None if self.places is None else self.places[..., rows, :],
            logits=self.logits[rows],
        )

    def step(self, net: Any, tokens: Tensor, fresh: Tensor | None = None) -> Tensor:
        """Logits [rows, length, vocabulary] after `tokens` [rows, length], by which the rows grow; `fresh` is 0 where there is none."""
        fresh = torch.ones_like(tokens) if fresh is None else fresh
        self.mask = torch.cat([self.mask, fresh.to(self.mask.dtype)], dim=1)
        inputs: Inputs = {"input_ids": tokens, "attention_mask": self.mask}
        if self.places is not None:
            inputs["position_ids"] = self.places + 1 + torch.arange(tokens.shape[1], device=tokens.device)
            self.places = inputs["position_ids"][..., -1:]
        logits: Tensor = net(**inputs, past_key_values=self.cache, use_cache=True).logits
        return logits


def selected(cache: Any, rows: Tensor) -> Any:
    """A cache of some rows of another, which stays as it is."""
    return DynamicCache([(layer.keys[rows], layer.values[rows]) for layer in cache.layers])


def joined(left: Rows, right: Rows) -> Rows:
    """The rows of both, padded on the left to one width."""
    width = max(left.mask.shape[1], right.mask.shape[1])
    layers = zip(left.cache.layers, right.cache.layers, strict=True)
    pairs = [
        (torch.cat([_wide(a.keys, width), _wide(b.keys, width)]), torch.cat([_wide(a.values, width), _wide(b.values, width)]))
        for a, b in layers
    ]
    masks = [torch.nn.functional.pad(one.mask, (width - one.mask.shape[1], 0)) for one in (left, right)]
    places = None if left.places is None or right.places is None else torch.cat([left.places, right.places], dim=-2)
    return Rows(cache=DynamicCache(pairs), mask=torch.cat(masks), places=places, logits=torch.cat([left.logits, right.logits]))


def _wide(tensor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[2], 0))


def read(asker: Asker, prompts: Sequence[Encoded], group: Group, frozen: Frozen | None = None) -> Rows:
    """The group's prompts as the network reads them; beginnings that several share once."""
    rows = [prompts[index] for index in group.indices]
    inputs = asker.inputs(rows, side="left")
    places = _places(asker, inputs)
    key = "" if frozen is None else group.key(prompts)
    cache = DynamicCache(config=asker.model.net.config)
    if not group.length:
        output = _passed(asker, inputs, places, cache, frozen, key)
        return _rows(output, cache, inputs["attention_mask"], places)
    heads = [part(rows[row], 0, group.length[row]) for row in group.firsts]
    begin = asker.inputs(heads, side="left")
    _passed(asker, begin, _begun(places, rows, group), cache, frozen, f"{key} beginnings")
    owners = torch.tensor(group.owners, device=asker.model.device)
    cache = selected(cache, owners)
    tails = [part(row, length, len(row.input_ids)) for row, length in zip(rows, group.length, strict=True)]
    rest = asker.inputs(tails, side="left")
    rest["attention_mask"] = torch.cat([begin["attention_mask"][owners], rest["attention_mask"]], dim=1)
    after = None if places is None else places[..., -rest["input_ids"].shape[1] :]
    output = _passed(asker, rest, after, cache, frozen, f"{key} rest")
    return _rows(output, cache, rest["attention_mask"], after)


def part(row: Encoded, start: int, end: int) -> Encoded:
    """Tokens `start` to `end` of a prompt; the pictures belong to its beginning."""
    extra = {name: values[start:end] for name, values in row.extra.items()}
    pictures = row.pictures if start == 0 else ()
    return replace(row, input_ids=row.input_ids[start:end], labels=row.labels[start:end], extra=extra, pictures=pictures)


def _places(asker: Asker, inputs: Inputs) -> Tensor | None:
    """Each token's position as the network's own `generate` counts it, [..., rows, width]."""
    if "position_ids" not in asker.taken:
        return None
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    # transformers' own hook for positions that depend on pictures; it has no public name.
    net: Any = asker.model.net
    found: Tensor = net._prepare_position_ids_for_generation(inputs["input_ids"], others)
    return found


def _begun(places: Tensor | None, rows: Sequence[Encoded], group: Group) -> Tensor | None:
    """The positions of the beginnings, padded on the left to the longest."""
    if places is None:
        return None
    width = max(group.length)
    made = places.new_zeros((*places.shape[:-2], len(group.firsts), width))
    for place, row in enumerate(group.firsts):
        start, length = places.shape[-1] - len(rows[row].input_ids), group.length[row]
        made[..., place, width - length :] = places[..., row, start : start + length]
    return made


def _passed(asker: Asker, inputs: Inputs, places: Tensor | None, cache: Any, frozen: Frozen | None, key: str) -> Any:
    net: Any = asker.model.net
    given = dict(inputs) if places is None else {**inputs, "position_ids": places}
    if "logits_to_keep" in asker.taken:
        given["logits_to_keep"] = 1
    return net(**given, past_key_values=cache, use_cache=True) if frozen is None else frozen.run(given, cache, key)


def _rows(output: Any, cache: Any, mask: Tensor, places: Tensor | None) -> Rows:
    return Rows(cache=cache, mask=mask, places=None if places is None else places[..., -1:], logits=output.logits[:, -1])
