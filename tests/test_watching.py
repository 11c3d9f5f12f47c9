"""The rules of `watch`: each fires where it must and is silent where it must not, and a training that goes on is watched as before."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluation_fixtures as tiny
from pipeline_fixtures import save_model, write_recipe
from selectune.errors import Alarmed, Diverged, RecipeError, SelectionViolated
from selectune.pipeline import resume, run
from selectune.pipeline.progress import Silent
from selectune.recipe import Watch, read_recipe
from selectune.records import Encoder
from selectune.reporting import load_result
from selectune.training import Session, Step, train
from selectune.training.watching import Alarm, Watcher, sentences
from training_fixtures import attention, examples, optim, tiny_model


def step(n: int, **changes: Any) -> Step:
    values = {"loss": 1.0 / n, "lr": 0.1, "tokens": 8, "grad_norm": 1.0, "seconds": 0.1, "waited": 0.01, **changes}
    return Step(n=n, total=1000, **values)


def watched(steps: Sequence[Step], **rules: Any) -> list[Alarm]:
    watcher = Watcher(Watch.model_validate(rules))
    return [alarm for one in steps for alarm in watcher.see(one)]


def test_a_healthy_training_raises_no_alarm() -> None:
    assert watched([step(n, grad_norm=2.0 + math.sin(n)) for n in range(1, 400)]) == []


def test_a_gradient_far_above_the_median_is_a_spike() -> None:
    norms = [1.0, 3.0, 2.0, 1.5, 2.5, 2.0, 1.0, 3.0, 2.0, 21.0, 2.0]
    (alarm,) = watched([step(n, grad_norm=norm) for n, norm in enumerate(norms, 1)])
    assert (alarm.rule, alarm.step, alarm.stops) == ("spike", 10, False)
    assert str(alarm).startswith("step 10: the gradient's norm is 21, the median of the 9 steps before 2. Look for odd records")


@pytest.mark.parametrize(
    ("norms", "rules"),
    [
        ([2.0] * 9 + [20.0], {}),
        ([2.0] * 7 + [200.0], {}),
        ([2.0] * 9 + [200.0], {"spike": "off"}),
        ([2.0] * 9 + [200.0], {"spike": {"times": 100}}),
    ],
    ids=["at the bound", "too early to know", "off", "another bound"],
)
def test_what_is_no_spike(norms: list[float], rules: dict[str, Any]) -> None:
    assert watched([step(n, grad_norm=norm) for n, norm in enumerate(norms, 1)], **rules) == []


def test_the_median_runs_with_the_training() -> None:
    rising = [step(n, grad_norm=1.1**n) for n in range(1, 100)]
    assert watched(rising, spike={"times": 5, "window": 8}) == []
    assert len(watched(rising, spike={"times": 5, "window": 60})) > 10


def test_a_dead_component_is_said_once_until_it_lives() -> None:
    dead = ("vision.patch",)
    steps = [step(1, still=dead), step(2, still=dead), step(3), step(4, still=dead)]
    found = watched(steps, dead="warn")
    assert [(alarm.rule, alarm.step) for alarm in found] == [("dead", 1), ("dead", 4)]
    assert "selected, but no gradient reaches: vision.patch. Take them out of the selection" in str(found[0])
    assert watched(steps, dead="off") == []
    assert watched([step(1), step(2)]) == []


def test_a_loss_that_does_not_fall_is_found_after_two_windows() -> None:
    flat = [step(n, loss=2.0 + 0.3 * (-1) ** n) for n in range(1, 60)]
    (alarm,) = watched(flat, flat={"window": 10})
    assert (alarm.rule, alarm.step) == ("flat", 20)
    assert "its median is 2 over the last 10 steps, 2 over the first. Raise optim.lr" in str(alarm)


@pytest.mark.parametrize(
    ("losses", "rules"),
    [
        ([3.0 - 0.02 * n for n in range(60)], {"flat": {"window": 10}}),
        ([2.0] * 19, {"flat": {"window": 10}}),
        ([2.0] * 60, {"flat": {"do": "off", "window": 10}}),
        ([2.0] * 10 + [1.9] * 50, {"flat": {"window": 10, "fall": 0.04}}),
    ],
    ids=["it falls", "too early to know", "off", "by just so much"],
)
def test_what_is_no_flat_loss(losses: list[float], rules: dict[str, Any]) -> None:
    assert watched([step(n, loss=loss) for n, loss in enumerate(losses, 1)], **rules) == []


def test_a_device_that_waits_for_data_is_found() -> None:
    steps = [step(n, seconds=1.0, waited=0.2) for n in range(1, 21)] + [step(n, seconds=1.0, waited=0.9) for n in range(21, 60)]
    (alarm,) = watched(steps)
    assert (alarm.rule, alarm.step) == ("starved", 29)
    assert "the device waits for data: 10.3 s of the last 20 s went into pictures (52%). Keep optim.cache_features on" in str(alarm)


@pytest.mark.parametrize("rules", [{"starved": "off"}, {"starved": {"share": 0.95}}, {"starved": {"window": 60}}])
def test_what_is_no_starved_device(rules: dict[str, Any]) -> None:
    assert watched([step(n, seconds=1.0, waited=0.9) for n in range(1, 50)], **rules) == []


def test_steps_that_are_not_finite_stop_when_there_are_too_many_in_a_row() -> None:
    bad = {"fault": "the loss is nan", "loss": math.nan, "grad_norm": math.nan}
    steps = [step(n, **(bad if n in (3, 4, 8, 9, 10) else {})) for n in range(1, 12)]
    found = watched(steps, not_finite="warn")
    assert [(alarm.step, alarm.stops) for alarm in found] == [(3, False), (4, False), (8, False), (9, False), (10, True)]
    assert "the loss is nan; the step was left out, 3 in a row" in str(found[-1])
    assert watched([step(n) for n in range(1, 12)], not_finite="warn") == []


def test_a_sentence_for_each_rule_says_how_often_it_came() -> None:
    norms = [1.0] * 9 + [50.0, 60.0, 70.0]
    (sentence,) = sentences(watched([step(n, grad_norm=norm) for n, norm in enumerate(norms, 1)]))
    assert sentence.startswith("watch.spike: step 10: the gradient's norm is 50")
    assert sentence.endswith("It came 2 more times, last at step 12.")
    assert sentences([]) == ()


def test_a_rule_is_a_word_or_a_word_with_its_threshold(tmp_path: Path) -> None:
    made = Watch.model_validate({"spike": "stop", "flat": {"window": 9}})
    assert (made.spike.do, made.spike.times, made.flat.do, made.flat.window) == ("stop", 10.0, "warn", 9)
    path = write_recipe(tmp_path, tmp_path, watch={"not_finite": "off", "spikes": "warn", "flat": "maybe"})
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert "watch.not_finite.do: input should be 'stop' or 'warn', not 'off'" in str(error.value)
    assert "watch.spikes: unknown key. Did you mean spike?" in str(error.value)
    assert "watch.flat.do" in str(error.value)


def test_what_is_watched_is_no_part_of_a_recipes_identity(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tmp_path)
    assert read_recipe(path, ["watch.spike=stop", "report_to=[tensorboard]"]).digest == read_recipe(path).digest


def broken_at(model: Any, *steps: int) -> Any:
    """Makes the logits of these forward passes with a gradient NaN; gives the hook's handle."""
    count = itertools.count(1)

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled() or next(count) not in steps:
            return None
        return output * math.nan

    return model.net.lm_head.register_forward_hook(spoil)


def test_a_step_that_is_not_finite_is_left_out_where_the_recipe_allows() -> None:
    model, told = tiny_model("llama"), list[Alarm]()
    handle = broken_at(model, 2)
    session = Session(watch=Watch.model_validate({"not_finite": "warn"}), on_alarm=told.append)
    training = train(model, attention(model), examples(pictures=False), optim(), session=session)
    handle.remove()
    assert [bool(one.fault) for one in training.steps] == [False, True, False, False]
    assert math.isnan(training.steps[1].loss)
    assert told == list(training.alarms)
    assert [alarm.rule for alarm in told] == ["not_finite"]
    assert "samples: q" in told[0].what
    assert all(math.isfinite(one.loss) for one in training.steps if one.n != 2)


def test_a_step_that_is_not_finite_stops_without_such_a_rule_and_after_several() -> None:
    model = tiny_model("llama")
    handle = broken_at(model, 2, 3)
    with pytest.raises(Diverged, match="step 2: the loss is nan"):
        train(model, attention(model), examples(pictures=False), optim())
    handle.remove()
    handle = broken_at(model, 2, 3)
    rules = Watch.model_validate({"not_finite": {"do": "warn", "row": 2}})
    with pytest.raises(Alarmed, match=r"step 3: .*2 in a row\. Look at these samples, .* Or change watch\.not_finite"):
        train(model, attention(model), examples(pictures=False), optim(), session=Session(watch=rules))
    handle.remove()


def test_a_component_that_nothing_reaches_is_a_warning_where_the_recipe_says_so() -> None:
    model = tiny_model()
    selection, records = model.map.select(("projector", "attention")), examples(pictures=False)
    with pytest.raises(SelectionViolated, match=r"no gradient reaches: projector.*or set watch\.dead to warn"):
        train(model, selection, records, optim())
    training = train(model, selection, records, optim(), session=Session(watch=Watch.model_validate({"dead": "warn"})))
    assert [(alarm.rule, alarm.step) for alarm in training.alarms] == [("dead", 1)]
    assert training.steps[-1].still
    assert all(name.startswith("projector") for name in training.steps[-1].still)
    quiet = train(model, selection, records, optim(), session=Session(watch=Watch.model_validate({"dead": "off"})))
    assert quiet.alarms == ()


def test_time_spent_on_pictures_is_told_from_time_spent_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Encoder.pixels

    def slowly(self: Encoder, *groups: Any) -> Any:
        time.sleep(0.05)
        return own(self, *groups)

    monkeypatch.setattr(Encoder, "pixels", slowly)
    model = tiny_model()
    rules = Watch.model_validate({"starved": {"window": 2, "share": 0.01}})
    slow = train(model, attention(model), examples(), optim(cache_features=False), session=Session(watch=rules))
    assert all(0.05 <= one.waited <= one.seconds for one in slow.steps)
    assert [alarm.rule for alarm in slow.alarms] == ["starved"]
    cached = train(model, attention(model), examples(4), optim(), session=Session(watch=rules))
    assert all(one.waited == 0.0 for one in cached.steps[1:]), "features that are kept need no picture"


def test_an_alarm_that_stops_writes_the_state_and_the_rest_is_the_same(tmp_path: Path) -> None:
    model, records = tiny_model("llama"), examples(pictures=False)
    settings = optim(max_steps=12)
    straight = train(model, attention(model), records, settings)
    strict = Watch.model_validate({"flat": {"do": "stop", "window": 3, "fall": 0.99}})
    with pytest.raises(Alarmed, match=r"step 6: the loss does not fall.*change watch\.flat and go on: resume .*checkpoint-00000006"):
        train(model, attention(model), records, settings, session=Session(checkpoint_dir=tmp_path, watch=strict))
    kinder = Watch.model_validate({"flat": {"do": "warn", "window": 3, "fall": 0.99}})
    told: list[Alarm] = []
    resumed = train(model, attention(model), records, settings, session=Session(resume=tmp_path, watch=kinder, on_alarm=told.append))
    assert resumed.delta.digest == straight.delta.digest
    assert [(alarm.rule, alarm.step) for alarm in resumed.alarms] == [("flat", 6)], "found before, and not lost"
    assert told == []


@pytest.mark.slow
def test_a_run_with_a_step_left_out_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selectune.training.stepping import Stepper

    own = Stepper.make

    def broken(self: Any, number: int) -> Step:
        if number == 3:
            raise Diverged("step 3: the loss is nan and the gradient's norm nan; samples: r7", where="training")
        return own(self, number)

    monkeypatch.setattr(Stepper, "make", broken)
    model = save_model(tiny.llama(), tmp_path / "model")
    optim = {"lr": 0.05, "batch": 8, "max_steps": 5, "warmup": 0.0, "save_every": 1}
    recipe = read_recipe(write_recipe(tmp_path, model, watch={"not_finite": "warn"}, optim=optim))
    result = run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    assert [step.loss is None for step in result.phases[0].steps] == [False, False, True, False, False]
    assert any("cats: watch.not_finite: step 3: the loss is nan" in note for note in result.notes)
    assert "the step was left out" in Path(result.report or "").read_text()


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.slow
def test_an_alarm_is_an_event_a_line_on_the_screen_and_a_note_in_the_report(tmp_path: Path) -> None:
    model = save_model(tiny.llama(), tmp_path / "model")
    rules = {"flat": {"do": "warn", "window": 2, "fall": 0.9999}}
    recipe = read_recipe(write_recipe(tmp_path, model, watch=rules, optim={"lr": 0.05, "batch": 8, "max_steps": 4, "warmup": 0.0}))
    heard = Heard()
    result = run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs", progress=heard)
    folder = Path(result.report or "").parent
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    alarms = [event for event in events if event["event"] == "alarm"]
    assert [(event["stage"], event["rule"], event["step"], event["stops"]) for event in alarms] == [
        ("cats", "flat", 4, False),
        ("dogs", "flat", 4, False),
    ]
    assert sum("cats: step 4: the loss does not fall" in line for line in heard.said) == 1
    assert any(note.startswith("cats: watch.flat: step 4: the loss does not fall") for note in result.notes)
    assert load_result(folder / "result.json").notes == result.notes
    assert "watch.flat: step 4" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_an_alarm_stopped_goes_on_when_its_rule_was_changed(tmp_path: Path) -> None:
    model = save_model(tiny.llama(), tmp_path / "model")
    rules = {"flat": {"do": "stop", "window": 2, "fall": 0.9999}}
    settings = {"lr": 0.05, "batch": 8, "max_steps": 6, "warmup": 0.0}
    recipe = read_recipe(write_recipe(tmp_path, model, watch=rules, optim=settings))
    plain = run(read_recipe(write_recipe(tmp_path, model, optim=settings)), registry=str(tmp_path / "other"), out=tmp_path / "plain")
    with pytest.raises(Alarmed, match=r"cats: step 4: .*Or change watch in the run's recipe\.yaml, and go on with: ") as stopped:
        run(recipe, registry=str(tmp_path / "registry"), out=tmp_path / "runs")
    path = Path(str(stopped.value).rsplit("selectune run ", 1)[1])
    text = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text(text.replace("do: stop\n    window: 2", "do: warn\n    window: 2"))
    (result,) = resume(path)
    assert [update.child for update in result.updates] == [update.child for update in plain.updates]
    assert any(note.startswith("cats: watch.flat: step 4") for note in result.notes)
