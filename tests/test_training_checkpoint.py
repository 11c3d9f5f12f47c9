"""Checkpoints: what is in one, what is refused, what a full disk leaves behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from selectune.errors import ResumeError, StorageError
from selectune.training import Session, Step, fit, train
from selectune.training.checkpoint import Checkpoint, interruptions, read, write
from training_fixtures import attention, examples, optim, tiny_model


def checkpoint(**changes: Any) -> Checkpoint:
    identity = {"seed": 0, "optim": {"lr": 0.1, "batch": 4}, "patterns": ["attention"], **changes}
    step = Step(n=1, total=2, loss=0.5, lr=0.1, tokens=3, grad_norm=1.0, seconds=0.1)
    return Checkpoint(identity=identity, steps=(step,), tensors={"master/w#0": torch.arange(4.0)})


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    made = checkpoint()
    path = write(tmp_path / "new", made)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    path = write(tmp_path / "new", made)
    torch.manual_seed(2)
    found = read(tmp_path / "new", made.identity)
    assert torch.equal(torch.rand(3), expected), "the random state comes back too"
    assert found.steps == made.steps
    assert torch.equal(found.tensors["master/w#0"], made.tensors["master/w#0"])
    assert path.name == "checkpoint-00000001.safetensors"


def test_every_difference_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint())
    now = checkpoint(seed=7, optim={"lr": 0.2, "batch": 4}).identity
    with pytest.raises(ResumeError, match=r"another training: optim\.lr was 0\.1, is 0\.2; seed was 0, is 7\. Use the same recipe"):
        read(path, now)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(ResumeError, match="checkpoint-00000001"):
        read(path, checkpoint().identity)


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ResumeError, match="cannot be read"):
        read(path, checkpoint().identity)


def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="there is no checkpoint in it"):
        read(tmp_path, {})
    with pytest.raises(ResumeError, match="cannot be read"):
        read(tmp_path / "none.safetensors", {})


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be made"):
        write(tmp_path / "file" / "folder", checkpoint())


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = write(tmp_path, checkpoint())

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selectune.training.checkpoint.save_file", full)
    later = Checkpoint(identity=checkpoint().identity, steps=checkpoint().steps * 2, tensors=checkpoint().tensors)
    with pytest.raises(StorageError, match="No space left"):
        write(tmp_path, later, older)
    assert list(tmp_path.iterdir()) == [older]


def test_a_checkpoint_holds_the_selection_and_not_the_model(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16)
    selection = attention(model)
    train(model, selection, examples(pictures=False), optim(save_every=4), session=Session(checkpoint_dir=tmp_path))
    with safe_open(str(next(tmp_path.iterdir())), framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # not a mapping
        small = {name for name in shapes if name == "random" or name.startswith(("reached/", "step/"))}
        kinds = {file.get_slice(name).get_dtype() for name in shapes.keys() - small}
        assert json.loads(file.metadata()["identity"])["patterns"] == ["attention"]
    assert kinds == {"F32"}
    held = sum(torch.Size(shape).numel() for name, shape in shapes.items() if name not in small)
    assert held == 3 * selection.elements


@pytest.mark.parametrize("change", ["seed", "records", "selection", "lr", "model"])
def test_another_training_cannot_go_on_from_it(change: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    records = examples(pictures=False)
    list(fit(model, attention(model), records, optim(save_every=4), session=Session(checkpoint_dir=tmp_path)))
    again = tiny_model("llama", torch.bfloat16 if change == "model" else torch.float32)
    selection = again.map.select(("mlp",)) if change == "selection" else attention(again)
    records = examples(8, pictures=False) if change == "records" else records
    settings = optim(save_every=4, **({"lr": 0.5} if change == "lr" else {}))
    named = {"lr": r"optim\.lr was 0\.01, is 0\.5"}.get(change, f"{change} was")
    with pytest.raises(ResumeError, match=named):
        next(fit(again, selection, records, settings, seed=int(change == "seed"), session=Session(resume=tmp_path)))


def test_the_interval_of_saving_may_change(tmp_path: Path) -> None:
    model = tiny_model("llama")
    records = examples(pictures=False)
    train(model, attention(model), records, optim(save_every=3), session=Session(checkpoint_dir=tmp_path))
    steps = list(fit(model, attention(model), records, optim(), session=Session(resume=tmp_path)))
    assert [step.n for step in steps] == [4]


def test_a_second_signal_is_not_held_back() -> None:
    def shout(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGTERM, shout)
    try:
        with interruptions(True) as noted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert noted.name == "SIGTERM"
            with pytest.raises(InterruptedError):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_are_left_alone_without_a_folder_and_outside_the_main_thread() -> None:
    seen: list[object] = []

    def look(wanted: bool) -> None:
        with interruptions(wanted):
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    look(False)
    thread = threading.Thread(target=look, args=(True,))
    thread.start()
    thread.join()
    assert seen == [before, before]
