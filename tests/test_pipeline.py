"""A run, forward only: what it measures, records and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import evaluation_fixtures as tiny
from pipeline_fixtures import jsonl, question, save_model, write_recipe
from selectune.errors import DataError, InputError, ModelError, NoMatch, ResumeError, SameModel, Stopped
from selectune.evaluation import Measurement
from selectune.models import assemble
from selectune.pipeline import compare, load_any, map_any, plan, resume, run, run_all, save_full
from selectune.pipeline.progress import Silent
from selectune.recipe import Recipe, read_recipe
from selectune.registry import Registry
from selectune.reporting import RunResult, load_result


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny.llama(), tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[RunResult, Path, Recipe]:
    """One run of two skills and a recovery, its folder and its recipe."""
    folder = tmp_path_factory.mktemp("run")
    recovery = {"train": "fish-train.jsonl", "optim": {"max_steps": 2}}
    recipe = read_recipe(write_recipe(folder, llama, recovery=recovery, probe={"quick_every": 6, "quick_n": 3}))
    return run(recipe, registry=str(folder / "registry"), out=folder / "runs"), folder, recipe


def test_a_run_measures_every_task_after_every_stage(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, _, _ = finished
    assert result.matrix.rows == ("base", "cats", "dogs", "recovery")
    assert result.matrix.columns == ("cats", "dogs", "fish", "plain")
    assert result.matrix.n == ((8, 8, 8, 6),) * 4
    learned = result.matrix.cell("cats", "cats").value
    assert learned is not None
    assert learned > (result.matrix.cell("base", "cats").value or 0.0)


def test_a_runs_metrics_follow_from_its_matrix(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, _, _ = finished
    score = {
        (row, column): result.matrix.scores[i][j] or 0.0
        for i, row in enumerate(result.matrix.rows)
        for j, column in enumerate(result.matrix.columns)
    }
    learning = sum(score[task, task] - score["base", task] for task in ("cats", "dogs")) / 2
    assert result.metrics["target_learning"].value == pytest.approx(learning)
    assert result.metrics["target_forgetting"].value == pytest.approx(score["dogs", "cats"] - score["cats", "cats"])
    assert result.metrics["held_out_forgetting"].value == pytest.approx(score["dogs", "fish"] - score["base", "fish"])


def test_every_update_is_recorded_with_its_parent_and_verdict(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, _ = finished
    registry = Registry.open(str(folder / "registry"))
    log = registry.log()[::-1]
    assert [update.id for update in log] == [update.id for update in result.updates]
    assert [update.skill for update in log] == ["cats", "dogs", "recovery"]
    assert [update.parent for update in log] == [None, log[0].id, log[1].id]
    assert [update.verdict for update in log] == [*(verdict.verdict for verdict in result.verdicts), ""]
    assert log[0].base == result.model.id
    assert [update.base for update in log[1:]] == [update.child for update in log[:-1]]
    assert set(log[0].metrics["scores"]) == {task.name for task in result.tasks}
    assert all(score["n"] > 0 for score in log[0].metrics["scores"].values())
    assert registry.attachment(log[0].id, "recipe.yaml").decode().startswith("name: tiny")
    assert registry.verify().ok


def test_a_run_leaves_a_folder_that_tells_all_of_it(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, recipe = finished
    path = folder / "runs" / result.run
    assert read_recipe(path / "recipe.yaml").digest == recipe.digest
    assert load_result(path / "result.json") == result
    assert result.report == str(path / "report.html")
    assert "<html" in (path / "report.html").read_text()
    measured = [Measurement.load(path / "samples" / f"{stage}.parquet") for stage in result.matrix.rows]
    assert [one.score("cats") for one in measured] == [row[0] for row in result.matrix.scores]
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] not in ("step", "quick")] == [
        "prepared",
        "measured",
        *["recorded"] * 3,
        "finished",
    ]
    assert sum(event["event"] == "step" for event in events) == 12 + 12 + 2
    assert not (path / "checkpoints").exists()
    assert not list(path.rglob(".*.delta"))


def test_a_quick_curve_is_measured_in_between(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, _, _ = finished
    assert [[point.step for point in phase.quick] for phase in result.phases] == [[6, 12], [6, 12]]
    assert result.phases[0].quick[0].scores.keys() == {"fish", "plain"}, (
        "no skill has validation records here, and test records stay untouched"
    )


def test_the_recovery_is_told_apart_from_the_skills(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, _, _ = finished
    assert result.recovery is not None
    assert [phase.name for phase in result.phases] == ["cats", "dogs"]
    assert len(result.recovery.phase.steps) == 2
    fish = next(task for task in result.recovery.tasks if task.task == "fish")
    assert (fish.before.value, fish.after.value) == (result.matrix.cell("dogs", "fish").value, result.matrix.cell("recovery", "fish").value)


def test_the_same_recipe_twice_gives_the_same_updates(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, recipe = finished
    again = run(recipe, registry=str(folder / "another"), out=folder / "runs")
    assert [update.id for update in again.updates] == [update.id for update in result.updates]
    assert again.run != result.run
    assert again.matrix == result.matrix


class Interrupts(Silent):
    """Sends this process a signal at a step of a stage, as a scheduler would."""

    def __init__(self, stage: str, step: int, signum: int) -> None:
        self.stage, self.step, self.signum, self.now = stage, step, signum, ""

    def start(self, what: str, total: int | None) -> None:
        self.now = what

    def advance(self, done: int, total: int | None = None) -> None:
        if self.now == self.stage and done >= self.step:
            self.stage = ""
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(
    ("stage", "step", "signum"),
    [("Teaching dogs", 8, signal.SIGTERM), ("Teaching cats", 1, signal.SIGINT), ("Measuring dogs", 1, signal.SIGTERM)],
)
@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_result(
    finished: tuple[RunResult, Path, Recipe], tmp_path: Path, stage: str, step: int, signum: int
) -> None:
    result, _, recipe = finished
    out, registry = tmp_path / "runs", str(tmp_path / "registry")
    with pytest.raises(Stopped, match="Go on with: selectune run ") as stopped:
        run(recipe, registry=registry, out=out, progress=Interrupts(stage, step, signum))
    assert stopped.value.exit_code == 130
    path = Path(str(stopped.value).rsplit("selectune run ", 1)[1])
    assert not (path / "result.json").exists()
    (again,) = resume(path)
    assert [update.child for update in again.updates] == [update.child for update in result.updates]
    assert [update.id for update in again.updates] == [update.id for update in result.updates]
    assert again.matrix == result.matrix
    assert [len(phase.steps) for phase in again.phases] == [12, 12]
    assert again.phases[1].quick == result.phases[1].quick


def test_a_failed_gate_can_end_a_run(tmp_path: Path, llama: Path) -> None:
    strict = {"min_n": 4, "min_gain": 0.99, "alpha": 0.4}
    recipe = read_recipe(write_recipe(tmp_path, llama, gate=strict, on_failure="stop", optim={"lr": 1e-5, "max_steps": 1, "batch": 4}))
    result = run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert [verdict.verdict for verdict in result.verdicts] == ["failed"]
    assert result.matrix.rows == ("base", "cats")
    assert result.skills == ("cats",)
    assert any("dogs was not taught" in note for note in result.notes)
    assert len(Registry.open(str(tmp_path / "registry")).log()) == 1


def test_several_recipes_share_the_base_and_one_report(tmp_path: Path, llama: Path) -> None:
    path = write_recipe(tmp_path, llama)
    recipes = [read_recipe(path, ["name=one"]), read_recipe(path, ["name=two", "select=[mlp]", "skills[1].train=fish-train.jsonl"])]
    results = run_all(recipes, registry=str(tmp_path / "registry"), out=tmp_path / "runs", name="both")
    assert [result.name for result in results] == ["one", "two"]
    assert results[0].report == results[1].report
    report = Path(results[0].report or "")
    assert report.parent.name.startswith("both-")
    assert [load_result(report.parent / name / "result.json") for name in ("one", "two")] == results
    assert results[0].matrix.scores[0] == results[1].matrix.scores[0]
    assert len(list((tmp_path / "runs" / "measurements").glob("*.parquet"))) == 1
    first = {update.skill: update for update in Registry.open(str(tmp_path / "registry")).log()}
    assert len(first) == 2


def test_two_recipes_of_one_name_are_refused(tmp_path: Path, llama: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, llama))
    with pytest.raises(InputError, match="two recipes of one run have the same name"):
        run_all([recipe, recipe], out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_leak_stops_a_run_before_anything_is_trained(tmp_path: Path, llama: Path) -> None:
    path = write_recipe(tmp_path, llama)
    jsonl(tmp_path / "fish-test.jsonl", [question(3, "a cat"), question(2501, "a red fish")])
    with pytest.raises(DataError, match="1 of 2 test records of fish are in the training of cats too, such as r3"):
        run(read_recipe(path), registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    allowed = plan(read_recipe(path, ["leakage=report"]), lambda name: load_any(name, "none"))
    assert "1 of 2 test records of fish" in allowed.notes[0]
    result = run(read_recipe(path, ["leakage=report", "optim.max_steps=1"]), registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert [(one.learned, one.task, one.how, one.train.id, one.test.id) for one in result.leaks] == [
        ("cats", "fish", "the same words", "r3", "r3")
    ]
    assert result.report is not None
    assert "In the training and in the test" in Path(result.report).read_text()


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("select=[atention]", NoMatch, "recipe tiny: select"),
        ("skills[0].train=nothing.jsonl", DataError, r"skills\[0\]\.train"),
        ("model=nowhere", ModelError, "neither a folder nor a known model"),
    ],
)
def test_a_recipe_that_names_what_is_not_there_says_so(
    tmp_path: Path, llama: Path, override: str, error: type[Exception], words: str
) -> None:
    recipe = read_recipe(write_recipe(tmp_path, llama), [override])
    with pytest.raises(error, match=words):
        run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")


def test_a_folder_that_is_no_run_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="is not the folder of a run"):
        resume(tmp_path)


def test_a_plan_says_what_would_train_and_shows_a_sample(tmp_path: Path, llama: Path) -> None:
    made = plan(read_recipe(write_recipe(tmp_path, llama)), lambda name: load_any(name, "none"))
    net = tiny.llama().net
    attention = sum(parameter.numel() for name, parameter in net.named_parameters() if "self_attn" in name)
    assert made.selected == attention
    assert sum(elements for _, _, elements in made.families) == attention
    assert [(phase.name, phase.steps, phase.records) for phase in made.phases] == [("cats", 12, 16), ("dogs", 12, 16)]
    assert made.memory.moments == 8 * attention
    assert made.memory.parameters == 4 * sum(parameter.numel() for parameter in net.parameters())
    assert "⟦" in made.sample.text
    assert made.to_json()["memory"]["estimate"] is True


def test_a_plan_names_another_allocator_where_glibcs_heap_would_have_large_holes(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes() -> tuple[str, ...]:
        return plan(read_recipe(write_recipe(tmp_path, llama)), lambda name: load_any(name, "none")).notes

    assert not any("tcmalloc" in note for note in notes())
    monkeypatch.setattr("selectune.pipeline.planning.HEAP_WORTH_A_WORD", 1)
    assert any("holes in glibc's heap" in note and "LD_PRELOAD=libtcmalloc" in note for note in notes())
    monkeypatch.setattr("selectune.pipeline.planning.allocator", lambda: "tcmalloc")
    assert not any("tcmalloc" in note for note in notes())


def test_an_adapter_is_kept_in_its_own_form_and_its_update_is_an_exact_one(tmp_path: Path, llama: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load

    recipe = read_recipe(write_recipe(tmp_path, llama), ["optim.adapter={kind: lora, rank: 2}", "optim.lr=0.02"])
    planned = plan(recipe, lambda name: load_any(name, "none"))
    url = str(tmp_path / "registry")
    result = run(recipe, registry=url, out=tmp_path / "runs")
    report = Path(result.report or "")
    for skill in ("cats", "dogs"):
        folder = report.parent / "adapters" / skill
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            numbers = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118  # not a mapping
        assert planned.memory.masters == 4 * numbers
        (made,) = (update for update in Registry.open(url).log() if update.skill == skill)
        assert set(made.attachments) == {"factors.safetensors", "recipe.yaml"}
        factors = load(Registry.open(url).attachment(made.id, "factors.safetensors"))
        assert sum(factor.numel() for factor in factors.values()) == numbers
    assert load_any(result.updates[1].id, url).id == result.updates[1].child
    for phase in result.phases:
        assert phase.steps[-1].loss < phase.steps[0].loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_updates_made_beside_a_quantised_base_are_the_originals(tmp_path: Path) -> None:
    import torch

    made = tiny.llama()
    config = made.net.config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16  # what bitsandbytes multiplies on a CPU
    torch.manual_seed(0)
    base = assemble("tiny", type(made.net)(config).to(torch.bfloat16), made.processor)
    folder = save_model(base, tmp_path / "model")
    url = str(tmp_path / "registry")
    plain, small = (
        read_recipe(write_recipe(tmp_path, folder), [f"name={name}", f"quantise={kind}", "optim.lr=0.02"])
        for name, kind in (("plain", "null"), ("small", "int8"))
    )
    results = run_all([small, plain], registry=url, out=tmp_path / "runs", name="both")
    first, second = results[0].updates
    assert (first.base, second.parent) == (base.id, first.id)
    assert load_any(second.id, url).id == second.child
    assert any("beside a base in int8" in note for note in results[0].notes)
    assert not any("beside a base" in note for note in results[1].notes)
    assert results[1].updates[0].base == base.id, "the next recipe has the model as it came"
    Registry.open(url).verify().demand()


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_several_processes_make_one_run(shard: bool, tmp_path: Path, llama: Path) -> None:
    recipe = write_recipe(tmp_path, llama, gate={"min_n": 30})
    url = str(tmp_path / "registry")
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selectune"]
    asked = ["run", str(recipe), "--set", f"shard={str(shard).lower()}", "--registry", url, "--out", str(tmp_path / "runs"), "--json"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*begin, *asked], capture_output=True, text=True, check=False, env=settings, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(done.stdout)
    alone = run(read_recipe(recipe), registry=str(tmp_path / "alone"), out=tmp_path / "alone-runs")
    assert document["matrix"]["scores"][0] == list(alone.matrix.scores[0])
    assert document["skills"] == list(alone.skills)
    registry = Registry.open(url)
    registry.verify().demand()
    assert [update.id for update in registry.log()][::-1] == document["updates"]
    assert Path(document["report"]).is_file()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [Path(document["report"]).parent.name]
    assert load_any(document["updates"][-1], url).id == registry.show(document["updates"][-1]).child


def test_an_update_is_a_model_by_its_id_and_by_its_name(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, _ = finished
    url = str(folder / "registry")
    assert load_any(result.updates[1].id[:10], url).id == result.updates[1].child
    Registry.open(url).promote(result.updates[0].id, "candidate", "a try", "me")
    assert load_any("candidate", url).id == result.updates[0].child
    with pytest.raises(ModelError, match="no folder, no known model, and no update"):
        load_any("candidat", url)


def test_an_update_becomes_a_checkpoint_with_the_names_of_its_base(
    finished: tuple[RunResult, Path, Recipe], llama: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    result, folder, _ = finished
    registry = Registry.open(str(folder / "registry"))
    out = save_full(registry, result.updates[-1].id, tmp_path / "deep" / "full")
    assert load_any(str(out), "none").id == result.updates[-1].child
    with safe_open(out / "model.safetensors", framework="pt") as made, safe_open(llama / "model.safetensors", framework="pt") as base:
        assert set(made.keys()) == set(base.keys())
    assert json.loads((out / "selectune.json").read_text())["update"] == result.updates[-1].id
    assert [path.name for path in out.parent.iterdir()] == ["full"]
    with pytest.raises(InputError, match="is there already and not empty"):
        save_full(registry, result.updates[-1].id, out)


def test_a_map_needs_no_weights(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path / "config.json")
    made = map_any(str(tmp_path), "none")
    assert made.elements == sum(parameter.numel() for parameter in tiny.llama().net.parameters())


def test_a_comparison_pairs_samples(finished: tuple[RunResult, Path, Recipe]) -> None:
    result, folder, _ = finished
    samples = folder / "runs" / result.run / "samples"
    before, after = Measurement.load(samples / "base.parquet"), Measurement.load(samples / "cats.parquet")
    rows = {row.task: row for row in compare(before, after)}
    difference = next(one for one in result.differences if (one.task, one.stage) == ("cats", "cats"))
    assert (rows["cats"].value, rows["cats"].low, rows["cats"].n) == (difference.value, difference.low, difference.n)
    with pytest.raises(SameModel, match="are of the same weights"):
        compare(before, before)


def begun(folder: Path, llama: Path, **changes: object) -> Path:
    """A run of two skills that was stopped in the second one's training, with three checkpoints of it on the disk."""
    optim = {"lr": 0.05, "batch": 8, "max_steps": 6, "warmup": 0.0, "save_every": 1, "keep_checkpoints": 3}
    recipe = read_recipe(write_recipe(folder, llama, **{"optim": optim, **changes}))
    with pytest.raises(Stopped) as stopped:
        run(recipe, registry=str(folder / "registry"), out=folder / "runs", progress=Interrupts("Teaching dogs", 4, signal.SIGTERM))
    return Path(str(stopped.value).rsplit("selectune run ", 1)[1])


@pytest.mark.slow
def test_a_damaged_checkpoint_stops_a_run_until_somebody_decides(tmp_path: Path, llama: Path) -> None:
    path = begun(tmp_path, llama)
    newest = path / "checkpoints" / "dogs" / "checkpoint-00000004.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(
        ResumeError, match=r"00000004\.safetensors: .*checkpoint-00000003\.safetensors beside it, after step 3, is whole: delete"
    ):
        resume(path)
    newest.unlink()
    (result,) = resume(path)
    assert [len(phase.steps) for phase in result.phases] == [6, 6]


@pytest.mark.slow
def test_what_a_crash_left_is_gone_when_a_run_goes_on(tmp_path: Path, llama: Path) -> None:
    path = begun(tmp_path, llama, probe={"quick_every": 2, "quick_n": 2})
    with (path / "events.jsonl").open("a") as events:
        events.write('{"at": "2026-11-24T10:15:00Z", "event": "qui')
    for place in (path, path / "samples", path / "stages", path / "checkpoints" / "dogs"):
        (place / ".partial-01234567-1-0123").write_bytes(b"half")
    (path / ".dogs.delta").write_bytes(b"half")
    shutil.copytree(path / "checkpoints" / "dogs", path / "checkpoints" / "cats")
    (result,) = resume(path)
    lines = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines if line["event"] == "step" and line["stage"] == "dogs"] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in result.phases[1].quick] == [2, 4, 6]
    assert not list(path.rglob(".*"))
    assert not (path / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_was_begun_with_and_nothing_else(tmp_path: Path, llama: Path) -> None:
    path = begun(tmp_path, llama)
    records, kept = tmp_path / "cats-train.jsonl", (tmp_path / "cats-train.jsonl").read_text()
    records.write_text(kept.replace("a cat", "a dog", 1))
    with pytest.raises(ResumeError, match=r"was begun with something else: records of cats was [0-9a-f]{12}, is [0-9a-f]{12}\. Put back"):
        resume(path)
    records.write_text(kept)
    recipe = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text(recipe.replace("lr: 0.05", "lr: 0.04"))
    with pytest.raises(ResumeError, match="begun with something else: recipe was"):
        resume(path)
    (path / "recipe.yaml").write_text(recipe)
    assert len(resume(path)[0].updates) == 2


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_run(tmp_path: Path, llama: Path) -> None:
    from selectune.pipeline.folder import held

    path = begun(tmp_path, llama)
    with held(path), pytest.raises(ResumeError, match=r"another process is working on this run\. Wait for that one"):
        resume(path)


@pytest.mark.parametrize(
    ("rows", "override", "words"),
    [
        ([question(1, "")], "optim.batch=1", r'record "r1".*assistant turn 1 is empty\. Give every assistant turn words'),
        (
            [question(n, "a cat") for n in range(3)],
            "optim.batch=8",
            r"3 records are fewer than one batch of 8\. Set optim\.batch to at most 3",
        ),
        ([question(n, "a cat") for n in range(8)], "select=[attention, '!attention']", r"nothing is left of attention, !attention"),
    ],
    ids=["no word of an assistant", "fewer than a batch", "an empty selection"],
)
def test_bad_input_is_one_error_and_teaches_nothing(
    rows: list[dict[str, object]], override: str, words: str, tmp_path: Path, llama: Path
) -> None:
    path = write_recipe(tmp_path, llama)
    jsonl(tmp_path / "cats-train.jsonl", rows)
    with pytest.raises(InputError, match=words):
        run(read_recipe(path, [override]), registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert Registry.open(str(tmp_path / "registry")).log() == []
    assert not list(tmp_path.rglob(".*"))
    assert not list(tmp_path.rglob("checkpoint-*"))
