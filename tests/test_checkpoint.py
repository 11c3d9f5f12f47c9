"""Checkpoints that are written a tensor at a time: what they take of memory and disk, what they refuse, and that others can read them."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import evaluation_fixtures as tiny_models
from delta_fixtures import quick_disk
from deriving_fixtures import base_folder, nudge, record, update_of
from selectune.cli import app
from selectune.delta import Delta
from selectune.errors import DeltaError, ModelError, StorageError, WrongParent
from selectune.hashing import manifest
from selectune.models import Model, load
from selectune.pipeline import load_version, save_checkpoint, save_full
from selectune.pipeline.progress import Silent
from selectune.pipeline.slots import read_slots
from selectune.pipeline.tensors import FolderTensors, open_tensors
from selectune.registry import Registry
from small import small

pytestmark = pytest.mark.filterwarnings("ignore:.*was not found in model.*")

CONSTANT = 64 << 20
"""Bytes beside the tensors: pieces that are read, copied and hashed, and what the registry and the configuration take."""
MEASURE = """
import sys
from pathlib import Path
from selectune.pipeline import save_full
from selectune.registry import Registry

def bytes_of(key):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))

warm, registry, out = sys.argv[1:]
save_full(Registry.open(warm), "production", Path(out) / "warm")  # what it imports is no part of the measure
Path("/proc/self/clear_refs").write_text("5")
before = bytes_of("VmRSS")
save_full(Registry.open(registry), "production", Path(out) / "measured")
print(bytes_of("VmHWM") - before)
"""


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="base")
def _base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


def registry_of(folder: Path, base: Path, *several: Sequence[str]) -> Registry:
    """A registry with a line of updates of a base, the last of which is `production`."""
    registry, model, parent = Registry.open(folder / "registry", create=True), load(str(base)), None
    for number, patterns in enumerate(several):
        delta = update_of(model, patterns, seed=number)
        parent = record(registry, delta, base, folder, parent=parent, skill=f"s{number}")
        nudge(model.net, model, patterns, seed=number)
        model = model.updated(manifest(model.net))
    registry.promote(str(parent), "production", reason="a test", actor="ann")
    return registry


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def llama(folder: Path, width: int, inner: int, layers: int) -> Path:
    """A Llama whose largest tensor has `width * inner` numbers of two bytes, in files of several tensors."""
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4, vocab_size=320, dtype="bfloat16"
    )
    with torch.device("meta"):
        net = LlamaForCausalLM(config)
    net = net.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.fill_(0.02)
    net.save_pretrained(folder, max_shard_size="100MB")
    tiny_models.tokenizer(size=290).save_pretrained(folder)
    return folder


# memory


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux says how much memory a process had at most")
@pytest.mark.parametrize(
    ("width", "inner", "layers"), [(512, 4096, 9), pytest.param(1024, 20480, 5, marks=pytest.mark.slow)], ids=["130MB", "600MB"]
)
def test_no_more_than_two_of_the_largest_tensors_are_in_memory(width: int, inner: int, layers: int, tmp_path: Path) -> None:
    base, warm = llama(tmp_path / "base", width, inner, layers), tmp_path / "warm"
    registry = registry_of(tmp_path, base, ["attention", "language.layers.0.mlp.down"], ["language.layers.{0,1}.mlp.*"])
    warm.mkdir()
    registry_of(warm, llama(warm / "base", 32, 48, 2), ["attention"])
    (tmp_path / "out").mkdir()
    places = [str(warm / "registry"), registry.where, str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MEASURE, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    largest = max(slot.stop - slot.start for slot in read_slots(base).values())
    whole = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    assert largest == width * inner * 2
    assert int(done.stdout) <= 2 * largest + CONSTANT < 0.6 * whole
    assert json.loads((tmp_path / "out" / "measured" / "selectune.json").read_text())["model_id"] == registry.show("production").child


def test_the_deltas_that_are_admitted_stay_in_their_files(base: Path, tmp_path: Path) -> None:
    deltas = registry_of(tmp_path, base, ["attention"], ["mlp"]).admit("production").deltas
    assert len(deltas) == 2
    assert all(isinstance(part.data.obj, mmap.mmap) for delta in deltas for part in delta.parts)


# what others read


def test_transformers_loads_it_without_a_remark(base: Path, tmp_path: Path) -> None:
    registry = registry_of(tmp_path, base, ["attention"], ["language.layers.1.mlp.*", "attention"])
    out = save_full(registry, "production", tmp_path / "out")
    net, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert manifest(net).id == registry.show("production").child == load_version(registry, "production").id
    words = "a cat and a dog"
    assert AutoTokenizer.from_pretrained(out)(words) == AutoTokenizer.from_pretrained(base)(words)


def test_it_has_the_files_and_the_keys_of_its_base_and_one_note(base: Path, tmp_path: Path) -> None:
    """What vLLM reads: config.json, the tokenizer, `*.safetensors`, and of those only what an index names, where there is one."""
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    names = sorted(tensors_of(base))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "generation_config.json").write_text("{}")
    registry = registry_of(tmp_path, base, ["attention"])
    for stray in ("consolidated.safetensors", "training_args.txt.bak"):
        save_file({"x": torch.zeros(1)}, base / stray)
    out = save_full(registry, "production", tmp_path / "out")
    expected = {path.name for path in base.iterdir()} - {"consolidated.safetensors", "training_args.txt.bak"} | {"selectune.json"}
    assert {path.name for path in out.iterdir()} == expected
    assert sorted(tensors_of(out)) == names
    assert (out / "model.safetensors.index.json").read_bytes() == (base / "model.safetensors.index.json").read_bytes()


def test_tensors_that_no_file_has_are_worked_out_again(tmp_path: Path) -> None:
    """As the positions of Marian are, which are part of the model and not of its files."""
    net = small("marian")
    net.save_pretrained(tmp_path / "base")
    tiny_models.tokenizer(size=290).save_pretrained(tmp_path / "base")
    model = load(str(tmp_path / "base"))
    delta = update_of(model, ["attention"])
    out = save_checkpoint(str(tmp_path / "base"), [delta], tmp_path / "out")
    assert load(str(out)).id == delta.child


@pytest.mark.parametrize("equal", [True, False])
def test_two_copies_of_a_tied_tensor_are_one_tensor_while_they_are_equal(equal: bool, tmp_path: Path) -> None:
    """As transformers does it, which has to see the values."""
    base = base_folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    if equal:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    model = load(str(base))
    assert ("lm_head.weight" in model.manifest) is not equal
    found = open_tensors(str(base))
    assert isinstance(found, FolderTensors)
    assert found.manifest.id == model.id
    delta = update_of(model, ["language.embed", "head", "attention"])
    out = save_checkpoint(str(base), [delta], tmp_path / "out")
    assert load(str(out)).id == delta.child
    assert tensors_of(out)["lm_head.weight"].equal(tensors_of(out)["model.embed_tokens.weight"]) is equal


def test_a_copy_of_a_tied_tensor_that_became_another_is_refused(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors", {"format": "pt"})
    model = load(str(base))
    for patterns in (["attention"], ["language.embed", "head"]):
        delta = update_of(model, patterns)
        nudge(model.net, model, patterns)
        child = model.updated(manifest(model.net))
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        refused(child, delta, tmp_path, WrongParent, r"lm_head\.weight: BF16 .* in the file is not what the model was loaded with")
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors", {"format": "pt"})
        model = load(str(base))


# what is refused


def refused(model: Model | str, delta: Delta, folder: Path, error: type[Exception], match: str) -> None:
    """The checkpoint, by name or of the model in memory, and that nothing of it is left."""
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=match):
        save_checkpoint(model, [delta], folder / "out")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"], ids=["moved", "not moved"])
def test_a_base_that_became_another_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    delta = update_of(load(str(base)), ["attention"])
    tensors = load_file(base / "model.safetensors")
    tensors[name].view(-1)[-1] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    match = r"q_proj\.weight: BF16 .* is not what the model was" if "q_proj" in name else r"files hold model .*, and the first update is of"
    refused(str(base), delta, tmp_path, WrongParent, match)


def test_a_delta_that_leads_elsewhere_is_refused(base: Path, tmp_path: Path) -> None:
    delta = update_of(load(str(base)), ["attention"])
    first, *rest = delta.parts
    twin = next(part for part in rest if part.shape == first.shape)
    other = replace(delta, parts=(replace(first, data=twin.data, encoding=twin.encoding), *rest))
    refused(str(base), other, tmp_path, DeltaError, r'"model\.layers\.0.*" does not become .*The delta is damaged: fetch it again')
    refused(str(base), replace(delta, child="0" * 64), tmp_path, DeltaError, "do not lead from .* to 000000000000")
    name, one = next(iter(delta.tensors.items()))
    lying = replace(delta, tensors=delta.tensors | {name: replace(one, old="0" * 64)})
    refused(str(base), lying, tmp_path, WrongParent, "files hold model .*, and the first update is of")
    shaped = replace(delta, tensors=delta.tensors | {name: replace(one, dtype="F32")})
    refused(str(base), shaped, tmp_path, WrongParent, rf"{name} is BF16 .*, and F32 .* in the delta")


def test_a_tensor_of_another_shape_in_the_files_is_refused(base: Path, tmp_path: Path) -> None:
    model = load(str(base))
    delta = update_of(model, ["attention"])
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(3)}, base / "model.safetensors", metadata={"format": "pt"})
    nudge(model.net, model, ["attention"])
    child = model.updated(manifest(model.net))
    refused(child, delta, tmp_path, ModelError, r"model\.norm\.weight is \[3\] in the files, the model needs")


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(tmp_path, base, ["attention"])
    size = sum(path.stat().st_size for path in base.iterdir())
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(Path(path))
        return type("Usage", (), {"free": size - 1})

    monkeypatch.setattr("selectune.pipeline.checkpoint.shutil.disk_usage", usage)
    monkeypatch.setattr("selectune.pipeline.checkpoint.building", lambda _: pytest.fail("it was begun"))
    with pytest.raises(StorageError, match=rf"out: the checkpoint has {size:,} bytes, and {size - 1:,} are free\. Free space"):
        save_full(registry, "production", tmp_path / "not" / "there" / "out")
    assert asked == [tmp_path]
    result = CliRunner().invoke(app, ["apply", "production", str(tmp_path / "out"), "--registry", registry.where])
    assert result.exit_code == 2
    assert "StorageError" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_of_a_package_asks_for_its_tensors_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_models.llama()
    delta = update_of(made, ["attention"])
    nudge(made.net, made, ["attention"])
    child = made.updated(manifest(made.net))
    monkeypatch.setattr("selectune.pipeline.checkpoint.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    refused(child, delta, tmp_path, StorageError, r"the checkpoint has [\d,]+ bytes, and 1,000 are free")


# how it goes


class Told(Silent):
    """Remembers bars."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int | None, list[int]]] = []
        self.ended = 0

    def start(self, what: str, total: int | None) -> None:
        self.bars.append((what, total, []))

    def advance(self, done: int, total: int | None = None) -> None:
        self.bars[-1][2].append(done)

    def finish(self) -> None:
        self.ended += 1


def test_a_bar_goes_from_nothing_to_all_of_the_bytes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.pipeline.checkpoint._MB", 1000)
    registry, told = registry_of(tmp_path, base, ["attention"]), Told()
    save_full(registry, "production", tmp_path / "out", progress=told)
    assert [what for what, _, _ in told.bars] == ["Copying the base (MB)", "Hashing it and putting the update on (MB)"]
    for _, total, seen in told.bars:
        assert len(seen) > 3
        assert seen == sorted(seen)
        assert total == seen[-1] > 0
    assert told.ended == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux copies within the kernel")
def test_a_base_on_another_file_system_is_read_and_written(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = update_of(load(str(base)), ["attention"])
    here = save_checkpoint(str(base), [delta], tmp_path / "here")
    by_kernel = os.copy_file_range

    def some(source: int, target: int, count: int) -> int:
        if os.fstat(target).st_size:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return by_kernel(source, target, min(count, 1000))

    monkeypatch.setattr("selectune.pipeline.checkpoint.os.copy_file_range", some)
    there = save_checkpoint(str(base), [delta], tmp_path / "there")
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {path.name: path.read_bytes() for path in there.iterdir()}

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("selectune.pipeline.checkpoint.os.copy_file_range", full)
    refused(str(base), delta, tmp_path, StorageError, "No space left on device")
