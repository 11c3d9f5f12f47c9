"""The pattern language against docs/reference/patterns.md: as sets, over real maps, and by a matcher written a second time."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from selectune.components import PRESETS, ComponentMap, map_architecture, map_model
from selectune.components.patterns import LONGEST, Indices, list_lengths, read_pattern
from selectune.errors import InputError, NoMatch, NotYet, SelectuneError

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "patterns.md"
FAMILIES = ("llama", "phi3", "gpt2", "falcon_groups", "qwen3_moe", "gpt_oss", "dbrx", "llava", "qwen2_5_vl")


@cache
def _map(family: str) -> ComponentMap:
    return map_model(tiny_model(family), family)


def _names(family: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(component.name for component in _map(family).components))


def _chosen(family: str, *patterns: str) -> frozenset[str]:
    """What is selected; nothing where that is an error of the selection as a whole."""
    try:
        return frozenset(_map(family).select(patterns, tie="allow").names)
    except NoMatch as error:
        if "nothing is left of" not in str(error):
            raise
        return frozenset()


# --- a second matcher, from the specification alone: slow, recursive, without regular expressions


def expanded(pattern: str) -> list[str]:
    """The patterns that one with alternatives stands for."""
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    end = pattern.index("}", start)
    return [
        f"{pattern[:start]}{option.strip()}{rest}"
        for option in pattern[start + 1 : end].split(",")
        for rest in expanded(pattern[end + 1 :])
    ]


def indices(text: str, count: int) -> list[int]:
    """Which of `count` the text between brackets means."""
    if ":" not in text:
        found: list[int] = []
        for item in text.split(","):
            first, dash, last = item.strip().partition("-") if not item.strip().startswith("-") else (item.strip(), "", "")
            found += list(range(int(first), int(last) + 1)) if dash else [range(count)[int(first)]]
        return found
    bounds: list[int | None] = []
    for position, part in enumerate(text.split(":")):
        percent = part.strip().endswith("%")
        number = int(part.strip().rstrip("%")) if part.strip() else None
        bounds.append(number * count // 100 if percent and number is not None and position < 2 else number)
    return list(range(count))[slice(*bounds)]


def reference(pattern: str, name: str, lengths: dict[str, int], prefix: str = "") -> bool:
    """Whether the pattern, which has no alternatives, matches the rest of the name after `prefix`."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(reference(pattern[1:], name[cut:], lengths, prefix + name[:cut]) for cut in range(len(name) + 1))
    if pattern[0] == "[":
        inner, _, rest = pattern[1:].partition("]")
        digits = "".join(_leading_digits(name[1:]))
        after = name[1 + len(digits) :]
        if name[:1] != "." or not digits or (after and after[0] != ".") or int(digits) not in indices(inner, lengths[prefix]):
            return False
        return reference(rest, after, lengths, f"{prefix}.{digits}")
    return name[:1] == pattern[0] and reference(pattern[1:], name[1:], lengths, prefix + name[:1])


def _leading_digits(text: str) -> Iterator[str]:
    for letter in text:
        if not letter.isdigit():
            return
        yield letter


# --- patterns made from names


@st.composite
def families(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(FAMILIES))


@st.composite
def ranges(draw: st.DrawFn, count: int) -> str:
    """A range within a list of `count`: a slice with open, negative or percent ends, or single indices and spans."""
    if draw(st.booleans()):
        items = draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=3))
        spans = [f"{item}-{draw(st.integers(item, count - 1))}" if item >= 0 and draw(st.booleans()) else str(item) for item in items]
        return ",".join(spans)
    bound = st.one_of(st.just(""), st.integers(-count, count).map(str), st.integers(-100, 100).map(lambda share: f"{share}%"))
    step = draw(st.sampled_from(["", ":1", ":2", ":3"]))
    return f"{draw(bound)}:{draw(bound)}{step}"


@st.composite
def patterns(draw: st.DrawFn, family: str) -> str:
    """A pattern that looks like one of the model's names: words become stars or alternatives, indices become ranges."""
    names = _names(family)
    lengths = list_lengths(names)
    words = draw(st.sampled_from(names)).split(".")
    made = words[0]
    for at, word in enumerate(words[1:], 1):
        kind = draw(
            st.sampled_from(["range", "range", "star", "as it is"] if word.isdigit() else ["as it is", "as it is", "star", "either"])
        )
        if kind == "star":
            made += draw(st.sampled_from([".*", "*"]))
        elif kind == "range":
            made += f"[{draw(ranges(lengths['.'.join(words[:at])]))}]"
        elif kind == "either":
            others = draw(st.lists(st.sampled_from(sorted({part for name in names for part in name.split(".")})), max_size=2))
            made += f".{{{','.join([word, *others])}}}"
        else:
            made += f".{word}"
    return made


@st.composite
def family_and_patterns(draw: st.DrawFn, count: int) -> tuple[str, list[str]]:
    """Patterns of one model that match something there."""
    family = draw(families())
    made = [draw(st.one_of(patterns(family), st.sampled_from([name for name in PRESETS if _takes(family, name)]))) for _ in range(count)]
    assume(all(_takes(family, pattern) for pattern in made))
    return family, made


@cache
def _takes(family: str, pattern: str) -> bool:
    try:
        return bool(_map(family).select([pattern], tie="allow").names)
    except InputError:
        return False


# --- properties


@pytest.mark.parametrize("family", FAMILIES)
def test_every_full_name_selects_itself_and_nothing_else(family: str) -> None:
    for name in _names(family):
        assert set(_map(family).select([name], tie="allow").names) == {name}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_a_map_written_out_are_the_whole_map(family: str) -> None:
    assert _map(family).select(_names(family), tie="allow").elements == _map(family).elements


@given(family_and_patterns(2))
def test_patterns_add_up_and_subtract_as_sets(made: tuple[str, list[str]]) -> None:
    family, (one, two) = made
    left, right = _chosen(family, one), _chosen(family, two)
    assert _chosen(family, one, two) == left | right == _chosen(family, two, one)
    assert _chosen(family, one, f"!{two}") == left - right
    assert _chosen(family, one, one) == left


@given(family_and_patterns(4), st.lists(st.booleans(), min_size=3, max_size=3))
def test_entries_count_in_their_order(made: tuple[str, list[str]], removes: list[bool]) -> None:
    family, (first, *rest) = made
    wanted = set(_chosen(family, first))
    for pattern, remove in zip(rest, removes, strict=True):
        part = _chosen(family, pattern)
        wanted = wanted - part if remove else wanted | part
    entries = [first, *(f"!{pattern}" if remove else pattern for pattern, remove in zip(rest, removes, strict=True))]
    assert _chosen(family, *entries) == wanted


@given(family_and_patterns(2))
def test_what_was_removed_may_be_added_again(made: tuple[str, list[str]]) -> None:
    family, (one, two) = made
    assert _chosen(family, one, f"!{two}", two) == _chosen(family, one) | _chosen(family, two)


@settings(max_examples=300)
@given(st.data(), families())
def test_matching_agrees_with_a_matcher_written_a_second_time(data: st.DataObject, family: str) -> None:
    pattern = data.draw(patterns(family))
    names = _names(family)
    lengths = list_lengths(names)
    try:
        found = [{name for name in names if plain.matches(name, lengths)} for plain in read_pattern(pattern).alternatives]
    except NoMatch:
        assume(False)  # a range that fits one list and not another that the pattern reaches too
    slow = [{name for name in names if reference(plain, name, lengths)} for plain in dict.fromkeys(expanded(pattern))]
    assert found == slow


@given(st.data(), families())
def test_alternatives_are_the_union_of_the_patterns_that_they_stand_for(data: st.DataObject, family: str) -> None:
    pattern = data.draw(patterns(family))
    each = expanded(pattern)
    assume(all(_takes(family, plain) for plain in each))
    assert _chosen(family, pattern) == frozenset().union(*(_chosen(family, plain) for plain in each))


@given(
    st.integers(1, 40).flatmap(
        lambda count: st.tuples(
            st.just(count), st.none() | st.integers(-count, count), st.none() | st.integers(-count, count), st.none() | st.integers(1, 5)
        )
    )
)
def test_a_range_is_pythons_slice(case: tuple[int, int | None, int | None, int | None]) -> None:
    count, start, stop, step = case
    text = f"{'' if start is None else start}:{'' if stop is None else stop}{'' if step is None else f':{step}'}"
    wanted = set(list(range(count))[start:stop:step])
    if wanted:
        assert Indices(text=text).within(count, "language.layers") == wanted
    else:
        with pytest.raises(NoMatch, match=re.escape(f'"[{text}]" is no index of language.layers, which has {count} (0 to {count - 1})')):
            Indices(text=text).within(count, "language.layers")


@given(st.integers(1, 200), st.integers(0, 100))
def test_the_two_sides_of_a_percentage_are_the_whole_list(count: int, share: int) -> None:
    sides = []
    for text in (f":{share}%", f"{share}%:"):
        try:
            sides.append(Indices(text=text).within(count, "x"))
        except NoMatch:
            sides.append(frozenset())
    assert sides[0] | sides[1] == set(range(count))
    assert not sides[0] & sides[1]
    assert len(sides[0]) == count * share // 100


@given(st.integers(1, 40), st.integers(-100, 100))
def test_a_bound_that_a_list_does_not_have_is_told_with_its_length(count: int, beyond: int) -> None:
    assume(abs(beyond) > count)
    with pytest.raises(NoMatch, match=rf"goes beyond x, which has {count} \(0 to {count - 1}\)\. Bounds go from -{count} to {count}"):
        Indices(text=f"{beyond}:").within(count, "x")


@given(st.text(max_size=60))
def test_any_text_is_a_pattern_or_one_clear_error(text: str) -> None:
    told: InputError | None = None
    try:
        _map("llama").select([text], tie="allow", where="map")
    except InputError as error:
        told = error
    assert told is None or (str(told).startswith(("map: ", "map[0]: ")) and told.then)


def test_a_range_speaks_of_the_lists_that_the_whole_pattern_reaches() -> None:
    """A star may reach the layers on its way to the experts; only the experts have to have index 3."""
    assert _chosen("qwen3_moe", "*[3].gate") == {f"language.layers.{layer}.moe.experts.3.gate" for layer in range(2)}
    with pytest.raises(NoMatch, match=r"layers\.0\.moe\.experts, which has 4 \(0 to 3\)"):
        _map("qwen3_moe").select(["*[4].gate"])


def _unknown_layout() -> ComponentMap:
    net = tiny_model("phi3")
    for layer in net.model.layers:
        layer.self_attn.__class__ = type("SomebodysAttention", (type(layer.self_attn),), {})
    return map_model(net, "odd")


@pytest.mark.parametrize(
    "patterns",
    [
        ("attention", "!language.layers.*.attn.q"),
        ("language.layers.*.attn.qkv", "!language.layers.*.attn.q"),
        ("full", "!*.attn.q"),
        ("full", "!*.attn.qkv", "*.attn.q"),
    ],
)
def test_a_part_taken_from_a_fused_tensor_of_unknown_layout_is_refused_too(patterns: tuple[str, ...]) -> None:
    with pytest.raises(NotYet, match=r"qkv_proj\.weight holds .*attn\.q, .*only language\.layers\.0\.attn\.[qk].* is asked for"):
        _unknown_layout().select(patterns)


@pytest.mark.parametrize(
    ("patterns", "takes"),
    [
        (("language.layers.*.attn.qkv",), True),
        (("*.attn.{q,k,v}",), True),
        (("full", "!*.attn.q", "*.attn.q"), True),
        (("full", "!*.attn.qkv", "*.attn.{q,k,v}"), True),
        (("full", "!*.attn.qkv"), False),
        (("full", "!*.attn.{q,k,v}"), False),
    ],
)
def test_a_fused_tensor_of_unknown_layout_goes_by_the_names_of_its_parts(patterns: tuple[str, ...], takes: bool) -> None:
    names = _unknown_layout().select(patterns).names
    assert ("language.layers.1.attn.qkv" in names) is takes


def test_parts_of_packed_and_fused_tensors_select_their_own_elements() -> None:
    for family, pattern in (("qwen3_moe", "language.*.moe.experts[1:3].{gate,up}"), ("phi3", "language.layers.*.attn.{q,v}")):
        selection = _map(family).select([pattern])
        assert selection.elements == sum(component.elements for component in selection.components)
        assert all(component.slice is not None for component in selection.components)


# --- time


def _seconds(pattern: str, names: list[str]) -> float:
    """Of reading and matching, on the processor."""
    began = time.process_time()
    lengths = list_lengths(names)
    for plain in read_pattern(pattern).alternatives:
        for name in names:
            plain.matches(name, lengths)
    return time.process_time() - began


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 499 + "b",
        "*" * LONGEST,
        "*a*" * 333,
        "a*" * 400 + "*b",
        "*[0:1]" * 160,
        "*.layers[:]*a" * 75,
        "*{a,b}" * 8,
        "x" * LONGEST,
    ],
)
def test_hostile_patterns_take_no_more_than_a_moment(pattern: str) -> None:
    """A matcher that tries places again would need longer than the universe is old for some of these."""
    hostile = ["a" * 2000, "a." * 1000, ".".join(f"layers.{n}.a" for n in range(150)), "x" * 999]
    assert _seconds(pattern, hostile) < 5


def test_a_pattern_of_ten_thousand_characters_is_refused_before_it_is_read() -> None:
    began = time.process_time()
    for text in ("*a" * 5000, "{a,b}" * 2000, "[0:1]" * 2000, "(" * 10_000):
        with pytest.raises(InputError, match=r"a pattern has 10000 characters, over the limit of 1000\. Write several patterns\."):
            _map("llama").select([text])
    assert time.process_time() - began < 1


def test_looking_for_near_matches_of_a_long_pattern_takes_a_moment() -> None:
    began = time.process_time()
    with pytest.raises(NoMatch) as caught:
        _map("llama").select(["language.layers.x" * 58])
    assert time.process_time() - began < 5
    assert len(str(caught.value)) < 400


# --- near matches


@pytest.mark.parametrize(
    ("family", "pattern", "suggested"),
    [
        ("llama", "language.layers.*.mlp.gat", "language.layers.*.mlp.gate (2 components)"),
        ("llama", "languag.layers.*.attn.q", "language.layers.*.attn.q (2 components)"),
        ("llama", "Attention", "attention"),
        ("llama", "attn.q", "language.layers.*.attn.q (2 components)"),
        ("llama", "layers.0.attn.q", "language.layers.*.attn.q (2 components)"),
        ("llama", "attn", "language.layers.*.attn.* (8 components)"),
        ("llama", "language.layers.1.mlp", "language.layers.*.mlp.* (6 components)"),
        ("llama", "language.layers[0:1].attn.q_proj", "language.layers.*.attn.q (2 components)"),
        ("llama", "q_proj", "language.layers.*.attn.q (2 components)"),
        ("llama", "self_attn", "language.layers.*.attn.* (8 components)"),
        ("llama", "embed_tokens", "language.embed (1 component)"),
        ("llama", "lm_head", "head (1 component)"),
        ("llama", "model.layers.0.self_attn.q_proj", "language.layers.*.attn.q (2 components)"),
        ("llama", "model.layers.0.self_attn.q_proj.weight", "language.layers.*.attn.q (2 components)"),
        ("llama", "model.layers.*.self_attn.*_proj", "language.layers.*.attn.* (8 components)"),
        ("llama", "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight", "language.layers.*.mlp.up (2 components)"),
        ("llama", ".*q_proj$", "language.layers.*.attn.q (2 components)"),
        ("llama", r"model\.layers\.\d+\.self_attn\.(q|k)_proj", "language.layers.*.attn.q (2 components)"),
        ("llama", "q_proj|v_proj", "language.layers.*.attn.q (2 components) or language.layers.*.attn.v (2 components)"),
        ("llama", "q_proj, v_proj", "language.layers.*.attn.q (2 components) or language.layers.*.attn.v (2 components)"),
        ("llama", "^language", "language"),
        ("gpt2", "model.layers.0.self_attn.q_proj", "language.layers.*.attn.q (2 components)"),
        ("gpt2", "gate_proj|up_proj", "language.layers.*.mlp.up (2 components)"),
        ("gpt2", "transformer.h.0.attn.c_attn", "language.layers.*.attn.q (2 components) or language.layers.*.attn.k (2 components)"),
        ("llava", "language_model.model.layers.0.self_attn.q_proj", "language.layers.*.attn.q (2 components)"),
        ("llava", "q_proj", "language.layers.*.attn.q (2 components) or vision.layers.*.attn.q (2 components)"),
        ("llava", "vision_tower", "vision.* ("),
        ("llava", "model.language_model", "language.* ("),
        ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj", "language.layers.*.moe.experts.*.gate (8 components)"),
        ("qwen3_moe", r"model\.layers\.\d+\.mlp\.experts\.\d+\.up_proj", "language.layers.*.moe.experts.*.up (8 components)"),
        ("qwen3_moe", "experts", "language.layers.*.moe.experts.* (24 components)"),
        ("llama", "vision.layers.*.attn.q", "language.layers.*.attn.q (2 components)"),
    ],
)
def test_what_matches_nothing_suggests_what_was_meant(family: str, pattern: str, suggested: str) -> None:
    with pytest.raises(InputError) as caught:
        _map(family).select([pattern], where="map")
    assert f"Did you mean {suggested}" in str(caught.value)


def test_what_is_like_nothing_suggests_nothing() -> None:
    with pytest.raises(NoMatch) as caught:
        _map("llama").select(["zzz"])
    assert str(caught.value) == 'select[0]: "zzz" matches no component. See them all: selectune map llama'


# --- the page


def test_the_page_has_every_preset_with_its_patterns() -> None:
    rows = re.findall(r"^\| `([a-z+-]+)` \| (`.+`) \|$", PAGE.read_text(), re.MULTILINE)
    assert {name: tuple(re.findall(r"`([^`]+)`", patterns)) for name, patterns in rows} == dict(PRESETS)


@cache
def _architecture(name: str) -> ComponentMap:
    return map_architecture(name)


def _examples() -> list[tuple[str, str]]:
    """Commands of the page with the errors that they print."""
    section = PAGE.read_text().split("\n## Errors\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```text\n(\$ selectune map .*?)\n```", section, re.MULTILINE | re.DOTALL)
    parts = [part.partition("\n") for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    return [(command, printed.strip()) for command, _, printed in parts]


@pytest.mark.parametrize(("command", "printed"), _examples(), ids=lambda text: str(text)[:60])
def test_every_error_of_the_page_is_what_is_said(command: str, printed: str) -> None:
    words = shlex.split(command)[2:]
    tie = "forbid" if "--tie" in words else "allow"
    name, *entries = [word for word in words if word not in {"--tie", "forbid"}]
    with pytest.raises(SelectuneError) as caught:
        _architecture(name.removeprefix("arch:")).select(entries, tie=tie, where="map")
    assert f"{type(caught.value).__name__}: {caught.value}" == printed


def test_the_page_shows_an_error_of_each_kind() -> None:
    assert len(_examples()) >= 12
