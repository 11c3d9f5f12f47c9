"""What a training is expected to take, from shapes alone: against torch's own counts, and against trainings that are then made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import evaluation_fixtures as fixtures
from conftest import tiny_model
from keeping_fixtures import keeping
from selectune.components import Selection, map_model
from selectune.hashing import Manifest
from selectune.models import Model
from selectune.network import parameters
from selectune.pipeline import load_any, plan, sketch
from selectune.quantising import quantise
from selectune.recipe import Adapter, Optim, read_recipe
from selectune.training import FeatureCache, Session
from selectune.training.cut import first_layer
from selectune.training.forecast import Forecast, forecast, outline
from selectune.training.load import Load
from selectune.training.machine import Machine, matrix_rate, measure
from selectune.training.masters import Masters
from selectune.training.norms import LeanNorms
from selectune.training.room import Change, advice, changes
from selectune.training.setup import prepare
from selectune.training.stepping import Stepper
from selectune.training.tracing import Pass, Span, trace
from selectune.training.work import is_early, required
from training_fixtures import attention, examples, optim
from training_fixtures import tiny_model as assembled

ROOT = Path(__file__).parents[1]
LOAD = Load(rows=4, length=20, labels=12)
TRACED = ("llama", "tied", "qwen2", "phi3", "gpt_neox", "gpt2", "falcon", "llava", "qwen2_5_vl")


def a_model(family: str, dtype: torch.dtype = torch.float32) -> Model:
    net = tiny_model(family).to(dtype)
    return Model(name=family, net=net, processor=None, map=map_model(net, family), manifest=Manifest({}))


def passed(model: Model, selection: Selection, load: Load = LOAD) -> Pass:
    span = Span(first=first_layer(selection), below=is_early(selection), rows=load.rows, length=load.length)
    found = trace(outline(model.net), model.map, selection.parameters, span)
    assert isinstance(found, Pass), found
    return found


def taken(model: Model, *patterns: str, **changed: Any) -> Forecast:
    return forecast(model, model.map.select(patterns, tie="allow"), Optim(**changed), LOAD)


@pytest.mark.parametrize("family", ["llama", "qwen2", "llava"])
@pytest.mark.parametrize("patterns", ["attention", "gate-and-up", "down", "language.layers.1.attn.o", "language-layers", "language.embed"])
def test_the_work_that_is_required_is_what_torch_counts(family: str, patterns: str) -> None:
    model = a_model(family)
    selection = model.map.select((patterns,))
    # A label everywhere: nothing is left out of the last layer. Torch counts the masked half of attention, and no head in the tower.
    load = Load(rows=4, length=20, labels=80, begins="cut")
    work = required(model.map, model.net.config, selection, load)
    assert work.forward + work.activations + work.weights + 2 * work.attention == passed(model, selection, load).flops


def test_of_the_last_layer_only_labelled_positions_are_required() -> None:
    model = a_model("llama")
    selection = model.map.select(("attention",))
    everywhere, few = (required(model.map, model.net.config, selection, Load(rows=4, length=20, labels=labels)) for labels in (80, 8))
    late = [c for c in model.map.components if c.name.startswith(("language.layers.1.attn.o", "language.layers.1.mlp"))]
    assert everywhere.forward - few.forward == 2 * (80 - 8) * sum(component.elements for component in late)
    assert few.head == everywhere.head / 10


def test_an_expert_counts_by_the_share_of_tokens_that_reach_it() -> None:
    model = a_model("qwen3_moe", torch.bfloat16)
    work = required(model.map, model.net.config, model.map.select(("language-layers",)), Load(rows=4, length=20, labels=80))
    experts = sum(c.elements for c in model.map.components if ".moe.experts." in c.name)
    rest = sum(c.elements for c in model.map.components if c.name.startswith("language.layers") and len(c.shape) > 1) - experts
    assert work.forward == 2 * 80 * (rest + experts / 2)


@pytest.mark.parametrize("family", TRACED)
@pytest.mark.parametrize("patterns", ["attention", "language-layers"])
def test_what_waits_for_the_backward_pass_is_what_a_real_pass_keeps(family: str, patterns: str) -> None:
    model = a_model(family, torch.bfloat16)
    selection = model.map.select((patterns,))
    net: Any = model.net
    named = parameters(net)
    for name, parameter in named.items():
        parameter.requires_grad_(name in selection.parameters)
    weights = {parameter.untyped_storage().data_ptr() for parameter in named.values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    width = net.config.get_text_config().hidden_size
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with sdpa_kernel(SDPBackend.MATH), LeanNorms(net).used(), hooks:
        mask = torch.ones(LOAD.rows, 1, LOAD.length, LOAD.length, dtype=torch.bool)
        states = torch.randn(LOAD.rows, LOAD.length, width, dtype=torch.bfloat16)
        output = net.get_decoder()(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state
    real = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
    assert output.requires_grad
    assert passed(model, selection).saved == pytest.approx(real, rel=0.02)


def test_nothing_is_kept_below_the_first_trained_layer() -> None:
    model = a_model("llama")
    whole, upper = (passed(model, model.map.select((patterns,))) for patterns in ("attention", "language.layers.1.attn.*"))
    assert (whole.layers, upper.layers) == (2, 1)
    assert upper.saved < 0.7 * whole.saved


def test_a_pass_leaves_the_network_as_it_was() -> None:
    net = outline(tiny_model("llama"))
    flags = [parameter.requires_grad for parameter in net.parameters()]
    found = map_model(net, "llama")
    selection = found.select(("language.layers.1.attn.*",))
    assert isinstance(trace(net, found, selection.parameters, Span(first=1, below=False, rows=2, length=9)), Pass)
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in net.modules())


def test_a_model_whose_pass_depends_on_values_is_forecast_by_the_formula_and_says_so() -> None:
    found = taken(a_model("dbrx"), "attention")
    assert "could not be traced: NotImplementedError" in found.reasons["activations"]
    assert found.memory.activations == 34 * 2 * 80 * 32 * 2


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "adafactor"])
def test_masters_and_moments_are_what_the_optimizer_holds(optimizer: str) -> None:
    model = a_model("llama")
    selection = model.map.select(("attention",))
    optim = Optim(optimizer=optimizer)
    masters = Masters(model.net, selection, optim)
    for master in masters.values.values():
        master.grad = torch.ones_like(master)
    masters.step(1e-3, torch.ones(()), None)
    memory = forecast(model, selection, optim, LOAD).memory
    assert memory.masters == sum(master.nbytes for master in masters.values.values())
    held = sum(tensor.nbytes for name, tensor in masters.state().items() if not name.startswith(("master/", "reached/", "step/")))
    # bitsandbytes keeps tables of 256 numbers for each tensor too.
    tables = sum(tensor.nbytes for name, tensor in masters.state().items() if name.startswith("qmap"))
    assert memory.moments == pytest.approx(held - tables, rel=0.05)


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)])
@pytest.mark.parametrize("top_k", [None, 6])
def test_what_holds_old_skills_takes_the_bytes_that_it_is_forecast_to(top_k: int | None, adapter: Adapter | None) -> None:
    model, prompts = assembled("llama", torch.bfloat16), examples(5, pictures=False)
    terms = {"distill": {"top_k": top_k}, "l2sp": 0.1, "ewc": {"weight": 1.0, "data": "x"}}
    given = keeping({**terms, "anchors": {"data": "x", "batch": 2, "top_k": top_k}}, ewc=prompts, anchors=prompts)
    settings, cache = optim(adapter=adapter, max_steps=6), FeatureCache()
    setup = prepare(model, attention(model), examples(pictures=False), settings, given, Session(features=cache))
    stepper = Stepper(setup)
    setup.masters.require_grad()
    for number in range(1, 7):
        stepper.make(number)
    keeper, samples, asked = setup.keeper, setup.samples.kept, setup.keeper._terms.anchors
    assert asked is not None
    held = sum(tensor.nbytes for tensor in keeper._start.values())
    held += sum(tensor.nbytes for pull in keeper._terms.pulls for tensor in (pull.importance or {}).values())
    sizes = [[(len(one.input_ids), one.supervised, 0) for one in part] for part in (samples, asked.kept)]
    load = Load.of(sizes[0], settings, records=len(samples), cut=False).keeping(given.keep, sizes[1], settings, records=len(asked.kept))
    memory = forecast(model, attention(model), settings, load).memory
    assert (cache.store.nbytes > 0) == (top_k is not None)
    # Records that are word for word the same share an answer; a forecast does not look for them.
    asks = [(keeper._distill, samples), (keeper._anchors, asked.kept)] if top_k is not None else []
    answers = [value.nbytes for teacher, part in asks if teacher for one in part for value in teacher._kept(one).values()]
    if setup.adapter is not None:
        setup.adapter.remove()
    assert memory.keep - held == pytest.approx(sum(answers), rel=0.1, abs=1), "a label more or less"
    plain = forecast(model, attention(model), settings, Load.of(sizes[0], settings, records=len(samples), cut=False)).memory
    assert plain.keep == 0
    assert memory.above > plain.above + memory.keep


def test_gradients_are_those_of_whole_tensors_and_in_backward_of_one() -> None:
    model = a_model("llama", torch.bfloat16)
    elements = model.map.select(("attention",)).elements
    assert taken(model, "attention").memory.gradients == (2 + 4) * elements
    assert taken(model, "attention", in_backward=True, clip=None).memory.gradients == (2 + 4) * 32 * 32
    part = a_model("phi3", torch.bfloat16)
    queries = part.map.select(("language.*.attn.q",)).elements
    fused = sum(parameter.numel() for name, parameter in part.net.named_parameters() if "qkv" in name)
    assert taken(part, "language.*.attn.q").memory.gradients == 2 * fused + 4 * queries


def test_portions_wait_and_recomputing_keeps_less() -> None:
    model = a_model("llama")
    plain = taken(model, "attention").memory
    selection = model.map.select(("attention",))
    portions = forecast(model, selection, Optim(), Load(rows=4, length=20, labels=12, passes=2)).memory
    assert (plain.waiting, portions.waiting) == (0, plain.masters)
    deep = a_model("llama")
    assert taken(deep, "attention", checkpointing=True).memory.activations < 1.3 * plain.activations
    adapter = taken(model, "attention", adapter=Adapter(rank=2)).memory
    assert adapter.masters == 4 * 2 * sum(sum(shape) for shape in selection.full_shapes.values())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_takes_the_bytes_that_it_is_forecast_to(kind: Any) -> None:
    pytest.importorskip("bitsandbytes")
    model = a_model("llama", torch.bfloat16)
    selection = model.map.select(("attention",))
    expected = forecast(model, selection, Optim(), LOAD, quantised=kind).memory.parameters
    held = quantise(model, [selection], kind).net
    size = sum(parameter.nbytes for parameter in held.parameters())
    states = [getattr(parameter, "quant_state", None) for parameter in held.parameters()]
    size += sum(state.absmax.nbytes for state in states if state is not None)
    scales = [getattr(parameter, "SCB", None) for parameter in held.parameters()]
    size += sum(scale.nbytes for scale in scales if scale is not None)
    # Small as these are, scales of rows are a part of them.
    assert expected == pytest.approx(size, rel=0.02)


@pytest.mark.slow
def test_attention_of_a_model_of_seven_billion_fits_a_card_and_a_smaller_one_beside_a_quantised_base() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from components import qwen2_5_vl

    with torch.device("meta"):
        net = qwen2_5_vl().to(torch.bfloat16)
    model = Model(name="Qwen2.5-VL-7B", net=net, processor=None, map=map_model(net, "Qwen2.5-VL-7B"), manifest=Manifest({}))
    selection = model.map.select(("attention",))
    load, card = Load(rows=1, length=512, labels=32), Machine(device="cuda", rate=4e14, bandwidth=1e12, streaming=1e12)
    optim = Optim(batch=1, checkpointing=True, in_backward=True, clip=None)
    plain = forecast(model, selection, optim, load, machine=card)
    small = forecast(model, selection, optim.model_copy(update={"optimizer": "adamw-8bit"}), load, machine=card, quantised="nf4")
    assert 26e9 < plain.memory.total < 28e9
    assert 12e9 < small.memory.total < 15e9
    assert plain.seconds is not None
    assert 0.02 < plain.seconds < 1.0


def test_advice_says_what_fits_and_what_to_change() -> None:
    model = a_model("llama")
    selection = model.map.select(("attention",))
    found = changes(model, selection, Optim(batch=4), LOAD)
    assert [change.setting for change in found] == ["optim.micro_batch=1", "optim.checkpointing=true", "quantise=nf4", "optim.adapter=lora"]
    assert advice(3 * 10**9, 4 * 10**9, found) == "fits: 3.0 GB of 4.0 GB that are free"
    ways = (Change(setting="optim.micro_batch=8", total=5 * 10**9), Change(setting="quantise=nf4", total=3 * 10**9))
    assert advice(6 * 10**9, 4 * 10**9, ways) == "does not fit: 6.0 GB, and 4.0 GB are free; quantise=nf4 makes it 3.0 GB"
    assert "the most that one change does is quantise=nf4, 3.0 GB: make several" in advice(6 * 10**9, 2 * 10**9, ways)
    assert "take a smaller selection" in advice(6 * 10**9, 2 * 10**9, ())


def test_a_tied_selection_is_not_told_to_take_an_adapter() -> None:
    model = a_model("tied")
    found = changes(model, model.map.select(("language",), tie="allow"), Optim(batch=4), LOAD)
    assert "optim.adapter=lora" not in [change.setting for change in found]


def test_time_is_forecast_only_where_rates_are_known_and_grows_with_the_work() -> None:
    model = a_model("llama")
    selection = model.map.select(("attention",))
    assert forecast(model, selection, Optim(), LOAD).seconds is None
    machine = Machine(rate=1e9, bandwidth=1e9, call=1e-6, streaming=1e9)
    once, twice = (
        forecast(model, selection, Optim(), Load(rows=4, length=20, labels=12, passes=passes), machine=machine).seconds for passes in (1, 2)
    )
    assert once is not None
    assert twice is not None
    assert once < twice <= 2 * once


@pytest.mark.slow
def test_a_machine_is_measured_by_the_products_and_the_attention_of_a_pass() -> None:
    model = a_model("llama")
    selection = model.map.select(("attention",))
    long = passed(model, selection, Load(rows=2, length=200, labels=8))
    assert {kind[2:4] for kind in long.fused} == {(200, 8)}
    assert {kind[4] for kind in long.fused} == {True, False}
    assert not passed(model, selection, Load(rows=2, length=20, labels=8)).fused
    machine = measure(torch.float32, long)
    assert machine.rate is not None
    assert machine.fused is not None
    assert min(machine.rate, machine.fused, machine.bandwidth, machine.call, machine.streaming) > 0
    assert measure(torch.float32).fused is None
    assert matrix_rate(torch.float32, {(32, 16, 8, True, False): 2}) > 0


def test_recomputing_adds_a_forward_pass_to_the_time() -> None:
    model = a_model("llama")
    selection = model.map.select(("attention",))
    machine = Machine(rate=1e9, bandwidth=1e9, call=1e-6, streaming=1e9)
    kept, again = (forecast(model, selection, Optim(checkpointing=value), LOAD, machine=machine) for value in (False, True))
    traced = passed(model, selection)
    assert kept.seconds is not None
    assert again.seconds is not None
    products = (kept.work.forward + kept.work.attention / 3) / 1e9
    assert again.seconds - kept.seconds == pytest.approx(products + traced.forward_moved / 1e9 + traced.forward_operations * 1e-6)


RECIPE = """name: tiny
model: {model}
select: [attention]
optim: {{batch: 4, max_steps: 2}}
skills:
  - name: cats
    train: {data}
    test: {data}
leakage: report
"""


def a_recipe(folder: Path, model: str) -> Any:
    lines = [{"id": f"r{n}", "question": "What is it?", "answer": "a cat"} for n in range(8)]
    data = folder / "cats.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, data=data))
    return read_recipe(path)


def test_a_folder_without_weights_can_be_planned_as_well_as_one_with_them(tmp_path: Path) -> None:
    made = fixtures.llama()
    folder = tmp_path / "model"
    made.net.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    recipe = a_recipe(tmp_path, str(folder))
    loaded = plan(recipe, lambda name: load_any(name, "none"), timed=False)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    sketched = plan(recipe, lambda name: sketch(name, "none"), timed=False)
    assert (loaded.model_id is None, sketched.model_id) == (False, None)
    assert (sketched.memory, sketched.sample, sketched.phases) == (loaded.memory, loaded.sample, loaded.phases)
    assert sketched.fits.startswith("fits: ")


@pytest.mark.slow
def test_an_architecture_is_planned_without_a_tokenizer_and_a_quantised_base_is_smaller(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, "arch:llama")
    made = plan(recipe, lambda name: sketch(name, "none"), timed=False)
    assert made.sample is None
    assert "4 letters are counted as one token" in made.notes[-1]
    small = plan(recipe.model_copy(update={"quantise": "nf4"}), lambda name: sketch(name, "none"), timed=False)
    assert small.memory.parameters < 0.6 * made.memory.parameters
    json.dumps(made.to_json())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["embedded", "llama", "llama-bf16", "qwen2", "gpt-neox"])
def test_the_forecast_is_what_is_then_measured(case: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "forecast.py"), "--case", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["memory"]["ratio"] == pytest.approx(1.0, abs=0.15), found["memory"]
    # Rates and steps are measured at different moments; where others work on the machine they tell nothing of each other.
    if found["load_before"] < 1:
        assert 1 / 3 < found["seconds"]["ratio"] < 3, found["seconds"]
