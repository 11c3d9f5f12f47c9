"""What is fuzzed: readers of what strangers write, each with good inputs to begin from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from delta_fixtures import model_of, step_of, tied
from governance_fixtures import make_keys, policy_of
from selectune.delta import Delta
from selectune.errors import InputError
from selectune.governance import Approval, Envelope, Policy, approve, seal
from selectune.governance.documents import pae
from selectune.governance.heads import SignedHead
from selectune.governance.statements import Target
from selectune.hashing import canonical, parse_json
from selectune.recipe.reading import parse_recipe
from selectune.registry import Registry, Update, packing
from selectune.registry.events import GENESIS, Event
from selectune.registry.lineage import moves, updates
from selectune.registry.looks import looks
from selectune.registry.standing import standing
from selectune.untrusted import read_header


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader, and inputs that it takes."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def _delta(data: bytes) -> None:
    delta = Delta.from_bytes(data)
    for part in delta.parts:
        if part.elements <= 1 << 20:
            part.bits(delta.itemsize(part))


def _header(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        read_header(Path(file.name))


def _events(data: bytes) -> None:
    """A log whose bodies are a stranger's, with hashes that fit."""
    rows = parse_json(data)
    if not isinstance(rows, list):
        raise InputError("no list")
    events, prev = [], GENESIS
    for seq, row in enumerate(rows, start=1):
        body = row if isinstance(row, dict) else {}
        kind = ("add", "promote", "revert", "look", "policy", "approve", "revoke", "tag", "gc")[seq % 9]
        event = Event(
            seq=seq, utc="2026-11-24T12:00:00Z", actor="x", kind=kind, name="production", subject="0" * 64, body=body, prev=prev, hash=""
        )
        prev = event.computed_hash()
        events.append(event)
    moves(events)
    looks(events)
    standing(events, updates(events))


def _pack(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        header, _ = packing._header(file, "fuzz")
        packing._line(header, "fuzz")


def _packed(folder: Path, delta: Path) -> bytes:
    registry = Registry.open(folder / "registry", create=True)
    first = registry.add(Update(skill="s", verdict="passed"), delta, {"result.json": b"{}"})
    registry.promote(first, "production", "because", "ann")
    packing.pack(registry._ledger, registry._blobs, first, folder / "x.pack", "ann")
    return (folder / "x.pack").read_bytes()


def _document(data: bytes) -> None:
    envelope = Envelope.parse(data, "fuzz")
    pae(envelope.payload_type, envelope.payload)
    for kind in (Approval, Policy, SignedHead):
        if kind.kind in envelope.payload_type:
            envelope.read(kind, "fuzz")


def _recipe(data: bytes) -> None:
    parse_recipe(data.decode("utf-8", "replace")[:16384])


def readers() -> Mapping[str, Reader]:
    """By name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = make_keys(folder)
        files = []
        for number, parts in enumerate(({"q.bias": None}, {"q.weight": ((0, 0, 4, 1),), "o.weight": None})):
            _, delta = step_of(model_of(tied(dtype=(torch.float32, torch.bfloat16)[number])), parts, 0.01)
            delta.save(folder / "x.delta")
            files.append((folder / "x.delta").read_bytes())
        pack = _packed(folder, folder / "x.delta")
        from safetensors.torch import save_file

        save_file({"a.weight": torch.zeros(2, 3), "b": torch.ones(1)}, folder / "m.safetensors")
        model = (folder / "m.safetensors").read_bytes()
    policy = policy_of(keys)
    target = Target(update="1" * 64, record="2" * 64)
    from datetime import UTC, datetime

    said = approve(policy, keys["ben"], ("approver", "production"), target, datetime(2026, 11, 24, tzinfo=UTC))
    head = seal(SignedHead(registry="0" * 64, count=1, hash="0" * 64, utc="2026-11-24T12:00:00Z"), keys["ben"])
    signed = [canonical(one.to_json()) for one in (seal(policy, keys["ada"]), said, head)]
    texts = ("base", "child", "delta")
    add = {**dict.fromkeys(texts, "3" * 64), "metrics": {}, "records": {}, "meta": {}, "attachments": {}}
    add |= {"parent": None, "recipe": "r", "skill": "s", "verdict": "passed"}
    look = {"sets": {"t": "4" * 64}, "alpha": 0.1, "total": 0.2, "recipe": ""}
    bodies = [{"previous": None, "reason": "x", "verdict": "passed"}, {"previous": "0" * 64}, look]
    bodies += [{"signed": one.to_json()} for one in (seal(policy, keys["ada"]), said)] + [{"reason": "bad"}, {}, {"updates": []}, add]
    recipe = (Path(__file__).parents[2] / "src/selectune/recipes/demo-attention.yaml").read_bytes()
    return {
        "delta": Reader(read=_delta, seeds=tuple(files)),
        "header": Reader(read=_header, seeds=(model,)),
        "events": Reader(read=_events, seeds=(canonical(bodies),)),
        "documents": Reader(read=_document, seeds=tuple(signed)),
        "pack": Reader(read=_pack, seeds=(pack,)),
        "recipe": Reader(read=_recipe, seeds=(recipe,)),
    }
