"""Whether a network may be read and continued in the fast ways, settled by its own `generate` on a few prompts.

transformers' caches, masks and positions differ from family to family. So each way is tried once for each network, and taken only where its
logits are those of the plain way; else `generate` is used, and the measurement says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from selectune.evaluation.frozen import Frozen
from selectune.evaluation.plans import Group
from selectune.evaluation.reading import Rows, joined, read
from selectune.training.forward import REFUSALS, TOLERANCE
from selectune.training.store import Store

if TYPE_CHECKING:
    from selectune.evaluation.asking import Asker
    from selectune.records import Encoded

STEPS = 2
"""Tokens that are written on trial."""

_VERDICTS: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], str]] = WeakKeyDictionary()


def pooled(asker: Asker, prompts: Sequence[Encoded]) -> str:
    """`yes` or `no`, with the reason: prompts of several groups are continued side by side as `generate` continues them."""
    return _settled(asker, prompts, "pooled", asker.image)


def divided(asker: Asker, prompts: Sequence[Encoded]) -> str:
    """`yes` or `no`, with the reason: a prompt that is read in two parts is read as one."""
    return _settled(asker, prompts, "divided", asker.image)


def begun_at(asker: Asker, prompts: Sequence[Encoded], frozen: Frozen) -> str:
    """`yes` or `no`, with the reason: passes that begin above the frozen layers give what whole ones do."""
    reason = _settled(asker, prompts, "frozen", frozen.index)
    return f"{reason}; passes begin at layer {frozen.index}" if reason.startswith("yes") else reason


def forget(net: nn.Module) -> None:
    """Lets a network be tried anew, as one whose code was changed must be."""
    _VERDICTS.pop(net, None)


def _settled(asker: Asker, prompts: Sequence[Encoded], way: str, about: int | None) -> str:
    samples = _samples(prompts)
    seen = any(sample.pictures for sample in samples)
    known = _VERDICTS.setdefault(asker.model.net, {})
    key = (way, str(about), str(seen), str(asker.model.net.dtype))
    if key not in known:
        try:
            known[key] = _verdict(asker, samples, way)
        except REFUSALS as error:
            known[key] = f"no: {type(error).__name__}: {str(error)[:200]}"
    return known[key]


def _samples(prompts: Sequence[Encoded]) -> list[Encoded]:
    """A short prompt twice, and one without a picture or of another length where there is one."""
    ordered = sorted(prompts, key=lambda prompt: len(prompt.input_ids))
    first = next((prompt for prompt in ordered if prompt.pictures), ordered[0])
    other = next((prompt for prompt in ordered if not prompt.pictures and first.pictures), None)
    other = other or next((prompt for prompt in ordered if len(prompt.input_ids) != len(first.input_ids)), first)
    return [first, first, other]


def _verdict(asker: Asker, samples: Sequence[Encoded], way: str) -> str:
    if asker.model.net.config.is_encoder_decoder:
        return "no: the model has an encoder, which reads a prompt at once"
    tokens, expected = _plainly(asker, samples)
    if way == "divided":
        length = [_half(sample, asker.image) for sample in samples]
        parts = [Group(indices=(0, 1, 2), length=tuple(length), firsts=(0, 2), owners=(0, 0, 1))]
        rows = [read(asker, samples, group) for group in parts]
    elif way == "frozen":
        assert asker.frozen is not None
        rows = _twice(asker, samples, asker.frozen)
    else:
        rows = [read(asker, samples, group) for group in (Group(indices=(0, 1)), Group(indices=(2,)))]
    odd = next((why for one in rows if (why := _odd(one))), "")
    if odd:
        return f"no: {odd}"
    whole = rows[0] if len(rows) == 1 else joined(rows[0], rows[1])
    found = [whole.logits, *(whole.step(asker.model.net, tokens[:, at : at + 1])[:, -1] for at in range(STEPS - 1))]
    limit = TOLERANCE.get(expected.dtype, 2e-2)
    made = torch.stack(found, dim=1).double()
    if made.shape != expected.shape:
        return f"no: logits of shape {tuple(made.shape)} where {tuple(expected.shape)} is right"
    away = ((made - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()
    return f"{'yes' if away <= limit else 'no'}: the first prompts' logits differ by {away:.1e}, the limit is {limit:.0e}"


def _plainly(asker: Asker, samples: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """What `generate` writes, [rows, STEPS], and the logits of each step in the network's dtype, [rows, STEPS, vocabulary]."""
    net: Any = asker.model.net
    inputs = asker.inputs(samples, side="left")
    width = inputs["input_ids"].shape[1]
    ways = {"do_sample": False, "use_cache": True, "return_dict_in_generate": True, "output_logits": True}
    made = net.generate(**inputs, **ways, max_new_tokens=STEPS, min_new_tokens=STEPS, pad_token_id=asker.pad_id)
    return made.sequences[:, width:], torch.stack(made.logits, dim=1).to(net.dtype)


def _half(sample: Encoded, image: int | None) -> int:
    """Where a sample is divided: after its last image token, or in the middle."""
    last = max((at + 1 for at, token in enumerate(sample.input_ids) if token == image), default=0)
    return last or max(1, len(sample.input_ids) // 2)


def _twice(asker: Asker, samples: Sequence[Encoded], frozen: Frozen) -> list[Rows]:
    """The samples read with what a first reading of them has kept."""
    kept = Frozen(asker.model, frozen.layers, frozen.index, Store(disk=0), key=frozen.key)
    group = Group(indices=tuple(range(len(samples))))
    read(asker, samples, group, kept)
    return [read(asker, samples, group, kept)]


def _odd(rows: Rows) -> str:
    """Why keys and values cannot be put beside others'; empty where they can."""
    if type(rows.cache) is not DynamicCache:
        return f"its cache is a {type(rows.cache).__name__}"
    kinds = {type(layer) for layer in rows.cache.layers}
    if kinds != {DynamicLayer}:
        return f"its cache has layers of other kinds: {', '.join(sorted(kind.__name__ for kind in kinds))}"
    width = rows.mask.shape[1]
    layers: list[Any] = list(rows.cache.layers)
    short = sum(layer.keys is None or layer.keys.shape[2] != width for layer in layers)
    return f"{short} layers of its cache hold other lengths than the prompt's" if short else ""
