"""Names in memory and on disk, and full checkpoints that keep to the files of their base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Transpose
from typer.testing import CliRunner

import evaluation_fixtures as tiny_models
from pipeline_fixtures import save_model
from selectune.cli import app
from selectune.components import map_model, views
from selectune.components.architecture import causal_types, image_text_types
from selectune.components.disk import Stored, alone, disk_names, follow, in_files, layout, revert, tensors_of
from selectune.components.standins import stand_ins
from selectune.delta import Delta, extract, snapshot
from selectune.errors import DeltaError, InputError, ModelError, NotYet, StorageError, WrongParent
from selectune.hashing import dtype_name, manifest
from selectune.models import Model, assemble, load
from selectune.pipeline import locate_any, save_checkpoint, save_full
from selectune.pipeline.slots import weight_folder
from selectune.registry import Registry
from selectune.registry.update import Update
from small import small

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMED = (
    *("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"),
    *("phi3", "mixtral", "qwen3_moe", "deepseek_v3", "gpt2", "llama"),
)
CONVERTED = ("llava", "phi3", "mixtral", "qwen3_moe", "deepseek_v3", "gpt2", "ernie4_5_vl_moe", "gpt_oss", "dbrx")
EXPERTS = ("mixtral", "qwen3_moe")
Tiny = Callable[[str], "PreTrainedModel"]
Header = dict[str, tuple[str, tuple[int, ...]]]

pytestmark = pytest.mark.filterwarnings("ignore:.*was not found in model.*")


def header(folder: Path) -> Header:
    """Every tensor in the files of a folder, read by safetensors itself: dtype and shape."""
    found: Header = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), tuple(part.get_shape()))
    return found


def values(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def changed(left: Path, right: Path) -> set[str]:
    """Names of the tensors whose bytes differ."""
    one, other = values(left), values(right)
    assert one.keys() == other.keys()
    return {name for name, tensor in one.items() if not tensor.view(torch.uint8).equal(other[name].view(torch.uint8))}


def by_component(net: PreTrainedModel) -> dict[str, set[Stored]]:
    found = map_model(net, "small")
    rows: dict[str, set[Stored]] = {}
    for component, row in zip(found.components, disk_names(net, found), strict=True):
        rows.setdefault(component.name, set()).update(row)
    return rows


def taught(model: Model, patterns: Sequence[str], amount: float = 0.5) -> tuple[Model, Delta]:
    """The model after every selected element has grown, and the delta that leads there."""
    selection = model.map.select(patterns)
    before = snapshot(model, selection)
    parameters = dict(model.net.named_parameters())
    with torch.no_grad():
        for component in selection.components:
            for view in views(parameters[component.parameter], component.slice):
                view.add_(amount)
    delta = extract(model, before, selection)
    return model.updated(manifest(model.net)), delta


def base(folder: Path, net: PreTrainedModel, **options: Any) -> Path:
    """A language model with a tokenizer as a folder."""
    net.save_pretrained(folder, **options)
    tiny_models.tokenizer(size=290).save_pretrained(folder)
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The folder with other tensors in its one file."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return folder


def configured(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def written(child: Model, deltas: Sequence[Delta], out: Path) -> Path:
    """The checkpoint of a model in memory, which is to the byte that of its base by name."""
    save_checkpoint(child, deltas, out)
    again = save_checkpoint(child.name, deltas, out.parent / "by-name")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {path.name: path.read_bytes() for path in again.iterdir()}
    return out


# names


@pytest.mark.parametrize("model_type", NAMED)
def test_the_names_on_disk_are_those_that_save_pretrained_writes(model_type: str, tmp_path: Path) -> None:
    net = small(model_type)
    net.save_pretrained(tmp_path)
    written = header(tmp_path)
    assert layout(net).tensors == written
    assert layout(small(model_type, "meta")).tensors == written
    again = type(net).from_pretrained(tmp_path)
    assert layout(again).tensors == written
    located = {stored.name for row in by_component(again).values() for stored in row}
    buffers = {name for name, sources in layout(again).sources.items() if not set(sources) & dict(again.named_parameters()).keys()}
    assert located | buffers == written.keys()


@pytest.mark.parametrize("model_type", CONVERTED)
def test_changing_a_component_changes_the_tensors_that_hold_it_and_no_others(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour decides: one component of each family is changed in memory, and everything is converted before and after."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]}
    fitted = {"text_config.rope_parameters": rope, "text_config.moe_intermediate_size": [32, 16]}
    monkeypatch.setattr("small.FITTED", {"ernie4_5_vl_moe": fitted})
    net = small(model_type)
    plan, found = layout(net), map_model(net, "small")
    kept = {name: tensor for name, tensor in tensors_of(net).items() if name in {one for many in plan.sources.values() for one in many}}
    before = {name: tensor.clone() for name, tensor in revert(net, kept, plan.tensors).items()}
    parameters = dict(net.named_parameters())
    seen: set[tuple[str, str]] = set()
    for component, row in zip(found.components, disk_names(net, found), strict=True):
        key = (component.name.partition(".layers.")[2].partition(".")[2] or component.name, component.parameter.rpartition(".")[2])
        if key in seen:
            continue
        seen.add(key)
        parts = views(parameters[component.parameter].detach(), component.slice)
        original = [part.clone() for part in parts]
        for view in parts:
            view.add_(1)
        after = revert(net, kept, plan.tensors)
        moved = {name: after[name] != before[name] for name in before}
        assert {name for name, places in moved.items() if places.any()} == {stored.name for stored in row}, component.name
        assert {name for name, places in moved.items() if places.all()} == {stored.name for stored in row if stored.whole}, component.name
        for view, bits in zip(parts, original, strict=True):
            view.copy_(bits)


def test_an_expert_of_a_packed_tensor_is_one_tensor_on_disk() -> None:
    found = by_component(small("qwen3_moe"))
    assert found["language.layers.1.moe.experts.3.gate"] == {Stored(name="model.layers.1.mlp.experts.3.gate_proj.weight", whole=True)}
    assert found["language.layers.0.attn.q"] == {Stored(name="model.layers.0.self_attn.q_proj.weight", whole=True)}


def test_llava_has_other_names_on_disk_and_phi_3_has_parts() -> None:
    llava = by_component(small("llava"))
    assert {stored.name for stored in llava["language.layers.0.attn.q"]} == {"language_model.model.layers.0.self_attn.q_proj.weight"}
    phi = by_component(small("phi3"))
    assert phi["language.layers.0.attn.q"] == {Stored(name="model.layers.0.self_attn.qkv_proj.weight", whole=False)}


def test_the_alias_of_a_tied_head_is_not_on_disk(tiny: Tiny) -> None:
    net = tiny("tied")
    plan = layout(net)
    assert "lm_head.weight" not in plan.tensors
    assert plan.aliases == {"model.embed_tokens.weight": ("lm_head.weight",)}
    assert alone(net, "lm_head.weight") == ("lm_head.weight",)


def test_a_tie_that_the_class_does_not_declare_is_refused(tiny: Tiny) -> None:
    net = tiny("llama")
    net.model.layers[0].mlp.up_proj.weight = net.model.layers[1].mlp.up_proj.weight
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: transformers does not save it \(.*Cut ties that its class does not declare"):
        layout(net)


def test_a_model_that_was_quantised_when_it_was_loaded_is_not_yet() -> None:
    net = small("mixtral")
    conversions = get_model_conversion_mapping(net)
    for conversion in conversions:
        conversion.quantization_operation = Transpose()
    net._weight_conversions = conversions
    with pytest.raises(NotYet, match=r"MixtralForCausalLM: transformers cannot take back how it was loaded \(.*quantization\)\. Load it"):
        layout(net)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_compiled_layer_has_the_names_that_it_had() -> None:
    net = small("mixtral")
    before = layout(net).tensors
    net.model.layers[1] = torch.compile(net.model.layers[1])
    assert layout(net).tensors == before


def test_a_name_that_does_not_come_of_a_tensor_is_refused(tiny: Tiny) -> None:
    net = tiny("llama")
    with pytest.raises(ModelError, match=r"does not make model\.norms\.weight of lm_head\.weight.*Save the model again"):
        revert(net, {"lm_head.weight": net.lm_head.weight}, ["model.norms.weight"])


@pytest.mark.parametrize("model_type", ["kimi_k25", "llava", "mixtral"])
@pytest.mark.parametrize("original", [True, False])
def test_a_model_without_weights_follows_the_names_of_files(model_type: str, original: bool, tmp_path: Path) -> None:
    net = small(model_type)
    net.save_pretrained(tmp_path, save_original_format=original)
    written = header(tmp_path)
    empty = small(model_type, "meta")
    follow(empty, written)
    assert layout(empty).tensors == written == layout(type(net).from_pretrained(tmp_path)).tensors


def test_a_prefix_is_added_or_left_out_as_in_the_files() -> None:
    assert in_files("transformer.h.0.w", {"h.0.w"}, "transformer") == "h.0.w"
    assert in_files("h.0.w", {"transformer.h.0.w"}, "transformer") == "transformer.h.0.w"
    assert in_files("h.0.w", {"h.0.w"}, "transformer") == "h.0.w"
    assert in_files("h.0.w", {"h.1.w"}, "transformer") is None


# full checkpoints


@pytest.mark.parametrize("model_type", EXPERTS)
def test_a_slice_of_packed_experts_becomes_the_tensor_of_one_expert(model_type: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small(model_type))
    child, delta = taught(load(str(folder)), ["language.layers.1.moe.experts.2.gate"])
    assert delta.parts[0].slice is not None
    out = written(child, [delta], tmp_path / "out")
    assert header(out) == header(folder)
    (name,) = changed(folder, out)
    assert ".1." in name
    assert name.endswith(("experts.2.gate_proj.weight", "experts.2.w1.weight"))
    assert load(str(out)).id == child.id


@pytest.mark.parametrize("model_type", EXPERTS)
def test_a_packed_delta_of_the_registry_applies_to_a_base_of_single_experts(model_type: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small(model_type), max_shard_size="100KB")
    registry = Registry.open(tmp_path / "registry", create=True)
    model, parent = load(str(folder)), None
    for number, patterns in enumerate(
        (["language.layers.0.moe.experts.{0,3}.gate"], ["language.layers.0.moe.experts.*.{up,down}", "head"])
    ):
        model, delta = taught(model, patterns)
        delta.save(tmp_path / "one.delta")
        parent = registry.add(Update(parent=parent, skill=f"s{number}", meta={"model": str(folder)}), tmp_path / "one.delta")
    assert parent is not None
    out = save_full(registry, parent, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted([*(path.name for path in folder.iterdir()), "selectune.json"])
    assert header(out) == header(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    experts = len({name for name in header(folder) if ".layers.0." in name and ".experts." in name}) // 3
    assert len(changed(folder, out)) == 2 + 2 * experts + 1
    assert load(str(out)).id == model.id
    assert json.loads((out / "selectune.json").read_text())["update"] == parent


@pytest.mark.parametrize("original", [True, False])
def test_a_llava_keeps_the_layout_of_its_base(original: bool, tmp_path: Path) -> None:
    made = tiny_models.llava()
    made.processor.save_pretrained(tmp_path / "base")
    made.net.save_pretrained(tmp_path / "base", save_original_format=original)
    child, delta = taught(load(str(tmp_path / "base")), ["attention", "projector"])
    out = written(child, [delta], tmp_path / "out")
    assert header(out) == header(tmp_path / "base")
    start = "language_model.model." if original else "model.language_model."
    assert all(name.startswith(start) for name in changed(tmp_path / "base", out) if "layers" in name)
    again = load(str(out))
    assert (again.id, again.is_vision) == (child.id, True)
    for name in ("config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_files_of_a_model_without_its_head_keep_their_names(tmp_path: Path) -> None:
    """As GPT-2's own are: its names lack `transformer.`."""
    folder = base(tmp_path / "base", small("gpt2"))
    rewritten(folder, lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    child, delta = taught(load(str(folder)), ["language.layers.0.attn.k"])
    out = written(child, [delta], tmp_path / "out")
    assert changed(folder, out) == {"h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias"}
    assert load(str(out)).id == child.id
    _, places = locate_any(str(folder), "none")
    assert {stored.name for row in places for stored in row} == header(folder).keys()


@pytest.mark.parametrize("copies", [1, 2])
def test_a_tied_tensor_has_as_many_copies_as_the_base_has(copies: int, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny("tied").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    if copies == 2:
        rewritten(folder, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    model = load(str(folder))
    child, delta = taught(model, ["language.embed", "head"])
    out = written(child, [delta], tmp_path / "out")
    assert changed(folder, out) == {"model.embed_tokens.weight", "lm_head.weight"} & header(folder).keys()
    assert len(changed(folder, out)) == copies
    again = load(str(out))
    assert again.id == child.id
    assert again.net.lm_head.weight is again.net.model.embed_tokens.weight


def test_a_base_that_has_a_tied_tensor_under_its_other_name_alone_keeps_to_that(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny("tied").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    rewritten(folder, lambda tensors: {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in tensors.items()})
    child, delta = taught(load(str(folder)), ["language.embed", "head"])
    out = written(child, [delta], tmp_path / "out")
    assert changed(folder, out) == {"lm_head.weight"}
    assert load(str(out)).id == child.id


def test_files_of_more_bits_keep_them_where_nothing_moved(tmp_path: Path) -> None:
    folder = configured(base(tmp_path / "base", small("phi3")), dtype="bfloat16")
    model = load(str(folder))
    assert dtype_name(next(model.net.parameters()).dtype) == "BF16"
    child, delta = taught(model, ["language.layers.0.attn.q"])
    out = written(child, [delta], tmp_path / "out")
    (name,) = changed(folder, out)
    old, new = (values(path)[name] for path in (folder, out))
    assert (old.dtype, new.dtype) == (torch.float32, torch.float32)
    assert old[64:].equal(new[64:])
    assert not old[64:].equal(old[64:].bfloat16().float()), "the base has bits that bfloat16 has not"
    assert load(str(out)).id == child.id


def test_what_the_model_does_not_hold_comes_along(tmp_path: Path) -> None:
    """As heads for multi-token prediction do, which transformers does not load."""
    folder = base(tmp_path / "base", small("deepseek_v3"))
    rewritten(folder, lambda tensors: {**tensors, "model.layers.61.eh_proj.weight": torch.ones(3, 5)})
    (folder / "LICENSE").write_text("As you like it.")
    child, delta = taught(load(str(folder)), ["attention"])
    out = written(child, [delta], tmp_path / "out")
    assert header(out) == header(folder)
    assert values(out)["model.layers.61.eh_proj.weight"].equal(torch.ones(3, 5))
    assert (out / "LICENSE").read_text() == "As you like it."


def test_a_model_without_files_is_saved_by_transformers(tmp_path: Path) -> None:
    model = assemble("nobody/knows-it", small("qwen3_moe"), tiny_models.tokenizer(size=290))
    child, delta = taught(model, ["gate-and-up"])
    out = save_checkpoint(child, [delta], tmp_path / "out", note={"why": "a test"})
    assert header(out) == layout(child.net).tensors
    assert load(str(out)).id == child.id
    assert json.loads((out / "selectune.json").read_text()) == {"why": "a test", "model_id": child.id, "base": "nobody/knows-it"}


def _refused(child: Model, deltas: Sequence[Delta], out: Path, error: type[Exception], match: str) -> None:
    beside = sorted(out.parent.iterdir())
    with pytest.raises(error, match=match):
        save_checkpoint(child, deltas, out)
    assert sorted(out.parent.iterdir()) == beside, "nothing is half written"


def test_files_that_changed_since_they_were_loaded_are_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small("llama"))
    child, delta = taught(load(str(folder)), ["down"])
    rewritten(folder, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    match = r"model\.safetensors: .*weight: F32 .* is not what the model was loaded with.*Begin again"
    _refused(child, [delta], tmp_path / "out", WrongParent, match)


def test_files_without_a_tensor_that_moved_are_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small("llama"))
    child, delta = taught(load(str(folder)), ["down"])
    rewritten(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.down" not in name})
    match = (
        r"checkpoint of LlamaForCausalLM: the update changed model\.layers\.1\.mlp\.down_proj\.weight, and .* have no .*Save the base again"
    )
    _refused(child, [delta], tmp_path / "out", ModelError, match)


def test_what_transformers_does_not_save_is_refused(tmp_path: Path) -> None:
    """As positions that are worked out anew are not, in Marian."""
    folder = base(tmp_path / "base", small("llama"))
    child, delta = taught(load(str(folder)), ["language.norm"])
    child.net._keys_to_ignore_on_save = ["model.norm.weight"]
    assert by_component(child.net)["language.norm"] == set()
    match = r"the update changed model\.norm\.weight, which transformers does not save\. Leave it out"
    _refused(child, [delta], tmp_path / "out", ModelError, match)


def test_a_save_that_went_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, delta = taught(assemble("nobody", small("llama"), tiny_models.tokenizer(size=290)), ["down"])
    half = child.net.__class__.save_pretrained

    def wrong(net: Any, folder: Path) -> None:
        half(net, folder)
        rewritten(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"})

    monkeypatch.setattr(child.net.__class__, "save_pretrained", wrong)
    match = r"1 tensors were not saved as they should be, model\.norm\.weight for one: None, expected \('F32', \(64,\)\)\. Install"
    _refused(child, [delta], tmp_path / "out", ModelError, match)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base(tmp_path / "base", small("llama"))
    child, delta = taught(load(str(folder)), ["down"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selectune.delta.files.os.fsync", full)
    _refused(child, [delta], tmp_path / "out", StorageError, r"out: cannot be written \(No space left on device\)\. Free space")


def test_files_of_fewer_bits_than_the_new_values_are_refused(tmp_path: Path) -> None:
    folder = configured(base(tmp_path / "base", small("llama").to(torch.bfloat16)), dtype="float32")
    child, delta = taught(load(str(folder)), ["down"], 1e-4)
    _refused(
        child, [delta], tmp_path / "out", DeltaError, r"BF16, as the file has it, cannot hold the new values, which are torch\.float32"
    )


def test_deltas_that_do_not_lead_to_the_model_are_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small("llama"))
    middle, first = taught(load(str(folder)), ["down"])
    child, second = taught(middle, ["attention"])
    _refused(child, [first], tmp_path / "out", DeltaError, r"a delta leads to model .*, and .* should follow.*in their order")
    _refused(child, [second, first], tmp_path / "out", DeltaError, "should follow")
    _refused(child, [second], tmp_path / "out", WrongParent, r"down_proj\.weight: .* is not what the model was loaded with")
    _refused(child, [], tmp_path / "out", InputError, "no delta is given")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    _refused(child, [first, second], tmp_path / "full", InputError, "is there already and not empty")


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small("llama"), max_shard_size="50KB")
    child, delta = taught(load(str(folder)), ["down"])
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    first = next(iter(found["weight_map"]))
    found["weight_map"][first] = "../elsewhere.safetensors"
    shutil.copy(next(iter(folder.glob("*.safetensors"))), tmp_path / "elsewhere.safetensors")
    index.write_text(json.dumps(found))
    _refused(child, [delta], tmp_path / "out", ModelError, r'its index names the file "\.\./elsewhere\.safetensors"')


def test_a_folder_whose_weights_are_gone_is_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", small("llama"))
    child, delta = taught(load(str(folder)), ["down"])
    (folder / "model.safetensors").unlink()
    match = r"base: there is neither model\.safetensors nor model\.safetensors\.index\.json\. Save it again"
    _refused(child, [delta], tmp_path / "out", ModelError, match)


def test_the_files_of_a_hub_id_are_those_of_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot_ = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    base(snapshot_, small("llama"))
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("a" * 40)
    assert weight_folder("org/name") == snapshot_
    assert weight_folder("org/other") is None
    assert weight_folder("embedded") is None


# the command line


def test_map_shows_both_names(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["map", "arch:mixtral", "gate-and-up", "--disk", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["components"]}
    row = rows["language.layers.3.moe.experts.7.gate"]
    assert row["disk"] == ["model.layers.3.block_sparse_moe.experts.7.w1.weight"]
    assert (row["parameter"], row["selected"]) == ("model.layers.3.mlp.experts.gate_up_proj", True)
    folder = save_model(tiny_models.llava(), tmp_path / "llava")
    text = CliRunner().invoke(app, ["map", str(folder), "attention", "--disk"], env={"COLUMNS": "200"}).stdout
    assert "model.language_model.layers.*.self_attn.q_proj.weight" in text
    assert "language_model.model.layers.*.self_attn.q_proj.weight" in text
    assert f"{len(header(folder))} tensors on disk" in text
    assert "vision" not in text


# every type

LARGEST = 20_000_000
"""Elements; a type that is larger after its sizes were cut is not built."""
REFUSED_AT_MOST = {"image-text": 3, "causal": 6}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # half of the families have a remark to make
@pytest.mark.parametrize(("kind", "types"), [("image-text", image_text_types()), ("causal", causal_types())])
def test_every_type_that_can_be_built_small_has_the_names_that_it_is_saved_with(kind: str, types: Sequence[str], tmp_path: Path) -> None:
    refused: dict[str, str] = {}
    wrong: dict[str, set[str]] = {}
    for model_type in types:
        try:
            if sum(parameter.numel() for parameter in small(model_type, "meta").parameters()) > LARGEST:
                refused[model_type] = "still large when cut"
                continue
            net = small(model_type)
            net.save_pretrained(tmp_path / model_type)
        except Exception as error:  # noqa: BLE001  # whatever a family raises for sizes that do not fit it, or for being saved
            refused[model_type] = f"{type(error).__name__}: {str(error)[:100]}"
            continue
        written = header(tmp_path / model_type)
        with stand_ins():
            again = type(net).from_pretrained(tmp_path / model_type, config=net.config)
        shutil.rmtree(tmp_path / model_type)
        for found in (layout(net).tensors, layout(again).tensors):
            if found != written:
                wrong[model_type] = {name for name in found.keys() | written.keys() if found.get(name) != written.get(name)}
        by_component(net)
    assert not wrong
    assert len(refused) <= REFUSED_AT_MOST[kind], refused
