"""`capture`: other people's trainers keep the selection, and give an exact delta."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from conftest import tiny_model
from delta_fixtures import model_of, quick_disk
from evaluation_fixtures import llava, picture
from selectune.components import Selection, map_model, views
from selectune.delta import Delta, apply, capture, revert
from selectune.errors import DeltaError, InputError, SelectionViolated
from selectune.hashing import manifest
from selectune.network import state

PATTERNS = ("language.layers.0.attn.q", "language.layers.1.attn.o")
FUSED = "model.layers.0.self_attn.qkv_proj.weight"
"""Query, key and value in one tensor: rows 0-31 are the query's."""
WHOLE = "model.layers.1.self_attn.o_proj.weight"


def _phi(dtype: torch.dtype = torch.float32) -> Any:
    return tiny_model("phi3").to(dtype)


def _select(net: Any, patterns: tuple[str, ...] = PATTERNS, tie: Literal["forbid", "allow"] = "forbid") -> Selection:
    return map_model(net, "tiny").select(patterns, tie=tie)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def _loop(net: nn.Module, *, steps: int = 3, everything: bool = False, build: Any = torch.optim.AdamW, **options: Any) -> None:
    """Somebody's plain loop."""
    parameters = [parameter for parameter in net.parameters() if everything or parameter.requires_grad]
    optimizer = build(parameters, lr=0.05, **options)
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]])
    for _ in range(steps):
        net(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_loop_gives_a_delta_that_goes_both_ways(dtype: torch.dtype, tmp_path: Path) -> None:
    net = _phi(dtype)
    model = model_of(net)
    with capture(model, _select(net), meta={"trainer": "loop"}) as captured:
        _loop(net)
    captured.delta.save(tmp_path / "update.delta")
    delta = Delta.load(tmp_path / "update.delta")
    assert (delta.meta, delta.patterns) == ({"trainer": "loop"}, PATTERNS)
    assert (delta.parent, delta.child) == (model.id, manifest(net).id)
    parent = revert(captured.updated(model), delta)
    assert parent.id == model.id == manifest(_phi(dtype)).id
    assert apply(parent, delta).id == delta.child


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.5}),
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True, "fused": True}),
    ],
)
def test_weight_decay_and_momentum_do_not_reach_outside_the_slice(build: Any, options: dict[str, Any]) -> None:
    net = _phi()
    weight = net.get_parameter(FUSED)
    old = weight.detach().clone()
    with capture(net, _select(net)) as captured:
        _loop(net, build=build, **options)
    assert weight[32:].equal(old[32:])
    assert (weight[:32] != old[:32]).any(dim=1).all()
    assert captured.delta.elements == 2 * 32 * 32


@pytest.mark.parametrize(
    ("family", "pattern"),
    [
        ("gpt2", "language.layers.*.attn.v"),
        ("gpt_neox", "language.layers.0.attn.{q,k}"),
        ("falcon_groups", "language.layers.*.attn.v"),
        ("codegen", "language.layers.*.attn.k"),
        ("qwen3_moe", "language.layers.*.moe.experts[1:3].gate"),
        ("gpt_oss", "language.layers.*.moe.experts.*.up"),
        ("dbrx", "language.layers.*.moe.experts[1:].down"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_slice_is_trained_alone(family: str, pattern: str, dtype: torch.dtype) -> None:
    net = tiny_model(family).to(dtype)
    selection = _select(net, (pattern,))
    old = {name: tensor.detach().clone() for name, tensor in state(net).items()}
    with capture(net, selection) as captured:
        _loop(net, weight_decay=0.3)
    for name, regions in selection.parameters.items():
        assert regions is not None
        now = state(net)[name].detach()
        inside = torch.zeros_like(now, dtype=torch.bool)
        for region in regions:
            for view in views(inside, region):
                view.fill_(True)
        assert torch.equal(now[~inside], old[name][~inside])
        assert (now != old[name]).any()
    assert captured.delta.tensors.keys() == selection.parameters.keys()


class _Averaged(nn.Module):
    """A tiny model with batch-norm in a frozen part, and one in the selected part."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.chosen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.chosen(self.tower(x))


def test_frozen_parts_stay_in_evaluation_mode_through_every_train() -> None:
    net = _Averaged()
    names = [component.name for component in map_model(net, "averaged").components if component.parameter.startswith("chosen.0")]
    selection = map_model(net, "averaged").select(tuple(dict.fromkeys(names)))
    net.train()
    with capture(net, selection) as captured:
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            net.train()
            assert not any(module.training for module in (net.tower, *net.tower, net.chosen[1]))
            assert net.chosen.training
            assert net.chosen[2].training
            net(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
    assert net.tower[1].num_batches_tracked == 0
    assert captured.delta.tensors.keys() == {"chosen.0.weight", "chosen.0.bias"}
    assert all(module.training for module in net.modules())
    net.eval()
    assert not any(module.training for module in net.modules())


def test_the_forward_pass_never_sees_the_rest_of_a_slice_moved() -> None:
    net = _phi()
    old, seen = net.get_parameter(FUSED).detach().clone(), []
    net.model.layers[0].self_attn.qkv_proj.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    with capture(net, _select(net)):
        _loop(net, weight_decay=0.5)
    assert len(seen) == 3
    assert not seen[-1].equal(old)
    assert all(weight[32:].equal(old[32:]) for weight in seen)


def test_without_hold_a_slice_that_leaks_is_refused() -> None:
    net = _phi()
    with (
        pytest.raises(SelectionViolated, match="outside the selection: " + FUSED.replace(".", r"\.")),
        capture(net, _select(net), hold=False),
    ):
        _loop(net, weight_decay=0.5)


def test_only_the_selection_requires_gradients_inside_and_everything_is_put_back() -> None:
    net = _phi()
    weight = net.get_parameter(FUSED)
    net.lm_head.weight.requires_grad_(False)
    with capture(net, _select(net)):
        assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == [FUSED, WHOLE]
        _loop(net)
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == ["lm_head.weight"]
    before = weight.detach().clone()
    _loop(net)
    assert not weight[32:].equal(before[32:]), "the hold outlived its block"


def test_a_block_that_raises_puts_everything_back_and_has_no_delta() -> None:
    net = _phi()
    with pytest.raises(ZeroDivisionError), capture(net, _select(net)) as captured:
        _ = 1 / 0
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(InputError, match="the delta is not there yet"):
        _ = captured.delta


def test_the_delta_is_there_only_after_the_block() -> None:
    net = _phi()
    with capture(net, _select(net)) as captured:
        with pytest.raises(InputError, match="Read it after the `with` block"):
            _ = captured.delta
        _loop(net)
    assert captured.delta.moved() > 0


def test_a_tied_weight_is_trained_once_and_stays_tied() -> None:
    net = tiny_model("tied")
    with capture(net, _select(net, ("language.embed",), "allow")) as captured:
        _loop(net)
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
    assert list(captured.delta.tensors) == ["model.embed_tokens.weight"]


def _shift_a_buffer(net: Any) -> None:
    _loop(net)
    net.model.rotary_emb.inv_freq.mul_(2)


def _stale_gradient(net: Any) -> None:
    net.lm_head.weight.grad = torch.ones_like(net.lm_head.weight)
    _loop(net, everything=True)


@pytest.mark.parametrize(("train", "name"), [(_shift_a_buffer, "inv_freq"), (_stale_gradient, r"lm_head\.weight")])
def test_what_moves_outside_the_selection_is_refused(train: Callable[[Any], None], name: str) -> None:
    net = _phi()
    with pytest.raises(SelectionViolated, match=name), capture(net, _select(net)) as captured:
        train(net)
    with pytest.raises(InputError, match="not there"):
        _ = captured.delta


def test_a_selected_component_that_stands_still_is_refused_unless_it_may() -> None:
    net = _phi()
    with pytest.raises(SelectionViolated, match=r"language\.layers\.0\.attn\.q is selected and did not move"), capture(net, _select(net)):
        pass
    with capture(net, _select(net), still="report") as captured:
        pass
    assert (captured.delta.moved(), captured.delta.child) == (0, captured.delta.parent)


def test_a_net_that_changes_its_dtype_is_refused() -> None:
    net = _phi()
    with pytest.raises(DeltaError, match=r"was F32 .* and is BF16"), capture(net, _select(net)):
        net.to(torch.bfloat16)


def test_a_net_that_gains_tokens_is_refused() -> None:
    net = _phi()
    with pytest.raises(DeltaError, match=r'"lm_head\.weight" was F32 \[64, 32\] and is F32 \[70, 32\]'), capture(net, _select(net)):
        net.lm_head = nn.Linear(32, 70, bias=False)


# Other people's trainers.


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.5,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def _moved(net: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in state(net).items() if not tensor.equal(before[name])]


def _check(net: Any, delta: Delta, before: dict[str, torch.Tensor]) -> None:
    assert _moved(net, before) == [FUSED, WHOLE] == list(delta.tensors)
    assert state(net)[FUSED][32:].equal(before[FUSED][32:])
    assert delta.child == manifest(net).id
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.slow
def test_hugging_face_trainer_trains_the_selection_alone(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    net = _phi()
    before = {name: tensor.detach().clone() for name, tensor in state(net).items()}
    rows = [{"input_ids": [1, *range(5 + n, 13 + n)], "labels": [1, *range(5 + n, 13 + n)]} for n in range(6)]
    with capture(net, _select(net)) as captured:
        Trainer(model=net, args=TrainingArguments(**_settings(tmp_path)), train_dataset=Dataset.from_list(rows)).train()
    _check(net, captured.delta, before)


def _tokenizer() -> Any:
    """Words of one letter, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.slow
# TRL asks transformers for a setting by the name that it had before.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_trl_sft_trainer_trains_the_selection_alone(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    net = _phi()
    before = {name: tensor.detach().clone() for name, tensor in state(net).items()}
    rows = [{"prompt": "a b c", "completion": " d e f"}, {"prompt": "g h", "completion": " i j k"}] * 3
    with capture(net, _select(net)) as captured:
        SFTTrainer(
            model=net,
            args=SFTConfig(**_settings(tmp_path), max_length=16, bf16=False),
            train_dataset=Dataset.from_list(rows),
            processing_class=_tokenizer(),
        ).train()
    _check(net, captured.delta, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # trainers have many a remark on a tiny model
def test_trl_sft_trainer_trains_the_selection_of_a_model_that_sees(tmp_path: Path) -> None:
    from datasets import Dataset, Image
    from trl import SFTConfig, SFTTrainer

    made = llava()
    net: Any = made.net
    before = {name: tensor.detach().clone() for name, tensor in state(net).items()}
    rows = [
        {
            "images": [{"bytes": picture(number).data, "path": None}],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}],
        }
        for number in range(6)
    ]
    data = Dataset.from_list(rows).cast_column("images", [Image()])
    selection = made.map.select(("language.layers.*.attn.{q,v}", "projector"))
    with capture(net, selection) as captured:
        SFTTrainer(
            model=net,
            args=SFTConfig(**_settings(tmp_path), max_length=None, bf16=False, activation_checkpointing=False),
            train_dataset=data,
            processing_class=made.processor,
        ).train()
    assert set(_moved(net, before)) == set(selection.parameters) == set(captured.delta.tensors)
    assert captured.delta.child == manifest(net).id


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_the_selection_alone(tmp_path: Path) -> None:
    import pytorch_lightning as lightning

    net = _phi()
    before = {name: tensor.detach().clone() for name, tensor in state(net).items()}

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.net(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)

    rows = torch.stack([torch.arange(5 + number, 13 + number) for number in range(6)])
    with capture(net, _select(net)) as captured:
        trainer = lightning.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(rows, batch_size=2))
    _check(net, captured.delta, before)
