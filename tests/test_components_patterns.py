"""The pattern language, as properties over invented names and as messages."""

from __future__ import annotations

import re
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectune.components import Component, ComponentMap
from selectune.components.patterns import Indices, family, list_lengths, read_pattern
from selectune.errors import InputError, NoMatch

LAYERS = 12
ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down", "norm.input")
NAMES = (
    "language.embed",
    *(f"language.layers.{layer}.{role}" for layer, role in product(range(LAYERS), ROLES)),
    "language.norm",
    *(f"vision.layers.{layer}.{role}" for layer, role in product(range(4), ROLES[:4])),
    "projector.linear_1",
    "head",
)


def _map(names: tuple[str, ...] = NAMES) -> ComponentMap:
    components = tuple(
        Component(name=name, parameter=f"model.{name}.weight", slice=None, shape=(2, 2), elements=4, tied=(), dtype="F32") for name in names
    )
    return ComponentMap(model="invented", components=components, shapes={component.parameter: (2, 2) for component in components})


MAP = _map()
NAMED = st.sampled_from(NAMES)
PATTERN = st.one_of(
    NAMED,
    st.sampled_from(
        [
            "language.*",
            "vision.*",
            "*.attn.q",
            "language.layers[2:5].*",
            "language.layers[-3:].mlp.{gate,up}",
            "attention",
            "full",
            "*.norm*",
        ]
    ),
)


def _chosen(*patterns: str) -> set[str]:
    return set(MAP.select(patterns).names)


@given(NAMED)
def test_every_full_name_selects_itself_and_nothing_else(name: str) -> None:
    assert _chosen(name) == {name}


@given(PATTERN, PATTERN)
def test_patterns_add_up_as_sets(one: str, two: str) -> None:
    assert _chosen(one, two) == _chosen(one) | _chosen(two) == _chosen(two, one)


@given(PATTERN)
def test_union_is_idempotent(pattern: str) -> None:
    assert _chosen(pattern, pattern) == _chosen(pattern)


@given(PATTERN, PATTERN)
def test_an_exclamation_mark_removes(one: str, two: str) -> None:
    left = _chosen(one) - _chosen(two)
    if left:
        assert _chosen(one, f"!{two}") == left
    else:
        with pytest.raises(NoMatch, match="nothing is left"):
            _chosen(one, f"!{two}")


@given(PATTERN, PATTERN)
def test_exclusions_work_by_order(one: str, two: str) -> None:
    assert _chosen("full", f"!{two}", two, one) == _chosen("full")


@given(st.integers(-LAYERS, LAYERS) | st.none(), st.integers(-LAYERS, LAYERS) | st.none(), st.integers(1, 3))
def test_ranges_equal_explicit_lists(start: int | None, stop: int | None, step: int) -> None:
    wanted = list(range(LAYERS))[start:stop:step]
    text = f"{'' if start is None else start}:{'' if stop is None else stop}:{step}"
    if not wanted:
        with pytest.raises(NoMatch, match=r"is no index of language\.layers"):
            _chosen(f"language.layers[{text}].mlp.up")
        return
    listed = ",".join(map(str, wanted))
    assert _chosen(f"language.layers[{text}].mlp.up") == _chosen(f"language.layers[{listed}].mlp.up")
    assert _chosen(f"language.layers[{text}].mlp.up") == {f"language.layers.{layer}.mlp.up" for layer in wanted}


@given(st.lists(st.sampled_from(["q", "k", "v", "o"]), min_size=1, unique=True))
def test_alternatives_equal_the_union_of_each(roles: list[str]) -> None:
    each = set().union(*(_chosen(f"language.*.attn.{role}") for role in roles))
    assert _chosen(f"language.*.attn.{{{','.join(roles)}}}") == each


@given(st.text(alphabet="ab.*", min_size=1, max_size=8), st.text(alphabet="ab.", max_size=10))
def test_a_glob_matches_what_a_regular_expression_with_dot_star_matches(glob: str, name: str) -> None:
    expression = ".*".join(re.escape(piece) for piece in glob.split("*"))
    (plain,) = read_pattern(glob).alternatives
    assert plain.matches(name, {}) == bool(re.fullmatch(expression, name))


def test_lists_count_from_the_end_and_hold_spans() -> None:
    assert Indices(text="10,16-17,-1").within(24, "language.layers") == {10, 16, 17, 23}
    assert Indices(text="-4:").within(24, "language.layers") == {20, 21, 22, 23}
    assert Indices(text="50%:").within(5, "language.layers") == {2, 3, 4}


def test_a_range_after_a_star_is_counted_within_each_list() -> None:
    assert _chosen("*.layers[-1].attn.q") == {f"language.layers.{LAYERS - 1}.attn.q", "vision.layers.3.attn.q"}


@pytest.mark.parametrize(
    "text", ["language.layers[8:24].mlp.up", "language.layers[12].mlp.up", "language.layers[-13:].mlp.up", "*.layers[3:5].attn.q"]
)
def test_a_range_out_of_bounds_stops_with_the_length(text: str) -> None:
    with pytest.raises(NoMatch, match=r"layers, which has (12|4) \(0 to (11|3)\)"):
        _chosen(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a pattern is empty"),
        ("!", "a pattern is empty"),
        ("language.layers.(1|2).mlp", "which patterns do not use"),
        (r"^language\.", "which patterns do not use"),
        ("language.layers[a:b].mlp.up", "is no range"),
        ("language.layers[].mlp.up", "is no range"),
        ("language.layers[::0].mlp.up", "has a step of 0"),
        ("language.*.attn.{q,}", "must hold names between commas"),
        ("x" * 10_000, "10000 characters, over the limit of 1000"),
        ("{a,b,c,d}" * 9, "stands for more than 256 patterns"),
    ],
)
def test_what_is_no_pattern_gets_one_clear_message(text: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        MAP.select([text])


def test_no_pattern_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no pattern is given"):
        MAP.select([])


def test_a_pattern_that_matches_nothing_stops_and_lists_near_matches() -> None:
    with pytest.raises(NoMatch) as caught:
        MAP.select(["language.*", "language.layers.*.mlp.gat"], where="recipe.yaml: select")
    assert str(caught.value) == (
        'recipe.yaml: select[1]: "language.layers.*.mlp.gat" matches no component. Did you mean language.layers.*.mlp.gate (12 components)'
        + str(caught.value).split("(12 components)", 1)[1]
    )
    assert str(caught.value).endswith("See them all: selectune map invented")


def test_one_dead_alternative_stops_too() -> None:
    with pytest.raises(
        NoMatch, match=r'"language\.layers\.\*\.mlp\.upp", a part of .* matches no component\. Did you mean language\.layers\.\*\.mlp\.up'
    ):
        MAP.select(["language.layers.*.mlp.{gate,upp}"])


def test_a_misspelt_preset_is_recognised() -> None:
    with pytest.raises(NoMatch, match="Did you mean attention"):
        MAP.select(["atention"])


def test_a_name_without_its_last_word_points_below_it() -> None:
    with pytest.raises(NoMatch, match=r"Did you mean language\.layers\.\*\.mlp\.\*"):
        MAP.select(["language.layers.3.mlp"])


def test_a_name_in_memory_points_to_its_component() -> None:
    with pytest.raises(NoMatch, match=r"Did you mean projector\.linear_1"):
        MAP.select(["model.projector.linear_1.weight"])


def test_matching_takes_no_more_than_linear_time_on_hostile_globs() -> None:
    hostile = "*a" * 400 + "b"
    began = time.process_time()
    (plain,) = read_pattern(hostile).alternatives
    assert not plain.matches("a" * 2000, {})
    assert time.process_time() - began < 1.0


def test_families_replace_every_index() -> None:
    assert family("language.layers.3.moe.experts.17.gate") == "language.layers.*.moe.experts.*.gate"
    assert list_lengths(["a.0.b.4", "a.2.b.1"]) == {"a": 3, "a.0.b": 5, "a.2.b": 2}
