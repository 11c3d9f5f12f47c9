"""What no evaluation goes on with: each is one error that names the sample and says what to do.

What a task's prompt and answers lack is tested in test_tasks.py; other evaluators' logs in test_bridges.py.
"""

from __future__ import annotations

import io
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import evaluation_fixtures as made
from selectune.errors import DataError
from selectune.evaluation import Measurement, Sample, Suite, Task, evaluate
from selectune.evaluation.tasks import task_of
from selectune.pipeline import compare
from selectune.recipe import Data
from selectune.records import Message, Picture, Record, Records, read_records
from task_fixtures import SMALL


def sample(name: str, score: float = 1.0, **change: Any) -> Sample:
    return Sample(
        **({"task": "t", "id": name, "cluster": name, "prompt_digest": name, "output": "", "reference": "", "score": score} | change)
    )


def measurement(*samples: Sample, **change: Any) -> Measurement:
    return Measurement(**({"stage": "x", "model_id": "m", "suite": "s", "samples": samples, "seconds": 1.0} | change))


@pytest.mark.parametrize(
    ("column", "what"),
    [("id", "sample 2 has no id"), ("score", 'sample "b" has no score'), ("prompt_digest", 'sample "b" has no prompt digest')],
)
def test_a_saved_sample_without_an_id_or_a_score_is_named(tmp_path: Path, column: str, what: str) -> None:
    path = tmp_path / "m.parquet"
    measurement(sample("a"), sample("b")).save(path)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1][column] = None
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    with pytest.raises(DataError, match=f"{what}. Take the measurement again"):
        Measurement.load(path)


def test_a_saved_sample_with_nan_or_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    measurement(sample("a"), sample("b")).save(path)
    table = pq.read_table(path)
    for change, what in (({"score": math.nan}, 'sample "b": its score is nan'), ({"id": "a"}, 'sample "a": it is there 2 times')):
        rows = table.to_pylist()
        rows[1] |= change
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
        with pytest.raises(DataError, match=what):
            Measurement.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_half_a_parquet_file_of_samples_or_of_records_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.parquet"
    measurement(*(sample(str(number)) for number in range(50))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        Measurement.load(path)
    with pytest.raises(DataError, match=r"m\.parquet"):
        read_records(Data(source=str(path)))


def test_samples_in_another_order_are_paired_by_id() -> None:
    scores = [float(number % 3 == 0) for number in range(40)]
    before = measurement(*(sample(str(number), score) for number, score in enumerate(scores)), model_id="a")
    shuffled = [sample(str(number), score if number else 0.0) for number, score in enumerate(scores)]
    random.Random(3).shuffle(shuffled)
    (row,) = compare(before, measurement(*shuffled, model_id="b"))
    assert row.n == 40
    assert row.value == pytest.approx(-1 / 40)


def test_samples_that_are_in_one_file_only_are_named() -> None:
    before = measurement(sample("a"), sample("b"), model_id="a")
    with pytest.raises(DataError, match="1 sample ids are in one only, such as 'b'"):
        compare(before, measurement(sample("a"), model_id="b"))


def test_a_scorer_that_gives_nan_is_told_with_the_record() -> None:
    suite = Suite(tasks=(Task(name="odd", records=made.questions(2, pictures=False), scorer=lambda output, reference: math.nan),))
    with pytest.raises(DataError, match=r'task odd: record ".*": its score is nan'):
        evaluate(made.llama(), suite)


def asked(name: str, question: str = "What?", answer: str = "a", **meta: Any) -> Record:
    turns = (Message(role="user", parts=(question,)), *((Message(role="assistant", parts=(answer,)),) if answer else ()))
    return Record(id=name, messages=turns, meta=meta)


@pytest.mark.parametrize(
    ("bad", "settings", "what"),
    [
        (asked(" "), {}, r"task t: record 2 has no id"),
        (asked("a"), {}, r'rows: two records have the id "a"'),
        (asked("b", answer="", answers=()), {}, r'task t: record "b": it has no right answer'),
        (asked("b", answer="", answers=("", " ")), {}, r'task t: record "b": it has no right answer'),
        (asked("b", question=" \n"), {}, r'task t: record "b": its prompt asks nothing'),
        (asked("b", choices=("x", "y")), {"kind": "choice"}, r'task t: record "b": its answer "a" is 0 of its choices'),
        (asked("b", choices=("a",)), {"kind": "choice"}, r'task t: record "b": it offers 1 choices'),
        (asked("b", ranked=("x", "y")), {"likelihoods": True}, r'task t: record "b": its answer "a" is 0 of its choices'),
    ],
)
def test_a_task_names_the_record_that_cannot_be_asked_or_scored(bad: Record, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        Task(name="t", records=Records(items=(asked("a", choices=("a", "b")), bad), name="rows"), **settings)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_half_a_parquet_file_of_a_shipped_task_is_refused_by_its_name(tmp_path: Path, share: float) -> None:
    path = SMALL["realworldqa"].write(tmp_path) / SMALL["realworldqa"].path
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=path.name):
        task_of("realworldqa", Data(source=str(tmp_path), task="realworldqa"))


def test_a_prompt_that_was_put_otherwise_in_one_file_is_named() -> None:
    before = measurement(sample("a"), sample("b"), model_id="a")
    with pytest.raises(DataError, match="sample 'b' was not asked the same in both"):
        compare(before, measurement(sample("b", prompt_digest="other"), sample("a"), model_id="b"))


def png(*chunks: tuple[bytes, bytes], side: int = 4) -> bytes:
    """A PNG file of these chunks between its header and its end."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    every = ((b"IHDR", head), *chunks, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in every
    )


def lines(folder: Path, picture: bytes) -> Data:
    (folder / "bomb.png").write_bytes(picture)
    path = folder / "test.jsonl"
    path.write_text(
        '{"id": "good", "question": "What?", "answer": "a"}\n{"id": "bomb", "image": "bomb.png", "question": "What?", "answer": "a"}\n'
    )
    return Data(source=str(path))


def test_a_picture_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'record "bomb": picture "bomb\.png" is (too large|40000 x 40000)'):
        read_records(lines(tmp_path, png((b"IDAT", zlib.compress(b"")), side=40000)))


def test_a_picture_whose_text_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    pixels = (b"IDAT", zlib.compress(b"\0" * (4 * 13)))
    bomb = png((b"zTXt", b"note\0\0" + zlib.compress(b" " * (200 << 20))), pixels)
    assert len(bomb) < 1 << 20
    with pytest.raises(DataError, match=r'record "bomb": picture "bomb\.png" cannot be decoded'):
        read_records(lines(tmp_path, bomb)).check_pictures()


def test_a_picture_of_many_frames_is_refused_with_its_record(tmp_path: Path) -> None:
    with io.BytesIO() as file:
        frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 200, 10)]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
        data = file.getvalue()
    with pytest.raises(DataError, match=r'record "bomb": picture "bomb\.png" has 20 frames'):
        read_records(lines(tmp_path, data))


def test_pixels_that_unpack_to_more_than_the_header_says_are_not_kept() -> None:
    picture = Picture(data=png((b"IDAT", zlib.compress(b"\0" * (100 << 20)))))
    assert picture.open().size == (4, 4)
