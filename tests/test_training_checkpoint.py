"""Checkpoints: what is in one, what is refused, what a full disk leaves behind."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from selectune.delta.files import TEMPORARY
from selectune.errors import ResumeError, StorageError
from selectune.training import Session, Step, fit, train
from selectune.training.background import Writer
from selectune.training.checkpoint import Checkpoint, interruptions, read, sizes, write
from selectune.training.packing import packed, unpacked
from training_fixtures import attention, examples, optim, tiny_model


def checkpoint(**changes: Any) -> Checkpoint:
    identity = {"seed": 0, "optim": {"lr": 0.1, "batch": 4}, "patterns": ["attention"], **changes}
    step = Step(n=1, total=2, loss=0.5, lr=0.1, tokens=3, grad_norm=1.0, seconds=0.1)
    return Checkpoint(identity=identity, steps=(step,), tensors={"master/w#0": torch.arange(4.0)})


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    made = checkpoint()
    path = write(tmp_path / "new", made)
    torch.manual_seed(2)
    found = read(tmp_path / "new", made.identity)
    assert torch.equal(torch.rand(3), expected), "the random state comes back too"
    assert found.steps == made.steps
    assert found.identity == made.identity
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
        write(tmp_path, later)
    assert list(tmp_path.iterdir()) == [older]


def test_a_checkpoint_holds_the_selection_and_not_the_model(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16)
    selection = attention(model)
    train(model, selection, examples(pictures=False), optim(save_every=4), session=Session(checkpoint_dir=tmp_path))
    (path,) = tmp_path.iterdir()
    with safe_open(str(path), framework="pt") as file:
        held = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118  # not a mapping
        assert json.loads(file.metadata()["identity"])["patterns"] == ["attention"]

    def part(*names: str) -> int:
        return sum(size for name, size in held.items() if name.startswith(names))

    assert part("exp_avg/", "exp_avg_sq/") == 8 * selection.elements
    assert part("rest/") <= 2.1 * selection.elements, "what rounding to bf16 took from the masters"
    assert 0 < part("delta/") <= 2 * selection.elements
    assert not part("master/")
    assert sizes(path)[0] == part("delta/")


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
        next(fit(again, selection, records, settings, session=Session(seed=int(change == "seed"), resume=tmp_path)))


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


def later(n: int) -> Checkpoint:
    made = checkpoint()
    return Checkpoint(identity=made.identity, steps=made.steps * n, tensors={"master/w#0": torch.arange(4.0) + n})


def names(folder: Path) -> list[int]:
    return [int(path.stem[-8:]) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packing_gives_the_masters_back_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, generator=generator).to(dtype)
    master = start.float() + 1e-3 * torch.randn(500, generator=generator)
    tie = torch.tensor([0x3F808000, 0x3F818000, -0x408080, 0x7F800000], dtype=torch.int32).view(torch.float32)
    master[:4] = tie  # halfway between two bf16 numbers, to both sides, a NaN's neighbour, and infinity
    given = {"master/w#0": master, "exp_avg/w#0": torch.ones(3), "master/other#0": torch.ones(2)}
    made = packed(given, {"w#0": start})
    assert set(made) == {"delta/w#0", "exp_avg/w#0", "master/other#0"} | ({"rest/w#0"} if dtype != torch.float32 else set())
    back = unpacked(made, {"w#0": start})
    assert {name: tensor.view(torch.int32).tolist() for name, tensor in back.items()} == {
        name: tensor.view(torch.int32).tolist() for name, tensor in given.items()
    }


def test_one_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint(), {"w#0": torch.zeros(4, dtype=torch.bfloat16)})
    whole = path.read_bytes()
    assert read(path, checkpoint().identity, {"w#0": torch.zeros(4, dtype=torch.bfloat16)}).tensors.keys() == {"master/w#0"}
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(header), *range(header, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ResumeError, match=r"00000001\.safetensors: (is damaged|cannot be read|is no selectune|is of another)"):
            read(tmp_path, checkpoint().identity)


def test_a_damaged_newest_checkpoint_is_refused_and_an_older_one_named(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        write(tmp_path, later(n))
    for n in (3, 2):
        damaged = tmp_path / f"checkpoint-0000000{n}.safetensors"
        data = bytearray(damaged.read_bytes())
        data[-40] ^= 1
        damaged.write_bytes(data)
    then = r"checkpoint-00000001\.safetensors beside it, after step 1, is whole: delete checkpoint-00000003\.safetensors, or resume"
    with pytest.raises(ResumeError, match=rf"00000003\.safetensors: is damaged: its digest does not fit what it holds\. {then}"):
        read(tmp_path, checkpoint().identity)
    assert len(read(tmp_path / "checkpoint-00000001.safetensors", checkpoint().identity).steps) == 1
    (tmp_path / "checkpoint-00000001.safetensors").unlink()
    with pytest.raises(ResumeError, match="There is no older one: delete checkpoint-00000003"):
        read(tmp_path, checkpoint().identity)


def test_a_checkpoint_of_another_version_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint())
    path.write_bytes(path.read_bytes().replace(b"selectune/checkpoint/2", b"selectune/checkpoint/1"))
    with pytest.raises(ResumeError, match=r"is of another version, selectune/checkpoint/1\. Start without"):
        read(path, checkpoint().identity)


def test_the_writer_copies_first_and_writes_meanwhile_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selectune.training import checkpoint as module

    go, order = threading.Event(), []
    own = module.write

    def slow(folder: Path, state: Checkpoint, start: Any = None) -> Path:
        go.wait(10)
        order.append(len(state.steps))
        return own(folder, state, start)

    monkeypatch.setattr(module, "write", slow)
    values = torch.arange(4.0)
    state = Checkpoint(identity=checkpoint().identity, steps=checkpoint().steps, tensors={"master/w#0": values})
    with Writer(tmp_path, optim(keep_checkpoints=2), {}) as writer:
        writer.begin(state)
        values.zero_()
        writer.check()
        assert not list(tmp_path.iterdir()), "training went on before anything was written"
        go.set()
        for n in (2, 3, 4):
            writer.begin(later(n))
    assert order == [1, 2, 3, 4]
    assert names(tmp_path) == [3, 4], "so many are kept"
    assert writer.newest == tmp_path / "checkpoint-00000004.safetensors"
    monkeypatch.setattr(module, "write", own)
    with Writer(tmp_path / "copied", optim(), {}) as writer:
        values.copy_(torch.arange(4.0))
        writer.begin(state)
        values.zero_()
    assert torch.equal(read(tmp_path / "copied", state.identity).tensors["master/w#0"], torch.arange(4.0))


def test_a_write_that_failed_surfaces_at_the_next_step_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selectune.training.checkpoint.save_file", full)
    model, made = tiny_model("llama"), []

    def slowly(step: Step) -> None:
        made.append(step.n)
        time.sleep(0.2)

    session = Session(checkpoint_dir=tmp_path, on_step=slowly)
    with pytest.raises(StorageError, match="No space left"):
        train(model, attention(model), examples(pictures=False), optim(save_every=2), session=session)
    assert made == [1, 2, 3], "it failed beside the third step"
    with pytest.raises(StorageError, match="No space left"):
        train(model, attention(model), examples(pictures=False), optim(save_every=4), session=Session(checkpoint_dir=tmp_path))
    assert not list(tmp_path.iterdir())


def test_minutes_are_kept_as_steps_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("selectune.training.background.time.monotonic", lambda: now[0])
    model = tiny_model("llama")

    def pass_time(step: Step) -> None:
        now[0] += 25.0

    session = Session(checkpoint_dir=tmp_path, on_step=pass_time)
    settings = optim(max_steps=8, save_minutes=1.0, keep_checkpoints=9)
    train(model, attention(model), examples(pictures=False), settings, session=session)
    assert names(tmp_path) == [3, 6]


def test_what_a_crash_left_half_written_is_swept_and_what_a_living_process_writes_is_not(tmp_path: Path) -> None:
    from selectune.delta.files import sweep, temporary_name

    mine = tmp_path / temporary_name()
    machine = mine.name.removeprefix(TEMPORARY).split("-")[0]
    gone = tmp_path / f"{TEMPORARY}{machine}-4194304-0123"  # one more than the largest number of a process
    elsewhere = tmp_path / f"{TEMPORARY}01234567-4194304-0123"
    for path in (mine, gone, elsewhere):
        path.write_bytes(b"half")
    folder = tmp_path / f"{TEMPORARY}{machine}-4194304-4567"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"half")
    assert sorted(sweep(tmp_path)) == sorted([gone, folder])
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere])
    assert sweep(tmp_path / "none") == []


def test_a_training_that_goes_on_keeps_the_checkpoints_of_before_in_its_count(tmp_path: Path) -> None:
    model = tiny_model("llama")
    records = examples(pictures=False)
    many = optim(max_steps=6, save_every=1, keep_checkpoints=3)
    for _ in zip(range(3), fit(model, attention(model), records, many, session=Session(checkpoint_dir=tmp_path)), strict=False):
        pass
    model = tiny_model("llama")
    train(model, attention(model), records, many, session=Session(checkpoint_dir=tmp_path, resume=tmp_path))
    assert names(tmp_path) == [4, 5, 6]


@pytest.mark.slow
def test_a_checkpoint_of_attention_without_the_optimizer_is_a_twelfth_of_the_model(tmp_path: Path) -> None:
    """In bf16, of the embedded model, at the demo's rate."""
    from selectune.embedded import load, skill
    from selectune.recipe import Data
    from selectune.records import read_records

    model = load()
    records = read_records(Data(source=str(skill("digits")), split="train", limit=12))
    settings = optim(lr=2e-4, batch=2, max_steps=6, weight_decay=0.0, save_every=6)
    train(model, attention(model), records, settings, session=Session(checkpoint_dir=tmp_path))
    delta, rest = sizes(next(tmp_path.iterdir()))
    bytes_of_model = sum(parameter.nbytes for parameter in model.net.parameters())
    print(f"{delta / bytes_of_model:.1%} of the model's bytes, the optimizer's part {rest / bytes_of_model:.1%}")
    assert delta <= 0.12 * bytes_of_model
