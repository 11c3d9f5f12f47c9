"""Model folders that are damaged or hostile, and architectures that are not there: one message each, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model
from selectune.cli import app
from selectune.components import map_architecture
from selectune.errors import ModelError
from selectune.models import load
from selectune.pipeline import map_any
from selectune.untrusted import LARGEST_CONFIG, check_folder

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A good model folder, free to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


class _Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Payload(path.parent / "it-ran")))


def _settings(folder: Path, name: str, **settings: object) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | settings))


def _told(folder: Path) -> str:
    """The one message that load, map and the program give."""
    messages = []
    for read in (lambda: load(str(folder)), lambda: map_any(str(folder), "none")):
        with pytest.raises(ModelError) as caught:
            read()
        messages.append(str(caught.value))
    for arguments in (["map", str(folder)], ["map", str(folder), "attention", "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.strip() == f"ModelError: {messages[0]}"
        assert "--json" in arguments or not result.stdout
    assert json.loads(result.stdout) == {"error": {"kind": "ModelError", "message": messages[0], "exit_code": 2}}
    assert messages[0] == messages[1]
    assert not (folder / "it-ran").exists()
    return messages[0]


def _told_by_load(folder: Path) -> str:
    """The message of what needs the weights; a map does not."""
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert map_any(str(folder), "none").elements > 0
    assert not (folder / "it-ran").exists()
    return str(caught.value)


def test_an_adapter_that_would_bring_another_model_is_refused(folder: Path) -> None:
    _settings(folder, "adapter_config.json", base_model_name_or_path="/somewhere/else", peft_type="LORA")
    assert "an adapter for another model" in _told(folder)


def test_a_good_folder_passes(folder: Path) -> None:
    check_folder(folder)
    assert load(str(folder)).map.elements == map_any(str(folder), "none").elements


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json"])
def test_a_config_that_asks_for_code_is_refused_wherever_it_stands(name: str, folder: Path) -> None:
    _settings(folder, name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    assert _told(folder) == (
        f"model {folder}: the model asks for code of its own ({name}: auto_map). "
        "selectune runs no code from a model folder; use a model type that transformers knows."
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"text_config": {"deep": [{"auto_map": {"AutoConfig": "someone/else--configuration.Evil"}}]}}, "auto_map"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"vision": {"hub_trust_remote_code": 1}}, "hub_trust_remote_code"),
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ({"_experts_implementation": "someone/kernel:forward"}, "_experts_implementation"),
    ],
)
def test_other_settings_that_fetch_code_are_refused(settings: dict[str, object], key: str, folder: Path) -> None:
    _settings(folder, "config.json", **settings)
    assert f"the model asks for code of its own (config.json: {key})" in _told(folder)


def test_settings_that_ask_for_nothing_pass(folder: Path) -> None:
    _settings(folder, "config.json", auto_map=None, trust_remote_code=False, attn_implementation="eager", note="auto_map")
    check_folder(folder)


def test_python_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("import os\nos.mkdir('it-ran')\n")
    assert "the model brings code of its own, modeling_evil.py. selectune runs no code from a model folder" in _told(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "x.pth", "x.ckpt", "x.pkl", "x.pickle", "TRAINING_ARGS.BIN"])
def test_a_pickle_is_refused_though_safetensors_are_there(name: str, folder: Path) -> None:
    _pickle(folder / name)
    assert _told(folder) == (
        f"model {folder}: it holds {name}, a kind of file that runs what its author wrote when it is read. "
        "Delete it: the safetensors beside it are read instead."
    )


def test_a_pickle_alone_is_refused_with_another_way(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _pickle(folder / "pytorch_model.bin")
    assert "it holds pytorch_model.bin" in _told(folder)
    assert _told(folder).endswith("Convert it with save_pretrained, where you trust it.")


def test_what_lies_in_sub_folders_is_never_read_and_so_not_refused(folder: Path) -> None:
    (folder / "original").mkdir()
    _pickle(folder / "original" / "consolidated.00.pth")
    (folder / "original" / "tool.py").write_text("raise SystemExit('ran')\n")
    assert load(str(folder)).map.elements == map_any(str(folder), "none").elements
    assert not (folder / "original" / "it-ran").exists()


def _sharded(folder: Path, place: str) -> None:
    """Weights behind an index that says that one tensor lies elsewhere."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "model-00001-of-00001.safetensors", framework="np") as file:
        names = list(file.keys())
    places = dict.fromkeys(names, "model-00001-of-00001.safetensors") | {names[0]: place}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("place", ["original/consolidated.00.pth", "../other.safetensors", "/etc/passwd", "gone.safetensors"])
def test_an_index_that_leads_away_from_the_safetensors_of_the_folder_is_refused(place: str, folder: Path) -> None:
    (folder / "original").mkdir()
    _pickle(folder / "original" / "consolidated.00.pth")
    _sharded(folder, place)
    assert f'in "{place}", which is no safetensors file of this folder. Put every file that the index names beside it.' in _told_by_load(
        folder
    )
    assert not (folder / "original" / "it-ran").exists()


def test_an_index_that_names_its_own_files_passes(folder: Path) -> None:
    _sharded(folder, "model-00001-of-00001.safetensors")
    check_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt"])
def test_a_link_out_of_the_folder_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    if (folder / name).exists():
        (folder / name).rename(away)
    else:
        away.write_text("secret")
    (folder / name).symlink_to(away)
    assert _told(folder) == f"model {folder}: {name} is a link out of the folder, to {away}. Copy that file into the folder."


def test_a_link_that_goes_round_is_refused(folder: Path) -> None:
    (folder / "a.txt").symlink_to(folder / "b.txt")
    (folder / "b.txt").symlink_to(folder / "a.txt")
    assert "a.txt is a link that leads nowhere. Copy the file that it means." in _told(folder)


def test_links_inside_the_folder_and_the_hubs_own_cache_pass(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    check_folder(snapshot)
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "model.safetensors")
    (folder / "model.safetensors").symlink_to(Path("weights") / "model.safetensors")
    check_folder(folder)


def _nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "there is no config.json. Give the folder that holds config.json and *.safetensors.",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON (Expecting property name"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"), "config.json is no JSON ('utf-8' codec can't decode"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no object of settings"),
        (lambda folder: (folder / "config.json").write_text("9" * 5000), "config.json is no JSON (Exceeds the limit (4300 digits)"),
        (_nested, "config.json is no JSON (maximum recursion depth exceeded"),
        (
            lambda folder: (folder / "config.json").write_text('{"a": "' + "b" * LARGEST_CONFIG + '"}'),
            "config.json has 16,777,225 bytes, over the limit of 16,777,216. A real one is far smaller: look what it holds.",
        ),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is no JSON"),
    ],
)
def test_a_config_that_is_none_gets_one_message(spoil: Spoil, words: str, folder: Path) -> None:
    spoil(folder)
    assert words in _told(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "lama"}, "lama"),
        ({"model_type": None}, ""),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_attention_heads": 0}, ""),
        ({"hidden_size": -1}, ""),
        ({"model_type": "clip"}, ""),
    ],
)
def test_a_config_that_builds_no_model_gets_one_message(settings: dict[str, object], words: str, folder: Path) -> None:
    _settings(folder, "config.json", **settings)
    for arguments in (["map", str(folder)], ["map", str(folder), "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith(f"ModelError: model {folder}: its config.json builds no model (")
        assert words in line
    with pytest.raises(ModelError, match="transformers cannot load it"):
        load(str(folder))


def _header(path: Path, text: bytes, *, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x04K\x01."),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: _header(path, b"{}", length=1 << 60),
        lambda path: _header(path, b"[" * 1000),
        lambda path: _header(path, b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1]}}'),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ],
    ids=["empty", "a pickle", "cut off", "too long", "a huge header", "no header", "a wrong shape", "a pointer of git-lfs"],
)
def test_safetensors_with_a_broken_header_are_named(spoil: Spoil, folder: Path) -> None:
    spoil(folder / "model.safetensors")
    told = _told_by_load(folder)
    assert told.startswith(f"model {folder}: model.safetensors is no whole safetensors file (")
    assert told.endswith("Copy or download the file again: it is damaged, or not all of it is there.")


def test_weights_of_another_shape_than_the_config_says_get_one_message(folder: Path) -> None:
    _settings(folder, "config.json", intermediate_size=64)
    assert _told_by_load(folder).startswith(f"model {folder}: transformers cannot load it (")


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert _told_by_load(folder).startswith(
        f"model {folder}: its files lack 1 of the model's tensors, such as model.layers.1.self_attn.q_proj.weight. Copy the files"
    )


def test_a_folder_without_weights_is_mapped_and_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert _told_by_load(folder).endswith(
        "there are no *.safetensors weights. Convert it with save_pretrained (safetensors). `selectune map` needs no weights."
    )


def test_a_pipe_in_place_of_weights_does_not_hang(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "model.safetensors is neither a file nor a folder" in _told(folder)


def test_a_file_in_place_of_a_folder_is_said_to_be_one(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"this is a file\. Give the folder that holds config\.json"):
        load(str(folder / "config.json"))


# --- architectures


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lava", "arch:llava"),
        ("lama", "arch:llama"),
        ("Llama", "arch:llama"),
        ("qwen2.5-vl", "arch:qwen2_5_vl"),
        ("qwen25vl", "arch:qwen2_5_vl"),
        ("LlavaForConditionalGeneration", "arch:llava"),
        ("Qwen2_5_VLForConditionalGeneration", "arch:qwen2_5_vl"),
        ("meta-llama/Llama", "arch:llama"),
    ],
)
def test_an_unknown_architecture_lists_near_ones(name: str, near: str) -> None:
    with pytest.raises(ModelError) as caught:
        map_architecture(name)
    assert f'"{name}" is no architecture that transformers builds. Did you mean ' in str(caught.value)
    assert near in str(caught.value).replace("?", " ").split()
    result = CliRunner().invoke(app, ["map", f"arch:{name}"])
    assert (result.exit_code, result.stderr) == (2, f"ModelError: {caught.value}\n")


@pytest.mark.parametrize("name", ["", "zzzzzzzz", "x" * 10_000, "../../etc", "arch:llama\n"])
def test_an_architecture_like_none_gets_one_short_message(name: str) -> None:
    with pytest.raises(ModelError, match="is no architecture that transformers builds") as caught:
        map_architecture(name)
    assert len(str(caught.value)) < 400
    assert caught.value.then


# --- patterns, through the program


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "map[0]: a pattern is empty. Write a component's name, a glob or a preset, such as attention."),
        ("*a" * 5000, "map[0]: a pattern has 10000 characters, over the limit of 1000. Write several patterns."),
        ("language.layers[8:24].attn.q", 'map[0]: "[8:24]" goes beyond language.layers, which has 2 (0 to 1). Bounds go from -2 to 2.'),
        ("language.layers[2].attn.q", 'map[0]: "[2]": 2 is no index of language.layers, which has 2 (0 to 1).'),
        (".*q_proj$", "no regular expressions. Did you mean language.layers.*.attn.q (2 components)?"),
        ("model.layers.0.self_attn.q_proj", "matches no component. Did you mean language.layers.*.attn.q (2 components)?"),
        ("transformer.h.0.attn.c_attn", 'map[0]: "transformer.h.0.attn.c_attn" matches no component. Did you mean language.layers.*.attn.'),
    ],
)
def test_a_pattern_that_is_wrong_gets_one_message(pattern: str, words: str, whole: Path) -> None:
    result = CliRunner().invoke(app, ["map", str(whole), pattern])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert words in line
    assert not result.stdout
