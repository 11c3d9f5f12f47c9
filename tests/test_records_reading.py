"""Reading: every form and file, what is refused and with which words, ids, splits, limits and digests."""

from __future__ import annotations

import base64
import csv
import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import records_fixtures as made
from selectune.errors import DataError
from selectune.recipe import Data
from selectune.records import Message, Picture, Record, Records, read_records, read_rows

RED, BLUE = made.png((255, 0, 0)), made.png((0, 0, 255))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "blue.png").write_bytes(BLUE)
    return tmp_path


def written(folder: Path, rows: list[dict[str, Any]], name: str = "train.json") -> str:
    path = folder / name
    lines = name.endswith("l")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return str(path)


def shape(record: Record) -> list[tuple[str, list[str]]]:
    """Roles and parts; a picture by what it shows."""
    names = {RED: "[red]", BLUE: "[blue]"}
    return [(m.role, [part if isinstance(part, str) else names[part.encoded()] for part in m.parts]) for m in record.messages]


URL = "data:image/png;base64," + base64.b64encode(BLUE).decode()
TURNS = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "red"}]
CHAT = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "red"}]
ASKED = [("user", ["[red]", "What is this?"]), ("assistant", ["red"])]
FORMS: dict[str, tuple[dict[str, Any], str, list[tuple[str, list[str]]]]] = {
    "llava": ({"id": 7, "image": "red.png", "conversations": TURNS}, 'llava: has "conversations" and "image"', ASKED),
    "llava, several": (
        {
            "image": ["red.png", "photos/blue.png"],
            "conversations": [{"from": "human", "value": "<image>\n<image>\nSame?"}, {"from": "gpt", "value": "no"}],
        },
        'llava: has "conversations" and "image"',
        [("user", ["[red]", "[blue]", "Same?"]), ("assistant", ["no"])],
    ),
    "llava, placeholder behind": (
        {"image": "red.png", "conversations": [{"from": "human", "value": "What is this?\n<image>"}, {"from": "gpt", "value": "red"}]},
        'llava: has "conversations" and "image"',
        [("user", ["What is this?", "[red]"]), ("assistant", ["red"])],
    ),
    "sharegpt": (
        {"images": ["red.png"], "conversations": [{"from": "system", "value": "Be brief."}, *TURNS]},
        'sharegpt: has "conversations" of from and value and "images"',
        [("system", ["Be brief."]), *ASKED],
    ),
    "sharegpt, text": (
        {"conversations": [{"from": "user", "value": "Hello"}, {"from": "assistant", "value": "Hi"}]},
        'sharegpt: has "conversations" of from and value and no "image"',
        [("user", ["Hello"]), ("assistant", ["Hi"])],
    ),
    "openai": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "red.png"}},
                        {"type": "text", "text": "and"},
                        {"type": "image_url", "image_url": {"url": URL}},
                        {"type": "text", "text": "?"},
                    ],
                },
                {"role": "assistant", "content": "colours"},
            ]
        },
        'openai: has "messages" of role and content and no column of pictures',
        [("user", ["[red]", "and", "[blue]", "?"]), ("assistant", ["colours"])],
    ),
    "messages": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is this?"}]},
                CHAT[1],
            ],
            "images": ["red.png"],
        },
        'messages: has "messages" of role and content and "images"',
        ASKED,
    ),
    "messages, no place": ({"messages": CHAT, "image": "red.png"}, 'messages: has "messages" of role and content and "image"', ASKED),
    "prompt-completion": (
        {"prompt": "What is this?", "completion": "red"},
        'prompt-completion: has "prompt" and "completion"',
        [("user", ["What is this?"]), ASKED[1]],
    ),
    "prompt-completion of messages": (
        {"prompt": CHAT[:1], "completion": CHAT[1:], "images": ["red.png"]},
        'prompt-completion: has "prompt" and "completion" and "images"',
        ASKED,
    ),
    "question-answer": (
        {
            "id": "a",
            "question": "What is this?",
            "answer": "red",
            "image": "red.png",
            "choices": ["red", "blue"],
            "cluster": "c1",
            "kind": "colour",
        },
        'question-answer: has "question" and "answer" and "image"',
        ASKED,
    ),
    "question and answers": (
        {"question": "How many?", "answers": ["3", "4", "4"]},
        'question-answer: has "question" and "answers"',
        [("user", ["How many?"]), ("assistant", ["4"])],
    ),
    "question alone": (
        {"question": "Describe it.", "image": "red.png"},
        'question-answer: has "question" and no answers and "image"',
        [("user", ["[red]", "Describe it."])],
    ),
    "number as answer": (
        {"question": "2 + 2?", "answer": 4},
        'question-answer: has "question" and "answer"',
        [("user", ["2 + 2?"]), ("assistant", ["4"])],
    ),
    "text": ({"text": "Plain words."}, 'text: has "text" and no question', [("assistant", ["Plain words."])]),
    "empty question": (
        {"question": "", "answer": "Plain words."},
        'question-answer: has "question" and "answer"',
        [("assistant", ["Plain words."])],
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("file", ["train.json", "train.jsonl"])
def test_every_form_is_known_by_its_columns_and_read(folder: Path, name: str, file: str) -> None:
    row, reason, expected = FORMS[name]
    records = read_records(Data(source=written(folder, [row], file)))
    assert records.reason == reason
    assert records.form == reason.split(":")[0]
    assert shape(records[0]) == expected


def test_meta_keeps_what_the_model_is_not_shown(folder: Path) -> None:
    row = {**FORMS["question-answer"][0], "level": 3, "share": 0.5, "ok": True, "tags": ["x", "y"], "none": None, "nested": {"a": 1}}
    records = read_records(Data(source=written(folder, [row])))
    assert dict(records[0].meta) == {
        "choices": ("red", "blue"),
        "cluster": "c1",
        "kind": "colour",
        "level": 3,
        "share": 0.5,
        "ok": True,
        "tags": ("x", "y"),
    }
    assert records.unread == ("nested",)
    assert read_rows([{"question": "q", "answer": "a", "big": 2**60}], Data(source="memory"))[0].meta == {"big": str(2**60)}
    assert (records[0].answer, records[0].prompt, len(records[0].pictures)) == ("red", records[0].messages[:1], 1)


def test_columns_and_form_override_what_is_detected(folder: Path) -> None:
    source = written(folder, [{"q": "What?", "a": "red", "question": "Why?", "photo": "red.png"}])
    records = read_records(Data(source=source, columns={"question": "q", "answer": "a", "images": "photo"}))
    assert shape(records[0]) == [("user", ["[red]", "What?"]), ("assistant", ["red"])]
    assert records.reason == 'question-answer: has "q" and "a" and "photo"; columns: question is "q", answer is "a", images is "photo"'
    both = written(folder, [{"text": "Plain.", "question": "Why?", "answer": "So."}])
    assert read_records(Data(source=both)).form == "question-answer"
    assert read_records(Data(source=both, form="text")).reason == "text: form asks for it"


def test_a_prompt_asks_for_records_that_have_no_question(folder: Path) -> None:
    source = written(folder, [{"image": "red.png", "label": "red"}])
    records = read_records(Data(source=source, prompt="Which colour?"))
    assert shape(records[0]) == [("user", ["[red]", "Which colour?"]), ("assistant", ["red"])]
    with pytest.raises(DataError, match=r"the columns image, label are of no known form"):
        read_records(Data(source=source))


def test_csv_and_tsv_are_read_with_lists_as_json(folder: Path) -> None:
    for name, separator in (("train.csv", ","), ("train.tsv", "\t")):
        with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerows(
                [
                    ["id", "question", "answer", "image", "choices"],
                    ["a", "What,\tor?\nsay", "red", "red.png", '["red", "blue"]'],
                    ["b", "x", "y", "", ""],
                ]
            )
        records = read_records(Data(source=str(folder / name)))
        assert shape(records[0]) == [("user", ["[red]", "What,\tor?\nsay"]), ("assistant", ["red"])]
        assert (records[0].meta["choices"], dict(records[1].meta), records[1].pictures) == (("red", "blue"), {}, ())


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("image", image),
            *((name, pyarrow.string()) for name in ("question", "answer", "cluster", "split", "kind")),
        ]
    )
    schema = schema.append(pyarrow.field("choices", pyarrow.list_(pyarrow.string())))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    return str(path)


def skill_rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"{split}-{n}",
            "image": {"bytes": RED, "path": None} if n else None,
            "question": "What?",
            "answer": "red",
            "split": split,
            "choices": ["red", "blue"],
        }
        for split in ("train", "test")
        for n in range(3)
    ]


def test_a_skill_in_parquet_is_filtered_by_its_split(tmp_path: Path) -> None:
    source = parquet(tmp_path / "digits.parquet", skill_rows())
    records = read_records(Data(source=source, split="test"))
    assert [record.id for record in records] == ["test-0", "test-1", "test-2"]
    assert [len(record.pictures) for record in records] == [0, 1, 1]
    assert "split" not in records[0].meta
    assert len(read_records(Data(source=source, split="*"))) == 6
    with pytest.raises(DataError, match=r"data: digits.parquet: it holds the splits test, train. Say which with split: test, or all"):
        read_records(Data(source=source))
    with pytest.raises(DataError, match=r'there are no records in split "dev". Give a source or split'):
        read_records(Data(source=source, split="dev"))


def test_data_of_a_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "digits.parquet", skill_rows())
    asked: list[tuple[str, str | None]] = []

    class Offered:
        name = "embedded"

        def load(self) -> Any:
            return lambda skill, split: asked.append((skill, split)) or (path if skill == "digits" else ready)

    ready = Records(items=(Record(id="x", messages=(Message(role="user", parts=("Hi",)),)),), name="ready")
    monkeypatch.setattr("selectune.records.reading.entry_points", lambda group: [Offered()] if group == "selectune.data" else [])
    records = read_records(Data(source="embedded:digits", split="train"))
    assert (len(records), records.name, asked) == (3, "embedded:digits", [("digits", "train")])
    assert read_records(Data(source="embedded:ready")) is ready
    with pytest.raises(DataError, match=r'no package offers "embeded" data. Did you mean embedded:digits\?'):
        read_records(Data(source="embeded:digits"))


def test_rows_in_memory_may_hold_pillow_pictures(tmp_path: Path) -> None:
    rows = [
        {"question": "What?", "answer": "red", "image": value}
        for value in (Image.new("RGB", (4, 4), (255, 0, 0)), RED, {"bytes": RED, "path": None})
    ]
    records = read_rows(rows, Data(source="memory"))
    assert {record.pictures[0].open().getpixel((0, 0)) for record in records} == {(255, 0, 0)}


def test_folders_that_datasets_saved_are_read(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
    saved = datasets.Dataset.from_list(
        [{"image": {"bytes": RED, "path": None}, "label": 1}, {"image": {"bytes": BLUE, "path": None}, "label": 0}], features=features
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved.save_to_disk(str(tmp_path / "one"))
        datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(str(tmp_path / "both"))
    for name, split, n in (("one", None, 2), ("both", "train", 2), ("both", "test", 1)):
        records = read_records(Data(source=str(tmp_path / name), split=split, prompt="Which colour?"))
        assert [record.answer for record in records] == ["red", "blue"][:n]
        assert shape(records[0])[0] == ("user", ["[red]", "Which colour?"])
    with pytest.raises(DataError, match=r"both/: holds train, test. Say which to read with `split`"):
        read_records(Data(source=str(tmp_path / "both"), prompt="?"))
    with pytest.raises(DataError, match=r'both/: there is no split "dev". It holds train, test'):
        read_records(Data(source=str(tmp_path / "both"), split="dev", prompt="?"))


def test_a_folder_of_files_is_read_by_split_with_its_shards(folder: Path) -> None:
    (folder / "data").mkdir()
    for shard in (0, 1):
        parquet(
            folder / "data" / f"train-0000{shard}-of-00002.parquet", [{"id": f"{shard}", "question": "q", "answer": "a", "split": "train"}]
        )
    written(folder / "data", [{"id": "v", "question": "q", "answer": "a"}], "val.jsonl")
    assert [record.id for record in read_records(Data(source=str(folder), split="train"))] == ["0", "1"]
    assert [record.id for record in read_records(Data(source=str(folder), split="validation"))] == ["v"]
    with pytest.raises(DataError, match=r"holds train, val, photos. Say which to read with `split`"):
        read_records(Data(source=str(folder)))
    with pytest.raises(DataError, match=r'there is no split "test". It holds train, val'):
        read_records(Data(source=str(folder), split="test"))


def test_folders_of_pictures_are_read_by_class_and_by_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, data in (("red", RED), ("blue", BLUE)):
            (tmp_path / "c" / split / name).mkdir(parents=True)
            (tmp_path / "c" / split / name / "1.png").write_bytes(data)
    records = read_records(Data(source=str(tmp_path / "c"), split="test", prompt="Which colour?"))
    assert [(record.id, record.answer) for record in records] == [("blue/1.png", "blue"), ("red/1.png", "red")]
    with pytest.raises(DataError, match=r"holds test, train. Say which to read with `split`"):
        read_records(Data(source=str(tmp_path / "c"), prompt="Which colour?"))
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "sub" / "1.png").write_bytes(RED)
    (tmp_path / "m" / "metadata.csv").write_text("file_name,question,answer\nsub/1.png,What?,red\n")
    assert shape(read_records(Data(source=str(tmp_path / "m")))[0]) == [("user", ["[red]", "What?"]), ("assistant", ["red"])]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "address": (
        {"question": "q", "answer": "a", "image": "https://example.org/1.png"},
        'picture "https://example.org/1.png" is a web address, and nothing is ever fetched',
    ),
    "missing": (
        {"id": 17, "question": "q", "answer": "a", "image": "photos/1.png"},
        r'train.json: record "17": picture "photos/1.png" is missing .*Put the file under',
    ),
    "outside": ({"question": "q", "answer": "a", "image": "../secret.png"}, 'picture "../secret.png" lies outside'),
    "absolute": ({"question": "q", "answer": "a", "image": "/etc/hostname"}, 'picture "/etc/hostname" lies outside'),
    "link": ({"question": "q", "answer": "a", "image": "link.png"}, 'picture "link.png" lies outside'),
    "file address outside": ({"question": "q", "answer": "a", "image": "file:///etc/hostname"}, 'picture "/etc/hostname" lies outside'),
    "no picture": ({"question": "q", "answer": "a", "image": "notes.png"}, 'picture "notes.png" cannot be decoded as one of PNG, JPEG'),
    "no path": ({"question": "q", "answer": "a", "image": "a\0b"}, "is no path"),
    "wrong value": ({"question": "q", "answer": "a", "image": 5}, 'picture "1" is a int. Give a path'),
    "bad url": ({"question": "q", "answer": "a", "image": "data:text/html,hi"}, "is no base64 data: URL"),
    "bad base64": ({"question": "q", "answer": "a", "image": "data:image/png;base64,%%%"}, "is no base64"),
    "too few pictures": (
        {"image": "red.png", "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}]},
        "more places for pictures than pictures",
    ),
    "too many pictures": ({"image": ["red.png", "red.png"], "conversations": TURNS}, "1 pictures have no place in the text"),
    "speaker": ({"conversations": [{"from": "observation", "value": "x"}]}, "turn 1: the speaker 'observation' is not known"),
    "spoken picture": (
        {"image": "red.png", "conversations": [{"from": "human", "value": "Draw"}, {"from": "gpt", "value": "<image>"}]},
        "turn 2: there is a picture in an assistant's turn",
    ),
    "no turns": ({"conversations": []}, "holds no list of turns"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}, "a content part of type 'video' is not known"),
    "truth": ({"question": "q", "answer": True}, "answer: there is true where text belongs"),
    "no choice": ({"question": "q", "answer": 1, "choices": ["red", "blue"]}, "the answer 1 is none of the choices"),
    "surrogate": ({"question": "\ud800", "answer": "a"}, "the text is no Unicode"),
    "nothing": ({"question": " ", "answer": None}, "neither text nor a picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_record_is_refused_by_name_and_never_skipped(folder: Path, name: str) -> None:
    row, message = REFUSED[name]
    (folder.parent / "secret.png").write_bytes(RED)
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "notes.png").write_text("not a picture")
    good = {**FORMS["question-answer"][0], "id": "fine"} if "question" in row else {}
    source = written(folder, [row, good] if good else [row])
    with pytest.raises(DataError, match=message) as caught:
        read_records(Data(source=source), where="recipe.yaml: skills[0].train")
    assert str(caught.value).startswith("recipe.yaml: skills[0].train: train.json: r")
    assert caught.value.exit_code == 2


HOSTILE = {
    "nan": (b'[{"question": "q", "answer": NaN}]', "NaN"),
    "infinity": (b'[{"question": "q", "answer": 1e999}]', "strict JSON"),
    "twice": (b'[{"question": "q", "question": "r", "answer": "a"}]', "appears twice"),
    "deep": (b"[" * 100_000, "nested"),
    "latin": (b'[{"question": "caf\xe9", "answer": "a"}]', "strict JSON"),
    "digits": (b'[{"question": "q", "answer": ' + b"9" * 5000 + b"}]", "strict JSON"),
    "object": (b"5", "holds a int, not a list of records"),
    "element": (b'[{"question": "q", "answer": "a"}, 5]', "row 2: is a int, not a record"),
    "empty": (b"[]", "there are no records"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    (tmp_path / "train.json").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_records(Data(source=str(tmp_path / "train.json")))


def test_json_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectune.records.files.MAX_JSON", 100)
    monkeypatch.setattr("selectune.records.files.MAX_LINE", 50)
    source = written(tmp_path, [{"question": "q" * 100, "answer": "a"}])
    with pytest.raises(DataError, match=r"over the limit of 100. Write it as JSON lines or Parquet"):
        read_records(Data(source=source))
    source = written(tmp_path, [{"question": "q", "answer": "a"}, {"question": "q" * 100, "answer": "a"}], "train.jsonl")
    with pytest.raises(DataError, match=r"train.jsonl: line 2: is over the limit of 50 bytes"):
        read_records(Data(source=source))


def test_other_sources_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nq\n")
    (tmp_path / "b.csv").write_text("question,question\nq,a\n")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "d.txt").write_text("x")
    (tmp_path / "e").mkdir()
    (tmp_path / "f.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": \n')
    for source, message in {
        str(tmp_path / "a.csv"): "a.csv: line 2: has 1 cells under 2 columns",
        str(tmp_path / "b.csv"): "two columns of one name",
        str(tmp_path / "c.parquet"): "is no Parquet file that can be read",
        str(tmp_path / "d.txt"): '".txt" is no known kind of file. Give one of .parquet',
        str(tmp_path / "e"): "e/: holds no records",
        str(tmp_path / "f.jsonl"): "f.jsonl: line 2: not strict JSON",
        str(tmp_path / "none.json"): "there is no file or folder",
        "https://example.org/train.json": "is a web address, and nothing is ever fetched",
    }.items():
        with pytest.raises(DataError, match=message):
            read_records(Data(source=source))


def test_a_split_that_a_file_does_not_have_is_refused(folder: Path) -> None:
    source = written(folder, [FORMS["question-answer"][0]])
    assert len(read_records(Data(source=source, split="train"))) == 1
    with pytest.raises(DataError, match=r'train.json: there is no split "test" in it. Name a folder'):
        read_records(Data(source=source, split="test"))


def test_faults_in_columns_and_form_name_near_matches(folder: Path) -> None:
    source = written(folder, [{"quest": "q", "answer": "a", "image": None, "images": None}])
    for given_, message in (
        ({"columns": {"questoin": "quest"}}, r'columns: "questoin" is no part of a record. Did you mean question\?'),
        ({"columns": {"question": "qest"}}, r'columns: there is no column "qest". Did you mean quest\?'),
        ({"columns": {"question": "quest"}}, '"image" and "images" both look like images. Say which with columns'),
        ({"form": "lava", "columns": {"images": "image"}}, r'"lava" is no form. Did you mean llava\?'),
        ({"form": "openai", "columns": {"images": "image"}}, "the form openai needs a column for messages"),
        ({"columns": {"images": "image"}}, "the columns quest, answer, image, images are of no known form"),
    ):
        with pytest.raises(DataError, match=message):
            read_records(Data(source=source, **given_))


def test_ids_are_given_or_made_from_the_content(folder: Path) -> None:
    rows = [{"question": "q", "answer": str(n % 2), "image": "red.png"} for n in range(3)]
    records = read_records(Data(source=written(folder, rows)))
    assert records[2].id == f"{records[0].id}-2"
    assert records.repeated == 1
    backwards = read_records(Data(source=written(folder, [rows[1], rows[0]])))
    assert [record.id for record in backwards] == [records[1].id, records[0].id]
    huge = written(folder, [{**rows[0], "id": 2**60}])
    with pytest.raises(DataError, match=r"row 1: the id .* is no whole number that JSON can hold. Write ids as text"):
        read_records(Data(source=huge))
    named = written(folder, [{**rows[0], "id": "a"}, {**rows[1], "id": "a"}])
    with pytest.raises(DataError, match=r'two records have the id "a". Make the ids unique, map another column'):
        read_records(Data(source=named))
    assert read_records(Data(source=named, columns={"id": "-"}))[0].id == records[0].id


def test_the_digest_is_that_of_the_content_wherever_it_lies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [{"id": str(n), "question": "q", "answer": str(n), "image": "red.png"} for n in range(3)]
    records = read_records(Data(source=written(folder, rows)))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    in_parquet = parquet(elsewhere / "x.parquet", [{**row, "image": {"bytes": RED, "path": None}} for row in rows])
    assert read_records(Data(source=in_parquet)).digest == records.digest
    assert len(records.digest) == 64
    for change in ({"answer": "9"}, {"id": "9"}, {"image": "photos/blue.png"}, {"cluster": "c"}):
        assert read_records(Data(source=written(folder, [{**rows[0], **change}, *rows[1:]]))).digest != records.digest
    assert read_records(Data(source=written(folder, rows[::-1]))).digest != records.digest


def test_a_limit_draws_records_and_says_so(folder: Path) -> None:
    rows = [{"id": str(n), "question": "q", "answer": str(n)} for n in range(20)]
    records = read_records(Data(source=written(folder, rows), limit=5))
    assert (len(records), dict(records.dropped)) == (5, {"over the limit of 5": 15})
    assert dict(read_records(Data(source=written(folder, rows), limit=20)).dropped) == {}


@given(n=st.integers(0, 30), m=st.integers(0, 30), seed=st.integers(0, 5))
def test_a_smaller_draw_lies_within_a_larger_one(n: int, m: int, seed: int) -> None:
    items = tuple(Record(id=str(k), messages=(Message(role="user", parts=("x",)),)) for k in range(20))
    records = Records(items=items, name="r")
    few, many = (records.take(k, seed) for k in sorted((n, m)))
    assert {record.id for record in few} <= {record.id for record in many}
    assert (len(few), len(many)) == tuple(min(k, 20) for k in sorted((n, m)))
    assert [int(record.id) for record in many] == sorted(int(record.id) for record in many)
    assert {r.id for r in Records(items=items[::-1], name="r").take(n, seed)} == {r.id for r in records.take(n, seed)}


def test_a_slice_of_records_is_records_and_pictures_are_all_looked_at_on_demand(folder: Path) -> None:
    rows = [{"id": str(n), "question": "q", "answer": "a", "image": "red.png"} for n in range(3)]
    (folder / "cut.png").write_bytes(made.png(size=(300, 300))[:200])
    records = read_records(Data(source=written(folder, [*rows, {**rows[0], "id": "cut", "image": "cut.png"}])))
    assert [record.id for record in records[1:3]] == ["1", "2"]
    records[:3].check_pictures()
    with pytest.raises(DataError, match=r'train.json: record "cut": picture "cut.png" cannot be decoded .*Replace the file'):
        records.check_pictures()


def test_images_start_at_the_folder_that_the_recipe_names(folder: Path) -> None:
    source = written(folder, [{"question": "q", "answer": "a", "image": "blue.png"}])
    assert shape(read_records(Data(source=source, images=str(folder / "photos")))[0])[0] == ("user", ["[blue]", "q"])
    inside = written(folder, [{"question": "q", "answer": "a", "image": str(folder / "photos" / "blue.png")}])
    assert isinstance(read_records(Data(source=inside))[0].pictures[0], Picture)
