"""`capture`: other people's trainers keep the selection, and give an exact delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from delta_fixtures import Tied, model_of, quick_disk, selecting, tied
from selectune.components import Region, Selection
from selectune.delta import Delta, apply, capture, revert
from selectune.errors import DeltaError, InputError, SelectionViolated
from selectune.hashing import manifest, state

SLICED: dict[str, Region | None] = {"q.weight": ((0, 0, 8, 2),), "o.weight": None}


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


def _loop(net: nn.Module, *, steps: int = 3, everything: bool = False, build: Any = torch.optim.AdamW, **options: Any) -> None:
    """Somebody's plain loop."""
    parameters = [parameter for parameter in net.parameters() if everything or parameter.requires_grad]
    optimizer = build(parameters, lr=0.05, **options)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_loop_gives_a_delta_that_goes_both_ways(dtype: torch.dtype, tmp_path: Path) -> None:
    net = tied(dtype=dtype)
    model = model_of(net)
    with capture(model, selecting(net, SLICED), meta={"trainer": "loop"}) as captured:
        _loop(net)
    captured.delta.save(tmp_path / "update.delta")
    delta = Delta.load(tmp_path / "update.delta")
    assert delta.meta == {"trainer": "loop"}
    assert (delta.parent, delta.child) == (model.id, manifest(net).id)
    parent = revert(captured.updated(model), delta)
    assert parent.id == model.id == manifest(tied(dtype=dtype)).id
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
    net = tied()
    old = net.q.weight.detach().clone()
    with capture(net, selecting(net, SLICED)) as captured:
        _loop(net, build=build, **options)
    assert net.q.weight[1::2].equal(old[1::2])
    assert (net.q.weight[::2] != old[::2]).any(dim=1).all()
    assert captured.delta.elements == 4 * 6 + 6 * 8


def test_the_forward_pass_never_sees_the_rest_of_a_slice_moved() -> None:
    net = tied()
    old, seen = net.q.weight.detach().clone(), []
    net.q.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    with capture(net, selecting(net, SLICED)):
        _loop(net, weight_decay=0.5)
    assert len(seen) == 3
    assert all(weight[1::2].equal(old[1::2]) for weight in seen)


def test_without_hold_a_slice_that_leaks_is_refused() -> None:
    net = tied()
    with pytest.raises(SelectionViolated, match=r"q\.weight"), capture(net, selecting(net, SLICED), hold=False):
        _loop(net, weight_decay=0.5)


def test_only_the_selection_requires_gradients_inside_and_everything_is_put_back() -> None:
    net = tied()
    net.q.bias.requires_grad_(False)
    with capture(net, selecting(net, SLICED)):
        assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == ["q.weight", "o.weight"]
        _loop(net)
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == ["q.bias"]
    assert not net.q.weight._backward_hooks
    before = net.q.weight.detach().clone()
    _loop(net)
    assert not net.q.weight[1::2].equal(before[1::2]), "the hold outlived its block"


def test_a_block_that_raises_puts_everything_back_and_has_no_delta() -> None:
    net = tied()
    with pytest.raises(ZeroDivisionError), capture(net, selecting(net, SLICED)) as captured:
        _ = 1 / 0
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(InputError, match="the delta is not there yet"):
        _ = captured.delta


def test_the_delta_is_there_only_after_the_block() -> None:
    net = tied()
    with capture(net, selecting(net, SLICED)) as captured:
        with pytest.raises(InputError, match="Read it after the `with` block"):
            _ = captured.delta
        _loop(net)
    assert captured.delta.moved() > 0


def test_a_tied_weight_is_trained_once_and_stays_tied() -> None:
    net = tied()
    with capture(net, selecting(net, {"embed.weight": None})) as captured:
        _loop(net)
    assert net.head.weight is net.embed.weight
    assert list(captured.delta.tensors) == ["embed.weight"]


def _shift_buffer(net: Tied) -> None:
    _loop(net)
    net.seen.add_(1)


def _stale_gradients(net: Tied) -> None:
    net.q.bias.grad = torch.ones(8)
    _loop(net, everything=True)


@pytest.mark.parametrize(("train", "name"), [(_shift_buffer, "seen"), (_stale_gradients, r"q\.bias")])
def test_what_moves_outside_the_selection_is_refused(train: Any, name: str) -> None:
    net = tied()
    with pytest.raises(SelectionViolated, match=name), capture(net, selecting(net, SLICED)):
        train(net)


def test_a_block_that_trains_nothing_is_refused() -> None:
    net = tied()
    with pytest.raises(SelectionViolated), capture(net, selecting(net, SLICED)):
        pass


def test_a_net_that_changes_its_dtype_is_refused() -> None:
    net = tied()
    with pytest.raises(DeltaError, match=r"was F32 .* and is BF16"), capture(net, selecting(net, SLICED)):
        net.to(torch.bfloat16)


def test_a_net_that_gains_tokens_is_refused() -> None:
    net = tied()
    with (
        pytest.raises(DeltaError, match=r'"embed\.weight" was F32 \[11, 6\] and is F32 \[12, 6\]|gained'),
        capture(net, selecting(net, SLICED)),
    ):
        net.embed = nn.Embedding(12, 6)


# Other people's trainers, on a tiny Llama.


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


LLAMA: dict[str, Region | None] = {
    "model.layers.0.self_attn.q_proj.weight": ((0, 0, 8, 1),),
    "model.layers.1.self_attn.v_proj.weight": None,
}


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


def _check(net: Any, selection: Selection, delta: Delta, before: dict[str, torch.Tensor]) -> None:
    first = "model.layers.0.self_attn.q_proj.weight"
    assert _moved(net, before) == list(LLAMA) == list(delta.tensors) == list(selection.parameters)
    assert state(net)[first][8:].equal(before[first][8:])
    assert delta.child == manifest(net).id
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_hugging_face_trainer_trains_the_selection_alone(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    net = _llama()
    selection = selecting(net, LLAMA)
    before = {name: tensor.detach().clone() for name, tensor in state(net).items()}
    rows = [{"input_ids": [1, *range(5 + n, 13 + n)], "labels": [1, *range(5 + n, 13 + n)]} for n in range(6)]
    with capture(net, selection) as captured:
        Trainer(model=net, args=TrainingArguments(**_settings(tmp_path)), train_dataset=Dataset.from_list(rows)).train()
    _check(net, selection, captured.delta, before)


def _tokenizer() -> Any:
    """Words of one letter, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trl_sft_trainer_trains_the_selection_alone(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    net = _llama()
    selection = selecting(net, LLAMA)
    before = {name: tensor.detach().clone() for name, tensor in state(net).items()}
    rows = [{"prompt": "a b c", "completion": " d e f"}, {"prompt": "g h", "completion": " i j k"}] * 3
    with capture(net, selection) as captured:
        SFTTrainer(
            model=net,
            args=SFTConfig(**_settings(tmp_path), max_length=16, bf16=False),
            train_dataset=Dataset.from_list(rows),
            processing_class=_tokenizer(),
        ).train()
    _check(net, selection, captured.delta, before)
