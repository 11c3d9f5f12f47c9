"""Tables of third parties: by file, by an installed package, on the command line; their order, and every fault's words."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner, Result

from selectune.cli import app
from selectune.components import ComponentMap, add_families, map_model, views
from selectune.components.families import families
from selectune.components.tables import LARGEST, Table, Towers
from selectune.errors import InputError, NotYet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tiny = Callable[[str], "PreTrainedModel"]
SHIPPED = "in selectune's families.yaml"
PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "add-a-family.md"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def _of_the_page(name: str) -> str:
    """A file that the how-to page shows."""
    found = re.search(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?\n)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(autouse=True)
def _as_installed() -> Iterator[None]:
    """No test leaves a table, or the memory of one, behind."""
    families.cache_clear()
    before = families()
    yield
    families.cache_clear()
    assert families() == before


@pytest.fixture(scope="module")
def snail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The how-to's invented model."""
    folder = tmp_path_factory.mktemp("snail")
    (folder / "snail.py").write_text(_of_the_page("snail.py"))
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("snail")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["snail"]


def _snail(snail: ModuleType) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return snail.SnailForCausalLM(snail.SnailConfig())


def _write(folder: Path, content: object, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def _roles(found: ComponentMap) -> set[str]:
    return {name.removeprefix("language.layers.*.") for name in found.families if name.startswith("language.layers.")}


def test_an_invented_model_has_no_names_until_a_file_gives_them(snail: ModuleType, tmp_path: Path) -> None:
    net = _snail(snail)
    assert sum(name.startswith("other.shell.") for name in map_model(net, "snail").families) == 5
    with add_families(_write(tmp_path, _of_the_page("snail.yaml"))):
        found = map_model(net, "snail")
    roles = {*(f"attn.{role}" for role in "qkvo"), *(f"mlp.{role}" for role in ("gate", "up", "down")), "norm.calm", "norm.still"}
    assert _roles(found) == roles
    assert found.select(["language"]).elements == found.elements
    assert any(name.startswith("other.") for name in map_model(net, "snail").families), "the file holds for the block alone"


def test_without_a_layout_a_fused_tensor_stays_whole_and_a_part_of_it_is_refused(snail: ModuleType, tmp_path: Path) -> None:
    table = yaml.safe_load(_of_the_page("snail.yaml"))
    del table["fused"]
    with add_families(_write(tmp_path, table)):
        found = map_model(_snail(snail), "snail")
    assert "attn.qkv" in _roles(found)
    with pytest.raises(NotYet, match=r"shell\.0\.foot\.triple\.weight holds .* only language\.layers\.0\.attn\.v is asked for"):
        found.select(["language.layers.*.attn.v"])


@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_the_layout_of_the_invented_model_is_what_its_forward_does(role: str, snail: ModuleType, tmp_path: Path) -> None:
    net = _snail(snail)
    with add_families(_write(tmp_path, _of_the_page("snail.yaml"))):
        parts = map_model(net, "snail").select([f"language.layers.0.attn.{role}"]).components
    foot = net.shell[0].foot
    with torch.no_grad():
        nn.init.normal_(foot.triple.bias)
        nn.init.normal_(foot.back.bias)
        for part in parts:
            for view in views(net.get_parameter(part.parameter), part.slice):
                view.zero_()
        said = foot(torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(said, foot.back.bias.expand_as(said), atol=1e-6) is (role == "v")


def test_without_a_block_a_file_holds_until_it_is_closed(tmp_path: Path) -> None:
    path = _write(tmp_path, {"wrappers": ["husk"]})
    undo = add_families(path)
    assert "husk" in families().wrappers
    undo.close()
    assert "husk" not in families().wrappers


def test_lists_and_entries_are_added_to_the_shipped_ones(tmp_path: Path) -> None:
    table = {
        "towers": {
            "keys": {"lens_config": "vision"},
            "inputs": {"lens_values": "vision"},
            "second": {"fisheye": "vision_wide"},
            "spelling": {"far": "distant"},
        },
        "outside": {"projector": ["bridge"]},
        "plain": ["bridge"],
        "inside": ["iris"],
        "parallel": ["cells"],
        "fused": {"gate_up": {"up_first": ["SnailMLP"]}, "experts": {"rows": ["SnailExperts"]}},
    }
    before = families()
    with add_families(_write(tmp_path, table)):
        after = families()
    assert after.keys == {**before.keys, "lens_config": "vision"}
    assert after.inputs["lens_values"] == "vision"
    assert after.second["fisheye"] == "vision_wide"
    assert after.spelling["far"] == "distant"
    assert after.outside == {**before.outside, "bridge": "projector"}
    assert (after.plain - before.plain, after.inside - before.inside, after.parallel - before.parallel) == ({"bridge"}, {"iris"}, {"cells"})
    assert after.fused["gate_up"] == {**before.fused["gate_up"], "SnailMLP": "up_first"}
    assert after.fused["experts"]["SnailExperts"] == "rows"
    assert (after.layer, after.norms) == (before.layer, before.norms)


def test_a_module_beside_the_towers_gets_the_word_of_its_table(tiny: Tiny, tmp_path: Path) -> None:
    net = tiny("llava")
    net.model.bridge = nn.Linear(4, 4)
    assert "other.model.bridge" in map_model(net, "odd").families
    with add_families(_write(tmp_path, {"outside": {"projector": ["bridge"]}})):
        assert "projector.bridge" in map_model(net, "odd").families


def test_added_rules_come_before_the_shipped_ones_and_earlier_files_before_later_ones(tiny: Tiny, tmp_path: Path) -> None:
    net = tiny("llama")
    one = _write(tmp_path, {"layer": [[r"<mlp>\.gate_proj", "mlp.first"]]}, "one.yaml")
    two = _write(tmp_path, {"layer": [[r"<mlp>\.gate_proj", "mlp.second"], [r"<mlp>\.up_proj", "mlp.second"]]}, "two.yaml")
    with add_families(one), add_families(two):
        assert {"mlp.first", "mlp.second", "mlp.down"} <= _roles(map_model(net, "llama"))
    with add_families(two), add_families(one):
        assert _roles(map_model(net, "llama")).isdisjoint({"mlp.first", "mlp.gate", "mlp.up"})
    assert "mlp.gate" in _roles(map_model(net, "llama"))


def test_a_word_of_a_file_and_a_shipped_one_serve_in_one_rule_and_keep_to_their_alternatives(tiny: Tiny, tmp_path: Path) -> None:
    table = {"words": {"mine": "up_proj|gate_proj"}, "layer": [[r"<mlp>\.<mine>", "mlp.mine"]]}
    with add_families(_write(tmp_path, table)):
        roles = _roles(map_model(tiny("llama"), "llama"))
    assert {role for role in roles if role.startswith("mlp.")} == {"mlp.mine", "mlp.down"}


def test_a_rule_may_need_what_stands_beside_and_take_over_what_it_caught(tiny: Tiny, tmp_path: Path) -> None:
    table = {"layer": [[r"mlp\.(\w+)_proj", r"mlp.odd_\1", "gate_proj"], [r"self_attn\.(\w+)_proj", r"attn.odd_\1", "nothing"]]}
    with add_families(_write(tmp_path, table)):
        roles = _roles(map_model(tiny("llama"), "llama"))
    assert {"mlp.odd_gate", "mlp.odd_up", "mlp.odd_down", "attn.q"} <= roles


# --- packages


def _install(folder: Path, name: str, entry: str, files: dict[str, str], *, group: str = "selectune.families") -> None:
    """A package as an installer leaves it: its files and a dist-info folder."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be put into; what was imported from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("tower_of"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "code",
    [
        'from importlib import resources\nfamilies = resources.files(__name__) / "families.yaml"\n',
        'from importlib import resources\n\n\ndef families():\n    return resources.files(__name__) / "families.yaml"\n',
        'from pathlib import Path\nfamilies = Path(__file__).parent / "families.yaml"\n',
        'import os\nfamilies = os.path.join(os.path.dirname(__file__), "families.yaml")\n',
    ],
    ids=["traversable", "function", "path", "text"],
)
def test_an_installed_package_adds_its_table(code: str, site: Path, tiny: Tiny) -> None:
    files = {"tower_of_snails/__init__.py": code, "tower_of_snails/families.yaml": "layer:\n  - ['mlp\\.gate_proj', mlp.of_a_package]\n"}
    _install(site, "tower_of_snails", "snail = tower_of_snails:families", files)
    families.cache_clear()
    assert "mlp.of_a_package" in _roles(map_model(tiny("llama"), "llama"))


def test_a_file_comes_before_packages_and_these_go_by_name(site: Path, tiny: Tiny, tmp_path: Path) -> None:
    for name in ("b", "a"):
        code = 'from importlib import resources\nfamilies = resources.files(__name__) / "families.yaml"\n'
        rules = {"layer": [[r"mlp\.gate_proj", f"mlp.gate_{name}"], [r"mlp\.up_proj", f"mlp.up_{name}"]]}
        files = {f"tower_of_{name}/__init__.py": code, f"tower_of_{name}/families.yaml": yaml.safe_dump(rules)}
        _install(site, f"tower_of_{name}", f"{name} = tower_of_{name}:families", files)
    families.cache_clear()
    with add_families(_write(tmp_path, {"layer": [[r"mlp\.gate_proj", "mlp.gate_file"]]})):
        roles = _roles(map_model(tiny("llama"), "llama"))
    assert {role for role in roles if role.startswith("mlp.")} == {"mlp.gate_file", "mlp.up_a", "mlp.down"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_that_name\n", r'"tower_of_faults:families" cannot be loaded \(No module named .nothing_of_that_name.\)'),
        ("other = 1\n", r"cannot be loaded \(module 'tower_of_faults' has no attribute 'families'\)"),
        ("families = 7\n", r"gives '7', which is no absolute path\. Let it give importlib\.resources"),
        ("families = 'families.yaml'\n", r"gives 'families.yaml', which is no absolute path"),
        ("families = '/nowhere/families.yaml'\n", r"families\.yaml: cannot be read \(No such file or directory\)"),
    ],
)
def test_a_package_that_cannot_be_used_is_named_with_what_to_do(code: str, words: str, site: Path) -> None:
    _install(site, "tower_of_faults", "snail = tower_of_faults:families", {"tower_of_faults.py": code})
    families.cache_clear()
    with pytest.raises(InputError, match=rf"^tower_of_faults \(entry point snail of selectune\.families\): .*{words}"):
        families()


# --- faults


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers": []}, "mine.yaml: layers: unknown table. Did you mean layer?"),
        ({"zzz": []}, "mine.yaml: zzz: unknown table. Tables here: towers, wrappers, outside,"),
        ({"towers": {"key": {}}}, "mine.yaml: towers.key: unknown table. Did you mean keys?"),
        ({"fused": {"qvk": {}}}, "mine.yaml: fused.qvk: unknown table. Did you mean qkv?"),
        ({"wrappers": "husk"}, "mine.yaml: wrappers: is 'husk', not a list. Write [one, two]."),
        ({"plain": [True]}, "mine.yaml: plain[0]: is True, not text. Put it in quotes."),
        ({"words": ["a"]}, "mine.yaml: words: is ['a'], not a mapping. Write {key: value}."),
        ({"towers": []}, "mine.yaml: towers: is [], not a mapping. Write {key: value}."),
        ("layer:\n", "mine.yaml: layer: is None, not a list. Write [one, two]."),
        ({"layer": [["one"]]}, "mine.yaml: layer[0]: is ['one']. A rule is [path, name] or [path, name, beside]."),
        ({"norms": [["a", "b", "c", "d"]]}, "mine.yaml: norms[0]: is ['a', 'b', 'c', 'd']. A rule is [path, name] or"),
        (
            {"layer": [["(foot", "attn.q"]]},
            'mine.yaml: layer[0][0]: "(foot" is no regular expression (missing ), unterminated subpattern at position 0). Correct',
        ),
        ({"stem": [["a", "b", "*"]]}, 'mine.yaml: stem[0][2]: "*" is no regular expression (nothing to repeat at position 0).'),
        ({"layer": [[r"<atn>\.x", "attn.q"]]}, 'mine.yaml: layer[0][0]: "<atn>\\.x" has the unknown word <atn>. Did you mean <attn>?'),
        ({"layer": [["<zzzz>", "attn.q"]]}, "has the unknown word <zzzz>. Define it under words, or take one of: pre, attn,"),
        ({"words": {"q": "ask"}}, "mine.yaml: words.q: <q> is a word of selectune's own, which stays as it is. Give yours another name."),
        (
            {"words": {"ask": "(a|b)"}},
            'mine.yaml: words.ask: "(a|b)" has a group that catches, which would shift \\1 in the rules. Write (?:…).',
        ),
        ({"words": {"ask": "["}}, 'mine.yaml: words.ask: "[" is no regular expression (unterminated character set at position 0)'),
        ({"words": {"a b": "c"}}, 'mine.yaml: words.a b: "a b" is no word. Use letters, digits and underscores.'),
        ({"layer": [["foot", "attn q"]]}, 'mine.yaml: layer[0][1]: "attn q" is no name for a component. Write words between dots,'),
        ({"layer": [["foot", "other.q"]]}, 'mine.yaml: layer[0][1]: "other.q" is no name for a component.'),
        ({"layer": [["foot", ""]]}, 'mine.yaml: layer[0][1]: "" is no name for a component.'),
        ({"layer": [["foot", r"attn.\1"]]}, 'mine.yaml: layer[0][1]: "attn.\\1" uses \\1, and "foot" has 0 groups.'),
        ({"outside": {"Projector": ["x"]}}, 'mine.yaml: outside.Projector: "Projector" is no name for a tower. Write one word in small'),
        ({"towers": {"keys": {"x": "other"}}}, 'mine.yaml: towers.keys.x: "other" is no name for a tower.'),
        (
            {"fused": {"qkv": {"foo": ["Snail"]}}},
            'mine.yaml: fused.qkv.foo: "foo" is no layout. Layouts of qkv: thirds, grouped, per_head, ',
        ),
        ({"fused": {"qkv": {"by_head": ["S"]}}}, 'mine.yaml: fused.qkv.by_head: "by_head" is no layout. Did you mean per_head? Layouts'),
        (
            {"fused": {"qkv": {"thirds": ["FalconAttention"]}}},
            f'mine.yaml: fused.qkv.thirds[0]: FalconAttention is "falcon" already, {SHIPPED}, and not "thirds". Give your class a name of',
        ),
        (
            {"fused": {"qkv": {"thirds": ["Snail"], "grouped": ["Snail"]}}},
            'mine.yaml: fused.qkv.grouped[0]: Snail is "thirds" already, in mine.yaml, and not "grouped".',
        ),
        (
            {"towers": {"keys": {"text_config": "vision"}}},
            f'mine.yaml: towers.keys.text_config: text_config is "language" already, {SHIPPED}, and not "vision". Take it out: a',
        ),
        ({"outside": {"vision": ["merger"]}}, 'mine.yaml: outside.vision[0]: merger is "projector" already,'),
        ("- a\n", "mine.yaml: holds ['a'], not tables. Begin with one of: towers, wrappers,"),
        ("", "mine.yaml: holds None, not tables."),
        ("layer: [", "mine.yaml: line 1: "),
        ("layer:\n  - [a\\.b: c\n", "Correct the YAML there; expressions stand in single quotes."),
        ("plain: [a]\nplain: [b]\n", 'mine.yaml: line 2: the key "plain" is given twice. Put what is under it together.'),
        ("plain: &a [x]\ninside: *a\n", "mine.yaml: line 2: *a is an alias, which is not read. Write the value again."),
        ("plain: [!!python/object/apply:os.getcwd []]\n", "could not determine a constructor for the tag"),
        ("plain: [2020-99-99]\n", "mine.yaml: is no table (month must be in 1..12). Keep to texts, lists and mappings."),
        ("[" * 1_000_000, "mine.yaml: line 1: more than 8 lists or mappings lie in each other. No table is as deep."),
    ],
)
def test_a_fault_is_told_with_file_place_value_and_what_to_do(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, content)
    before = families()
    with pytest.raises(InputError) as caught:
        add_families("mine.yaml")
    assert message in str(caught.value)
    assert families() == before


def test_the_page_names_every_table_and_layout() -> None:
    text = PAGE.read_text()
    names = {*Table.model_fields, *Towers.model_fields, *(layout for kind in families().fused.values() for layout in kind.values())}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    path = _write(tmp_path, {"layer": [["(", "attn.q"], ["<nope>", "a b"]], "fused": {"experts": {"piles": ["X"]}}})
    with pytest.raises(InputError) as caught:
        add_families(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in lines[:4]] == [
        "layer[0][0]",
        "layer[1][0]",
        "layer[1][1]",
        "fused.experts.piles",
    ]
    assert lines[-1] == "4 faults; docs/how-to/add-a-family.md describes the tables."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read (No such file or directory). Give a YAML file of spellings."),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        (lambda path: path.write_bytes(b"plain: [\xff]"), "is not UTF-8 (invalid start byte at byte 8). Save it as UTF-8."),
        (lambda path: path.write_bytes(b"#" * (LARGEST + 1)), "has more than 1,048,576 bytes. Keep to the spellings of your own family."),
    ],
)
def test_a_file_that_cannot_be_read_says_why(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "mine.yaml")
    with pytest.raises(InputError) as caught:
        add_families(tmp_path / "mine.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")


# --- the command line


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def test_the_program_goes_by_files_for_one_call(llama: Path, tmp_path: Path) -> None:
    one = _write(tmp_path, {"layer": [[r"mlp\.gate_proj", "mlp.first"]]}, "one.yaml")
    two = _write(tmp_path, {"layer": [[r"mlp\.(?:gate|up)_proj", "mlp.second"]]}, "two.yaml")
    result = _call("--families", one, "--families", two, "map", llama, "language.*.mlp.{first,second}", "--json")
    assert result.exit_code == 0, result.output
    taken = json.loads(result.stdout)["taken"]
    assert taken["spans"][0]["parts"] == ["mlp.first", "mlp.second"]
    assert "mlp.first" not in _call("map", llama).stdout


@pytest.mark.parametrize("as_json", [True, False])
def test_the_program_tells_a_fault_in_a_file_as_input_that_is_wrong(as_json: bool, llama: Path, tmp_path: Path) -> None:
    path = _write(tmp_path, {"layers": []})
    result = _call("--families", path, "map", llama, *(["--json"] if as_json else []))
    message = f"{path}: layers: unknown table. Did you mean layer?"
    assert result.exit_code == 2
    assert f"InputError: {message}" in result.stderr
    if as_json:
        assert json.loads(result.stdout)["error"] == {"kind": "InputError", "message": message, "exit_code": 2}
    else:
        assert result.stdout == ""


def test_an_installed_package_gives_a_model_and_its_names_to_the_program(site: Path) -> None:
    """What the how-to's last section promises: both entry points of one package."""
    code = (
        "from importlib import resources\n\nimport torch\n\nimport selectune.models\n"
        "from tower_of_snails.snail import SnailConfig, SnailForCausalLM\n\n\n"
        'def families():\n    return resources.files(__name__) / "families.yaml"\n\n\n'
        'def load(*, dtype="auto", device=None):\n    torch.manual_seed(0)\n'
        '    return selectune.models.assemble("snail", SnailForCausalLM(SnailConfig()), None)\n'
    )
    files = {
        "tower_of_snails/__init__.py": code,
        "tower_of_snails/snail.py": _of_the_page("snail.py"),
        "tower_of_snails/families.yaml": _of_the_page("snail.yaml"),
    }
    entries = "snail = tower_of_snails:families\n\n[selectune.models]\nsnail = tower_of_snails:load"
    _install(site, "tower_of_snails", entries, files)
    families.cache_clear()
    result = _call("map", "snail", "attention-qkv", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["selected"]["elements"] == 4 * 3 * (32 * 32 + 32)
    assert [tower["tower"] for tower in document["taken"]["towers"]] == ["language", "head"]
