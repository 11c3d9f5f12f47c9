"""Checkpoints and adapters that others trained, as updates: the same child as loading them gives, and hostile folders refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from typer.testing import CliRunner

from conftest import tiny_model as tiny_net
from delta_fixtures import quick_disk
from deriving_fixtures import base_folder, loaded, nudge
from selectune.cli import app
from selectune.components import map_model
from selectune.components.covering import covering, smallest_preset
from selectune.delta import apply
from selectune.errors import ModelError, NotYet, SameModel
from selectune.hashing import manifest
from selectune.models import Model, outline
from selectune.network import class_name, parameters
from selectune.pipeline import import_checkpoint, load_version
from selectune.pipeline.adapters import FACTORS
from selectune.pipeline.importing import Imported
from selectune.pipeline.slots import read_slots
from selectune.pipeline.tensors import FolderTensors, LoadedTensors, open_tensors
from selectune.recipe import Adapter
from selectune.registry import Registry
from selectune.training import train
from selectune.untrusted import check_folder
from small import small
from training_fixtures import examples, optim
from training_fixtures import tiny_model as trainable

pytestmark = pytest.mark.filterwarnings("ignore:.*was not found in model.*")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="base", scope="module")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("importing") / "base")


@pytest.fixture(name="registry")
def _registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry", create=True)


def tuned(base: Path, folder: Path, *patterns: str, seed: int = 0) -> Model:
    """The base with noise on what the patterns select, saved in `folder`."""
    model = loaded(base)
    nudge(model.net, model, patterns, seed)
    model.net.save_pretrained(folder)
    return model.updated(manifest(model.net))


@pytest.mark.parametrize(
    "family", ["llama", "tied", "gpt2", "qwen3_moe", "phi3", "llava", "small:mixtral", "small:deepseek_v3", "small:qwen2_5_vl"]
)
def test_tensors_read_one_by_one_are_those_that_loading_gives(family: str, tmp_path: Path, tiny: Callable[[str], Any]) -> None:
    net = (small(family.partition(":")[2]) if ":" in family else tiny(family)).to(torch.bfloat16)
    net.save_pretrained(tmp_path)
    check_folder(tmp_path)
    found = FolderTensors(outline(str(tmp_path), family), tmp_path, read_slots(tmp_path), family)
    assert found.lacking == ()
    assert found.manifest.id == manifest(type(net).from_pretrained(tmp_path, dtype="auto")).id
    assert all(parameter.is_meta for parameter in found.net.parameters())


def test_a_model_without_files_is_loaded_whole(base: Path) -> None:
    assert isinstance(open_tensors(str(base)), FolderTensors)
    model = loaded(base)
    whole = LoadedTensors(model)
    assert whole.manifest.id == model.id == open_tensors(str(base)).manifest.id


def test_a_checkpoint_becomes_a_delta_whose_child_is_that_checkpoint(base: Path, registry: Registry, tmp_path: Path) -> None:
    child = tuned(base, tmp_path / "tuned", "language.layers[1].attn.{q,k}", "language.layers[0].mlp.down")
    found = import_checkpoint(tmp_path / "tuned", str(base), registry, skill="cats", actor="ann")
    update = registry.show(found.update)
    assert (update.child, update.skill, update.verdict, update.parent) == (child.id, "cats", "", None)
    assert load_version(registry, update.id).id == child.id
    assert found.patterns == ("language.layers[0].mlp.down", "language.layers[1].attn.{q,k}")
    assert (found.preset, found.total) == ("language-layers", loaded(base).map.elements)
    moved = {row.family: row for row in found.families}
    q = moved["language.layers.*.attn.q"]
    assert (q.moved, q.of, q.of_elements) == (1, 2, 2048)
    before, after = (parameters(model.net)["model.layers.1.self_attn.q_proj.weight"] for model in (loaded(base), child))
    assert q.elements == int((before != after).sum()) > 900
    assert moved["language.embed"].moved == 0
    registry.verify().demand()


def test_a_selection_that_has_a_name_gets_it(base: Path, registry: Registry, tmp_path: Path) -> None:
    tuned(base, tmp_path / "tuned", "attention")
    found = import_checkpoint(tmp_path / "tuned", str(base), registry)
    assert (found.patterns, found.preset) == (("attention",), "attention")
    assert registry.show(found.update).skill == "tuned"


def test_an_update_of_the_registry_may_be_the_base(base: Path, registry: Registry, tmp_path: Path) -> None:
    tuned(base, tmp_path / "one", "attention")
    first = import_checkpoint(tmp_path / "one", str(base), registry)
    model = loaded(tmp_path / "one") if (tmp_path / "one" / "tokenizer.json").exists() else None
    assert model is None
    later = load_version(registry, first.update)
    nudge(later.net, later, ["mlp"], 3)
    later.net.save_pretrained(tmp_path / "two")
    second = import_checkpoint(tmp_path / "two", first.update[:12], registry)
    assert registry.show(second.update).parent == first.update
    assert second.patterns == ("mlp",)
    assert second.delta.child == manifest(later.net).id


@pytest.mark.parametrize("family", ["qwen3_moe", "phi3", "gpt2", "tied"])
def test_names_on_disk_and_in_memory_may_differ(family: str, registry: Registry, tmp_path: Path, tiny: Callable[[str], Any]) -> None:
    net = tiny(family).to(torch.bfloat16)
    net.save_pretrained(tmp_path / "base")
    name = next(one for one in parameters(net) if "1" in one and parameters(net)[one].ndim > 1)
    with torch.no_grad():
        parameters(net)[name][..., :3].add_(0.5)
    net.save_pretrained(tmp_path / "tuned")
    found = import_checkpoint(tmp_path / "tuned", str(tmp_path / "base"), registry)
    assert found.delta.child == manifest(net).id
    assert [one for one, row in found.delta.tensors.items() if row.old != row.new] == [name]
    assert found.moved == int((parameters(tiny_net(family).to(torch.bfloat16))[name] != parameters(net)[name]).sum())


def test_files_in_pieces_and_copies_of_tied_tensors_are_read(registry: Registry, tmp_path: Path, tiny: Callable[[str], Any]) -> None:
    net = tiny("tied").to(torch.bfloat16)
    net.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        parameters(net)["model.layers.1.mlp.down_proj.weight"].add_(0.5)
    net.save_pretrained(tmp_path / "tuned", max_shard_size="4KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 2
    assert import_checkpoint(tmp_path / "tuned", str(tmp_path / "base"), registry).delta.child == manifest(net).id
    for number, change in enumerate((0.0, 1.0)):
        folder = tmp_path / f"copied{number}"
        net.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert import_checkpoint(tmp_path / "copied0", str(tmp_path / "base"), registry).delta.child == manifest(net).id
    with pytest.raises(
        ModelError, match=r"lm_head\.weight is another tensor than model\.embed_tokens\.weight, and in the base they are tied"
    ):
        import_checkpoint(tmp_path / "copied1", str(tmp_path / "base"), registry)


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


EMBED, DOWN = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({EMBED: torch.cat([t[EMBED], t[EMBED][:2]])}), r"model\.embed_tokens\.weight is BF16 \[\d+, 32\] and was BF16"),
        (lambda t: t.update({DOWN: t[DOWN].float()}), r"down_proj\.weight is F32 \[32, 48\] and was BF16 \[32, 48\]"),
        (lambda t: t.pop(DOWN), r"lacks 1 of the base's tensors: model\.layers\.0\.mlp\.down_proj\.weight"),
        (lambda t: t.update({"score.weight": torch.ones(2)}), r"score\.weight is not in the base"),
        (lambda t: t.update({"<img src=x>": torch.ones(2)}), r"'<img src=x>' is no name of a tensor"),
    ],
)
def test_what_is_no_child_of_the_base_is_refused_by_name(
    base: Path, registry: Registry, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    tuned(base, tmp_path / "tuned", "attention")
    _changed(tmp_path / "tuned", change)
    with pytest.raises(ModelError, match=words):
        import_checkpoint(tmp_path / "tuned", str(base), registry)
    assert registry.log() == []


def test_the_base_itself_is_no_update(base: Path, registry: Registry) -> None:
    with pytest.raises(SameModel, match="not one bit differs"):
        import_checkpoint(base, str(base), registry)


def test_other_settings_are_noted(base: Path, registry: Registry, tmp_path: Path) -> None:
    tuned(base, tmp_path / "tuned", "attention")
    settings = json.loads((tmp_path / "tuned" / "config.json").read_text())
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 999, "use_cache": False}))
    found = import_checkpoint(tmp_path / "tuned", str(base), registry)
    assert found.notes == ("config.json differs in max_position_embeddings; a delta holds tensors, so the base's remain",)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04."), "pytorch_model.bin"),
        (lambda folder: (folder / "modeling.py").write_text("raise SystemExit"), "brings code of its own"),
        (lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}'), "asks for code of its own"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "no whole safetensors file"),
        (lambda folder: (folder / "more.json").symlink_to("/etc/hostname"), "is a link out of the folder"),
    ],
)
def test_a_hostile_folder_is_refused_before_a_tensor_is_read(
    base: Path, registry: Registry, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    tuned(base, tmp_path / "tuned", "attention")
    spoil(tmp_path / "tuned")
    with pytest.raises(ModelError, match=words):
        import_checkpoint(tmp_path / "tuned", str(base), registry)


ADAPTED = [
    ("llama", ("attention",), torch.bfloat16),
    ("llama", ("attention",), torch.float32),
    ("llama", ("language.embed",), torch.bfloat16),
    ("gpt2", ("language.layers.*.attn.{q,v,o}",), torch.bfloat16),
    ("phi3", ("language.layers.*.attn.q",), torch.float32),
    ("llava", ("projector", "vision.patch"), torch.float32),
    ("qwen3_moe", ("language.layers.*.moe.experts.*.*", "language.layers.0.attn.q"), torch.bfloat16),
    ("qwen3_moe", ("language.layers.1.moe.experts.*.down",), torch.float32),
    ("gpt_oss", ("language.layers.*.moe.experts.*.*",), torch.float32),
]


@pytest.mark.parametrize(("family", "patterns", "dtype"), ADAPTED)
def test_an_adapter_gives_the_child_that_its_training_gave(
    family: str, patterns: tuple[str, ...], dtype: torch.dtype, registry: Registry, tmp_path: Path
) -> None:
    model = trainable(family, dtype)
    model.net.save_pretrained(tmp_path / "base")
    settings = optim(adapter=Adapter(rank=3), lr=2e-2, weight_decay=0.1, max_steps=2)
    done = train(model, model.map.select(patterns), examples(pictures=family == "llava"), settings)
    assert done.adapter is not None
    folder = done.adapter.save(tmp_path / "adapter")
    found = import_checkpoint(folder, str(tmp_path / "base"), registry)
    assert found.delta.child == done.delta.child
    _factors_make(registry.attachment(found.update, FACTORS), apply(trainable(family, dtype), found.delta), model)


def _factors_make(file: bytes, child: Model, base: Model) -> None:
    """The factors of a child say by which weights it differs; of plain linear layers their product, scaled, is the difference."""
    scales = _scales(file)
    held = load(file)
    assert held.keys() == {f"{name}.{which}" for name in scales for which in "AB"}
    before, after = parameters(base.net), parameters(child.net)
    assert {name for name in before if not torch.equal(before[name], after[name])} <= scales.keys()
    for name, scale in scales.items():
        a, b = held[f"{name}.A"].float(), held[f"{name}.B"].float()
        if class_name(base.net.get_submodule(name.rpartition(".")[0])) == "Linear":
            made = (before[name].float() + b @ a * scale).to(before[name].dtype)
            assert torch.allclose(made, after[name], atol=1e-6), name


def _scales(file: bytes) -> dict[str, float]:
    length = int.from_bytes(file[:8], "little")
    metadata = json.loads(file[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["factors"]
    said = json.loads(metadata["factors"])
    assert said.keys() == {"format", "scales"}
    assert said["format"] == 1
    scales: dict[str, float] = said["scales"]
    return scales


def test_an_adapters_factors_lie_with_its_update_and_a_checkpoint_has_none(base: Path, registry: Registry, tmp_path: Path) -> None:
    folder = _written(tmp_path)
    first = import_checkpoint(folder, str(base), registry)
    file = registry.attachment(first.update, FACTORS)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert _scales(file) == {name: 2.0}
    held, given = load(file), load_file(folder / "adapter_model.safetensors")
    assert torch.equal(held[f"{name}.A"], given[f"{STEM}.lora_A.weight"])
    assert torch.equal(held[f"{name}.B"], given[f"{STEM}.lora_B.weight"])
    assert import_checkpoint(folder, str(base), registry).update == first.update, "the same adapter gives the same file"
    shown = CliRunner().invoke(app, ["show", first.update, "--registry", str(tmp_path / "registry")])
    assert f"{FACTORS}: {registry.show(first.update).attachments[FACTORS]}" in shown.stdout
    tuned(base, tmp_path / "tuned", "attention")
    assert registry.show(import_checkpoint(tmp_path / "tuned", str(base), registry).update).attachments == {}


def _peft(base: Path, folder: Path, **settings: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """An adapter with random matrices as PEFT saves it, and what PEFT merges into fp32 weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    net = loaded(base).net.float()
    wrapped = get_peft_model(net, LoraConfig(**{"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 6, **settings}))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    wrapped.save_pretrained(str(folder))
    merged: Any = wrapped.merge_and_unload()
    return folder, {name: tensor.detach() for name, tensor in merged.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 9}},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
)
def test_an_adapter_that_peft_wrote_is_merged_as_peft_does(
    settings: dict[str, Any], base: Path, registry: Registry, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder, merged = _peft(base, tmp_path / "adapter", **settings)
    recwarn.clear()
    found = import_checkpoint(folder, str(base), registry)
    child = load_version(registry, found.update)
    for name, tensor in parameters(child.net).items():
        assert torch.equal(tensor.detach(), merged[name].to(torch.bfloat16)), name


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"peft_type": "IA3"}, NotYet, "an adapter of the kind IA3"),
        ({"use_dora": True}, NotYet, "LoRA with use_dora: True"),
        ({"bias": "all"}, NotYet, "LoRA with bias: all"),
        ({"modules_to_save": ["lm_head"]}, NotYet, "LoRA with modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, NotYet, "LoRA with init_lora_weights: pissa_niter_4"),
        ({"alpha_pattern": {"(a+)+$": 2}}, NotYet, "a regular expression"),
        ({"r": 7}, ModelError, r"has matrices of rank 4, its settings say 7"),
        ({"lora_alpha": "8"}, ModelError, "r and lora_alpha are"),
        ({"auto_map": {"x": "y"}}, ModelError, "asks for code of its own"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(
    settings: dict[str, Any], error: type[Exception], words: str, base: Path, registry: Registry, tmp_path: Path
) -> None:
    folder = _written(tmp_path)
    old = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(old | settings))
    with pytest.raises(error, match=words):
        import_checkpoint(folder, str(base), registry)


def _written(place: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda _: None) -> Path:
    """A small adapter of q in layer 0, written by hand."""
    folder = place / "adapter"
    folder.mkdir()
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_A.weight": torch.ones(4, 32), f"{stem}.lora_B.weight": torch.ones(32, 4)}
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}))
    return folder


STEM = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"../../x": torch.ones(1)}), r"'\.\./\.\./x' is no name of a tensor"),
        (lambda t: t.update({f"{STEM.replace('q_', 'z_')}.lora_A.weight": torch.ones(4, 32)}), "belong to no weight of the base"),
        (lambda t: t.update({"base_model.model.model.norm.base_layer.weight": torch.zeros(32)}), "or are another one: base_model"),
        (lambda t: t.pop(f"{STEM}.lora_B.weight"), "one of the two matrices"),
        (lambda t: t.update({f"{STEM}.lora_B.weight": torch.ones(31, 4)}), r"its update of .* is \[31, 32\], the weight \[32, 32\]"),
        (lambda t: t.update({f"{STEM}.lora_B.weight": torch.ones(32, 5)}), r"its matrices for .* are \[4, 32\] and \[32, 5\]"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    change: Callable[[Any], object], words: str, base: Path, registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        import_checkpoint(_written(tmp_path, change), str(base), registry)


def test_a_pickle_beside_an_adapter_is_refused(base: Path, registry: Registry, tmp_path: Path) -> None:
    folder = _written(tmp_path)
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"training_args\.bin"):
        import_checkpoint(folder, str(base), registry)
    (folder / "training_args.bin").unlink()
    assert isinstance(import_checkpoint(folder, str(base), registry), Imported)


@pytest.mark.parametrize(
    ("family", "patterns"),
    [
        ("llama", ["language.layers[1].attn.{q,k}", "head"]),
        ("qwen3_moe", ["language.layers.*.moe.experts[1:3].up", "language.layers.0.attn.q"]),
        ("qwen3_moe", ["language.layers[0].moe.experts[0,2-3].{gate,down}", "language.layers[1].moe.experts.*.up"]),
        ("llava", ["vision.layers.*.attn.q", "projector.*", "language.norm"]),
        ("phi3", ["*"]),
    ],
)
def test_patterns_of_ours_select_exactly_what_moved(family: str, patterns: list[str], tiny: Callable[[str], Any]) -> None:
    found = map_model(tiny(family), family)
    chosen = found.select(patterns, tie="allow")
    ours = covering(found, chosen.names)
    assert found.select(ours, tie="allow").digest == chosen.digest
    assert len(ours) <= max(len(patterns) + 1, 20)
    preset = smallest_preset(found, chosen.names)
    assert preset is not None
    assert set(chosen.names) <= set(preset[1].names)


def test_import_on_the_command_line_makes_the_registry_and_reports(base: Path, tmp_path: Path) -> None:
    tuned(base, tmp_path / "tuned", "language.layers[1].attn.q")
    shutil.copy(base / "tokenizer.json", tmp_path / "tuned")
    words = ["import", str(tmp_path / "tuned"), "--base", str(base), "--registry", str(tmp_path / "made")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "selected by language.layers[1].attn.q: 1,024 of" in done.stdout
    assert "smallest preset that has all of it: attention-qkv" in done.stdout
    assert "untouched: language.embed" in done.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert document["update"] == Registry.open(tmp_path / "made").log()[0].id
    assert document["patterns"] == ["language.layers[1].attn.q"]
