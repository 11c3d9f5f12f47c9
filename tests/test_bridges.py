"""Other evaluators' logs, recorded from real runs (tests/recorded), and what is refused of them."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from selectune.errors import CheckFailed, DataError, InputError, MissingPackage, NoMatch
from selectune.evaluation import Measurement
from selectune.evaluation.bridges import Log, Row, archive, measured, read_log
from selectune.evaluation.bridges.lmms import Asked, run_lmms_eval
from selectune.pipeline import compare

RECORDED = Path(__file__).parent / "recorded"
LM_EVAL = RECORDED / "lm-eval"
COLOURS = next(LM_EVAL.glob("samples_colours_*.jsonl"))
LMMS_EVAL = RECORDED / "lmms-eval"
TINY_COLOURS = next(LMMS_EVAL.glob("*_samples_*.jsonl"))
SUMS = RECORDED / "inspect" / "sums.eval"
LETTERS = RECORDED / "inspect" / "letters.json"
EPOCHS = RECORDED / "inspect" / "epochs.eval"
REAL = "SELECTUNE_LMMS_EVAL_PYTHON"


def test_lm_evals_samples_are_read_with_their_filters_and_clusters() -> None:
    log = read_log([LM_EVAL])
    found = measured(log, stage="base", metrics=["colours=acc_norm,none", "written=exact_match,flexible"])
    assert (log.evaluator, log.model) == ("lm-eval 0.4.13", "models/tiny-llama")
    assert found.kinds == {"colours": "choice", "written": "generate"}
    assert found.n("colours") == found.n("written") == 4
    assert found.score("colours") == 0.25  # what lm-eval's own table said
    assert found.clusters("colours") == {"0": "sky", "1": "sky", "2": "2", "3": "3"}
    one = found.of("colours")["0"]
    assert (one.output, one.extra["prompt"]) == ("red", "What colour is the sky?")  # the likeliest of three options
    assert found.seconds > 0
    assert "not known" in found.environment["weights"]


def test_lmms_evals_samples_are_read_and_a_score_inside_an_aggregate_counts() -> None:
    log = read_log([LMMS_EVAL])
    plain, inside = (measured(log, stage="x", metrics=[name]) for name in ("exact", "average"))
    assert plain.scores("tiny_colours") == inside.scores("tiny_colours") == {"0": 0.0, "1": 0.0, "2": 0.0, "3": 0.0}
    one = plain.of("tiny_colours")["1"]
    assert (one.reference, one.extra["prompt"]) == ("blue", "What colour is picture 0?")
    assert one.output.startswith(" on")  # as written, before lmms-eval stripped it


def test_inspects_logs_are_read_from_both_forms() -> None:
    sums, letters = (measured(read_log([path]), stage="x") for path in (SUMS, LETTERS))
    assert sums.score("sums") == pytest.approx(4 / 6)  # Inspect's own accuracy in the header
    assert sums.of("sums")["sum-2"].output == "The answer is 4"
    assert letters.scores("letters") == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0}
    assert letters.kinds == {"letters": "choice"}
    assert sums.environment["evaluator"] == "inspect-ai 0.3.285"


def test_epochs_of_one_sample_are_one_cluster() -> None:
    found = measured(read_log([EPOCHS]), stage="x")
    assert found.n("letters") == 8
    assert set(found.clusters("letters").values()) == {"0", "1", "2", "3"}
    assert found.clusters("letters")["3#1"] == found.clusters("letters")["3#2"] == "3"


def changed(folder: Path, source: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """The samples of a recorded file after `change`, with the results that lie beside it."""
    folder.mkdir(exist_ok=True)
    for path in source.parent.glob("*results*"):
        shutil.copy(path, folder)
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    change(rows)
    path = folder / source.name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_two_imports_are_compared_sample_by_sample_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    def better(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["acc"] = 1.0
        rows.reverse()

    before = measured(read_log([COLOURS]), stage="before", metrics=["acc,none"])
    after = measured(read_log([changed(tmp_path, COLOURS, better)]), stage="after", metrics=["acc,none"])
    (row,) = compare(before, after)
    assert (row.n, tuple(row.gained), tuple(row.lost), row.value) == (4, ("0", "1", "2"), (), 0.75)
    assert before.suite == after.suite
    assert before.model_id != after.model_id
    after.save(tmp_path / "after.parquet")
    assert Measurement.load(tmp_path / "after.parquet").scores("colours") == after.scores("colours")


def test_a_sample_that_was_asked_otherwise_is_not_compared(tmp_path: Path) -> None:
    def other(rows: list[dict[str, Any]]) -> None:
        rows[2]["input"] = "What is it?"

    before = measured(read_log([TINY_COLOURS]), stage="before", metrics=["exact"])
    after = measured(read_log([changed(tmp_path, TINY_COLOURS, other)]), stage="after", metrics=["exact"])
    with pytest.raises(DataError, match="sample '2' was not asked the same"):
        compare(before, after)


def test_the_weights_that_were_evaluated_may_be_named() -> None:
    found = measured(read_log([SUMS]), stage="x", model_id="a" * 64)
    assert found.model_id == "a" * 64
    assert "weights" not in found.environment


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ([], "task colours: it has the metrics acc,none, acc_norm,none. Name one with --metric colours=NAME"),
        (["colours=f1,none"], 'the metric "f1,none" is not in every sample'),
        (["nope=acc,none"], '"nope" is no task of the log. It has: colours'),
    ],
)
def test_a_metric_has_to_be_clear(metrics: list[str], what: str) -> None:
    with pytest.raises((DataError, NoMatch), match=what):
        measured(read_log([COLOURS]), stage="x", metrics=metrics)


@pytest.mark.parametrize("value", [1.5, -0.1, "high", None])
def test_a_metric_outside_0_to_1_is_refused_by_its_name_and_sample(tmp_path: Path, value: object) -> None:
    path = changed(tmp_path, COLOURS, lambda rows: rows[1].update(acc=value))
    with pytest.raises(DataError, match=r'line 2: the metric "acc,none" of sample "1" is .*, no number in 0 to 1'):
        measured(read_log([path]), stage="x", metrics=["acc,none"])


@pytest.mark.parametrize(
    ("source", "change", "what"),
    [
        (COLOURS, lambda rows: rows.append(rows[1]), 'line 5: sample "1" of task colours is there twice, first in .*line 2'),
        (TINY_COLOURS, lambda rows: rows.append(rows[1]), 'line 5: sample "1" of task tiny_colours is there twice'),
        (COLOURS, lambda rows: rows[3].pop("doc_id"), 'line 4: the sample has no "doc_id"'),
        (COLOURS, lambda rows: rows[3].update(resps=[]), 'line 4: sample "3" has no answer'),
        (COLOURS, lambda rows: rows[2]["resps"][1].__setitem__(0, ["lost", "False"]), "sample \"2\" has 'lost' for a log-likelihood"),
        (TINY_COLOURS, lambda rows: [rows[0].pop("resps"), rows[0].update(filtered_resps=[])], 'line 1: sample "0" has no answer'),
        (TINY_COLOURS, lambda rows: rows[2].update(input=" "), 'line 3: sample "2" has no prompt'),
        (COLOURS, lambda rows: rows[2].update(arguments={}), 'line 3: sample "2" has no prompt'),
        (COLOURS, lambda rows: rows[2].pop("metrics"), 'line 3: it has no list of "metrics"'),
        (COLOURS, lambda rows: rows[0].update(acc=float("nan")), "line 1: not strict JSON .*NaN is not JSON"),
        (COLOURS, lambda rows: rows.clear(), "holds no|no records"),
    ],
)
def test_a_damaged_log_of_a_harness_names_the_sample(tmp_path: Path, source: Path, change: Any, what: str) -> None:
    path = changed(tmp_path, source, change)
    with pytest.raises(DataError, match=what):
        measured(read_log([path]), stage="x", metrics=["acc,none"] if source is COLOURS else ["exact"])


def test_hostile_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / COLOURS.name
    for text, what in (('{"a":' * 100 + "1" + "}" * 100, "nested deeper"), ('{"doc_id": 0', "not strict JSON"), ('{"a":1,"a":2}', "twice")):
        path.write_text(text, "utf-8")
        with pytest.raises(DataError, match=what):
            read_log([path])


def test_files_of_two_evaluations_and_of_no_evaluator_are_refused(tmp_path: Path) -> None:
    shutil.copy(COLOURS, tmp_path / COLOURS.name)  # without its results: another model's name
    with pytest.raises(DataError, match="Give the files of one evaluation"):
        read_log([*LM_EVAL.glob("samples_written*"), tmp_path / COLOURS.name])
    with pytest.raises(InputError, match="no log of an evaluation"):
        read_log([tmp_path / "answers.csv"])


def inspected(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(LETTERS.read_bytes())
    change(document)
    path = folder / "log.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda log: log.update(status="cancelled"), 'ended as "cancelled".*eval-retry'),
        (lambda log: log["samples"][2].update(error={"message": "x"}), 'sample 3: sample "2" failed in Inspect'),
        (lambda log: log["samples"][2].pop("id"), 'sample 3: the sample has no "id"'),
        (lambda log: log["samples"][2].update(scores={}), 'sample "2" has no score'),
        (lambda log: log["samples"][2].update(input=""), 'sample "2" has no prompt'),
        (lambda log: log["samples"][2].update(output={}), 'sample "2" has no answer'),
        (lambda log: log["samples"].append(log["samples"][0]), 'sample "0" of task letters is there twice'),
        (
            lambda log: log["samples"][1]["scores"]["choice"].update(value="great"),
            'metric "choice" of sample "1"|no metric of it is a number',
        ),
        (lambda log: log.update(samples=[]), "holds no sample"),
        (lambda log: log.pop("eval"), "no log of Inspect"),
    ],
)
def test_a_damaged_log_of_inspect_names_the_sample(tmp_path: Path, change: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        measured(read_log([inspected(tmp_path, change)]), stage="x")


def packed(folder: Path, members: list[tuple[str, bytes]]) -> Path:
    path = folder / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("../header.json", b"{}")], "has a member named"),
        ([("/header.json", b"{}")], "has a member named"),
        ([("samples/..\\x.json", b"{}")], "has a member named"),
        ([("C:/x.json", b"{}")], "has a member named"),
        ([("header.json", b"{}"), ("header.json", b"{}")], "has two members named"),
        ([("other.json", b"{}")], 'has no member "header.json"'),
        ([("header.json", b"[" * 100_000)], "nested too deeply|not strict JSON"),
        ([("header.json", b"[]")], "no log of Inspect"),
    ],
)
def test_a_hostile_zip_file_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], what: str) -> None:
    with pytest.raises(DataError, match=what):
        read_log([packed(tmp_path, members)])


def test_a_zip_bomb_is_stopped_at_the_limit_whatever_its_directory_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER", 1 << 16)
    path = packed(tmp_path, [("header.json", b" " * (1 << 22))])
    with pytest.raises(DataError, match=r'more than the limit of 65536 bytes at "header\.json"'):
        read_log([path])
    monkeypatch.setattr(archive, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match="13 members, over the limit of 1"):
        read_log([SUMS])


def zstandard_bomb(claimed: int) -> bytes:
    """A zip file with one zstandard member of 4 MiB that says it has `claimed` bytes."""
    packed = zstandard.ZstdCompressor().compress(b" " * (1 << 22))
    name = b"header.json"
    sizes = struct.pack("<III", 0, len(packed), claimed)
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 63, 0, 93, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name + packed
    central = (
        b"PK\x01\x02" + struct.pack("<HHHHHH", 63, 63, 0, 93, 0, 0) + sizes + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    )
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def test_a_zstandard_bomb_that_lies_about_its_size_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.eval"
    path.write_bytes(zstandard_bomb(2))
    with pytest.raises(DataError, match=r'member "header\.json" is damaged'):
        read_log([path])
    monkeypatch.setattr(archive, "MAX_MEMBER", 1 << 16)
    with pytest.raises(DataError, match="more than the limit of 65536"):
        read_log([path])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_half_a_zip_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "log.eval"
    path.write_bytes(SUMS.read_bytes()[: int(SUMS.stat().st_size * share)])
    with pytest.raises(DataError, match="not a whole zip file"):
        read_log([path])


def test_a_member_whose_bytes_were_changed_is_refused(tmp_path: Path) -> None:
    data = bytearray(SUMS.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as file:
        member = file.getinfo("header.json")
    data[member.header_offset + 30 + len("header.json") + member.compress_size // 2] ^= 0xFF
    path = tmp_path / "log.eval"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"header\.json.* (cannot be unpacked|is damaged)"):
        read_log([path])


STAND_IN = """#!{python}
import shutil, sys
from pathlib import Path
if sys.argv[1] == "-c":
    print('{{"lmms_eval": "0.7.3", "torch": "2.13.0"}}')
    sys.exit({versions})
print("Model Responding:   0%|          | 0/4 [00:00<?, ?it/s]\\rModel Responding: 100%|####| 4/4 [00:00<00:00]", file=sys.stderr)
print("\\x1b[32mscored\\x1b[0m")
out = Path(sys.argv[sys.argv.index("--output_path") + 1]) / "m"
if {writes}:
    shutil.copytree({recorded!r}, out)
sys.exit({code})
"""


def stand_in(folder: Path, *, code: int = 0, writes: bool = True, versions: int = 0) -> Path:
    """What takes lmms-eval's place: it prints as that does, and writes what that wrote when it was recorded."""
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, recorded=str(LMMS_EVAL), code=code, writes=writes, versions=versions), "utf-8")
    path.chmod(0o755)
    return path


def test_lmms_eval_is_run_and_what_it_wrote_is_read_back(tmp_path: Path) -> None:
    said: list[str] = []
    counted: list[tuple[int, int]] = []
    asked = Asked(python=stand_in(tmp_path), tasks=("tiny_colours",), backend="llava_hf", model_args=("device=cpu",), limit=4)
    log = run_lmms_eval(tmp_path / "model", asked, say=said.append, count=lambda done, total: counted.append((done, total)))
    assert said == ["scored"]
    assert counted == [(0, 4), (4, 4)]
    assert (log.evaluator, log.model, len(log.rows)) == ("lmms-eval 0.7.3", str(tmp_path / "model"), 4)
    assert log.environment["exit_code"] == "0"
    assert log.environment["torch"] == "2.13.0"
    assert "--tasks tiny_colours --batch_size 1 --log_samples --output_path" in log.environment["command"]
    assert f"pretrained={tmp_path / 'model'},device=cpu" in log.environment["command"]


@pytest.mark.parametrize("code", [0, 7])
def test_lmms_eval_that_writes_nothing_has_failed_even_if_it_ends_with_0(tmp_path: Path, code: int) -> None:
    asked = Asked(python=stand_in(tmp_path, code=code, writes=False), tasks=("mmstar",))
    with pytest.raises(CheckFailed, match=rf"ended with {code} and wrote 0 files of samples; its last lines:\nscored\nRun it by hand"):
        run_lmms_eval(tmp_path, asked, say=lambda text: None, count=lambda done, total: None)


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"tasks": ("--help",)}, InputError, "the tasks"),
        ({"tasks": ()}, InputError, "the tasks"),
        ({"model_args": ("trust_remote_code=True",)}, InputError, "is no model argument"),
        ({"model_args": ("a=b,trust_remote_code=True",)}, InputError, "is no model argument"),
        ({"python": Path("/nowhere/python")}, MissingPackage, "cannot be run.*venv"),
    ],
)
def test_what_lmms_evals_options_cannot_carry_is_refused(tmp_path: Path, change: dict[str, Any], error: type[Exception], what: str) -> None:
    asked = Asked(**({"python": stand_in(tmp_path), "tasks": ("mmstar",)} | change))
    with pytest.raises(error, match=what):
        run_lmms_eval(tmp_path, asked, say=lambda text: None, count=lambda done, total: None)


def test_an_environment_without_lmms_eval_is_told(tmp_path: Path) -> None:
    asked = Asked(python=stand_in(tmp_path, versions=1), tasks=("mmstar",))
    with pytest.raises(MissingPackage, match="does not have lmms-eval"):
        run_lmms_eval(tmp_path, asked, say=lambda text: None, count=lambda done, total: None)
    with pytest.raises(InputError, match="has a comma"):
        run_lmms_eval(tmp_path / "a,b", asked, say=lambda text: None, count=lambda done, total: None)


def test_a_log_without_samples_and_a_prompt_apart_are_told() -> None:
    with pytest.raises(DataError, match="holds no sample"):
        measured(Log(rows=(), evaluator="x 1", model="m", kinds={}, seconds=0), stage="x")
    row = Row(task="t", id="1", cluster="1", prompt="p", output="", reference="r", metrics={"m": 1}, place="here", asked={"choices": ["a"]})
    assert row.prompt_digest != Row(**{**{name: getattr(row, name) for name in Row.__slots__}, "asked": {"choices": ["b"]}}).prompt_digest


@pytest.mark.slow
def test_import_eval_writes_a_measurement_that_compare_reads(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "selectune"]
    out = tmp_path / "m.parquet"
    command = [*program, "import-eval", LM_EVAL, "--metric", "acc,none", "--metric", "written=exact_match,strict", "--out", out, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["n"] for row in json.loads(done.stdout)["tasks"]] == [4, 4]
    assert Measurement.load(out).tasks == ("colours", "written")


@pytest.mark.skipif(REAL not in os.environ, reason=f"lmms-eval's python is not given: {REAL}=V/bin/python of a venv with lmms-eval==0.7.3")
def test_the_real_lmms_eval_measures_a_tiny_model_on_a_task_of_our_own(tmp_path: Path) -> None:
    from bridges_fixtures import write_model, write_task

    folder, include = write_model(tmp_path / "model"), write_task(tmp_path / "tasks")
    asked = Asked(
        python=Path(os.environ[REAL]),
        tasks=("tiny_colours",),
        backend="llava_hf",
        model_args=("device=cpu", "device_map=cpu", "dtype=float32", "attn_implementation=eager"),
        include=include,
    )
    log = run_lmms_eval(folder, asked, say=print, count=lambda done, total: None)
    found = measured(log, stage="x", metrics=["exact"])
    assert log.evaluator == "lmms-eval 0.7.3"
    assert [one.prompt_digest for one in found.samples] == [
        one.prompt_digest for one in measured(read_log([LMMS_EVAL]), stage="x", metrics=["exact"]).samples
    ]
