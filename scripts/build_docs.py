"""Write docs/reference/cli.md, api.md, recipe.md, tasks.md and scorers.md from the program, the public names, the recipe's fields, the
tasks, and the scorers beside lmms-eval's record.

python scripts/build_docs.py            write them
python scripts/build_docs.py --check    exit 1 if one is not current
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

import selectune
from selectune import recipe as recipes
from selectune.cli import app
from selectune.evaluation.scorers import OVER_TASK, SCORERS
from selectune.evaluation.tasks import TaskSpec, all_tasks

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
TESTS = Path(__file__).parent.parent / "tests"
TASKS_ABOUT = """\
What `task:` in a recipe and `selectune eval MODEL --tasks` may name. The prompts are the field's own: those of lmms-eval, of lm-eval for
text, and of the study's reference code for its targets; a test compares them with what lmms-eval 0.7.3 makes of the same rows (it names the
sets under `lmms-lab-encoder`). [Add a task](../how-to/add-a-task.md) says how to write one, and what each field means."""
SCORERS_ABOUT = """\
scored here and by lmms-eval's own code (`scripts/record_lmms_eval.py`); {apart} scores differ, each for the reason in the
last column. Tests also compare `f1` and the edit distance of `anls` with torchmetrics, `bleu` with sacrebleu and `cider` with
pycocoevalcap: nothing differs there but the words of CIDEr, which that package's users cut with a Java program. TRL has no scorer of this
kind; its accuracy reward compares mathematical expressions through another package."""
MADE = "<!-- made by scripts/build_docs.py -->\n"


def cli_page() -> str:
    """Every verb with its arguments and options."""
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    lines = ["# Command line", MADE, _clean(program.help or ""), "", _clean(str(app.info.epilog)), "", "Before the verb:", ""]
    lines += _parameters(program)
    for path, command in _commands(program, ("selectune",)):
        lines += [f"## {' '.join(path)}", "", _clean(command.help or ""), "", *_parameters(command)]
    return "\n".join(lines)


def _parameters(command: TyperCommand | TyperGroup) -> list[str]:
    rows = [_parameter(parameter) for parameter in command.params if "--help" not in parameter.opts]
    return ["| | |", "|--|--|", *(f"| `{name}` | {text} |" for name, text in rows), ""]


def _commands(group: TyperGroup, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, (*path, name))
        elif isinstance(command, TyperCommand):
            yield (*path, name), command


def _parameter(parameter: Any) -> tuple[str, str]:
    text = _clean(parameter.help or "")
    if isinstance(parameter, TyperArgument):
        return parameter.metavar or str(parameter.name), text
    name = ", ".join(parameter.opts) + (f" {parameter.metavar}" if parameter.metavar and not parameter.is_flag else "")
    if parameter.envvar:
        text += f" Also by the environment variable `{parameter.envvar}`."
    if parameter.default not in (None, False, ()) and not parameter.required:
        text += f" Default: `{parameter.default}`."
    return name, text + (" Required." if parameter.required else "")


def api_page() -> str:
    """Every public name with its signature and docstring."""
    lines = ["# Python", MADE, "Everything below can be imported from `selectune`; each name is loaded when it is first used.", ""]
    for name in selectune.__all__:
        value = getattr(selectune, name)
        lines += [f"## {name}", "", "```python", _signature(name, value), "```", "", _markdown(inspect.getdoc(value) or ""), ""]
        for method, member in _methods(value):
            lines += [f"- `.{method}`: {_first_sentence(inspect.getdoc(member) or '')}"]
        lines += [""] if inspect.isclass(value) else []
        lines += [f"Defined in `{value.__module__}`.", ""]
    return "\n".join(lines)


def _signature(name: str, value: Any) -> str:
    """The signature; a type or a default that has no short name in the source is left out or written as an ellipsis."""
    parts = []
    starred = False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        text = parameter.name
        if isinstance(parameter.annotation, str):
            text += f": {parameter.annotation}"
        if parameter.default is not inspect.Parameter.empty:
            default = repr(parameter.default)
            text += f" = {default if len(default) < 20 and '<' not in default else '…'}"
        parts.append(text)
    returns = inspect.signature(value).return_annotation
    result = f" -> {returns}" if isinstance(returns, str) and inspect.isfunction(value) else ""
    return f"{name}({', '.join(parts)}){result}"


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    if not inspect.isclass(value):
        return
    for name, member in vars(value).items():
        documented = isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member) or hasattr(member, "attrname")
        if documented and not name.startswith("_") and inspect.getdoc(member):
            yield name, member


def recipe_page() -> str:
    """Every field of a recipe with its type, default and meaning."""
    lines = ["# Recipes", MADE, "A recipe is one YAML file. Unknown keys are faults, and every fault is reported at once.", ""]
    lines += ["Shipped ones: " + ", ".join(f"`{name}`" for name in recipes.presets()) + ".", ""]
    keep = ("Keep", "Distill", "L2SP", "EWC", "Replay", "Anchors")
    watch = ("Watch", "NotFinite", "Spike", "Dead", "Flat", "Starved")
    for name in ("Recipe", "Choose", "Skill", "HeldOut", "Data", "Optim", "Adapter", *keep, *watch, "Gate", "Probe", "Recovery"):
        part = getattr(recipes, name)
        lines += [f"## {name}", "", _markdown(inspect.getdoc(part) or ""), "", "| field | type | default | |", "|--|--|--|--|"]
        meanings, schema = _field_docs(part), part.model_json_schema()
        for field, info in part.model_fields.items():
            default = "required" if info.is_required() else _default(info)
            lines.append(f"| `{field}` | {_type(schema['properties'][field])} | {default} | {meanings.get(field, '')} |")
        lines.append("")
    return "\n".join(lines)


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, recipes.Part):
        return "its own defaults"
    return "none" if value is None or value in ((), {}, "") else f"`{list(value) if isinstance(value, tuple) else value}`"


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        inner = schema.get("items") or schema["prefixItems"][0]
        return f"list of {_type(inner)}"
    return {"object": "mapping", "string": "text", "boolean": "true or false"}.get(schema["type"], str(schema["type"]))


def _field_docs(part: Any) -> dict[str, str]:
    """The string below each field in the class's source."""
    source = inspect.getsource(part)
    found = re.findall(r"^    (\w+): [^\n]+\n    \"\"\"(.*?)\"\"\"", source, flags=re.MULTILINE | re.DOTALL)
    return {name: _clean(text).replace("``", "`").replace("|", "\\|") for name, text in found}


def _markdown(text: str) -> str:
    """A docstring as Markdown: literal blocks and doctests become fenced, double backticks single ones."""
    text = text.replace("``", "`")
    lines, inside = [], False
    for line in text.splitlines():
        starts = line.startswith(">>> ")
        if starts and not inside:
            lines.append("```pycon")
            inside = True
        if inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


def _first_sentence(text: str) -> str:
    return _clean(text.split("\n\n", maxsplit=1)[0]).replace("``", "`")


def _clean(text: str) -> str:
    return " ".join(text.split())


def tasks_page() -> str:
    """Every shipped task with its source, prompt and scorer."""
    lines = ["# Tasks", MADE]
    lines += [TASKS_ABOUT, ""]
    lines += ["| task | scorer | further | likelihoods | tokens | data set | configuration | split | rows are told apart by |"]
    lines += ["|--|--|--|--|--|--|--|--|--|"]
    specs = list(all_tasks().values())
    for spec in specs:
        scored = str(spec.scorer) if spec.kind == "generate" else spec.kind
        tokens = spec.max_new_tokens if spec.kind == "generate" else ""
        origin = spec.source
        cells = (f"`{spec.name}`", scored, ", ".join(spec.further), "yes" if spec.likelihoods or spec.kind == "choice" else "", tokens)
        place = (f"`{origin.hub}`", origin.config or "", origin.split, f"`{spec.id}`" if spec.id else "what they hold")
        lines.append(f"| {' | '.join(map(str, (*cells, *place)))} |")
    for spec in specs:
        lines += ["", f"## {spec.name}", "", f"**{spec.title}** ({spec.role}). {spec.about}"]
        if spec.kind != "perplexity":
            lines += ["", "```text", spec.prompt, *(f"{{{name}}} = {text!r}" for name, text in spec.parts.items()), "```"]
        lines += ["", f"Second reading: {_second_reading(spec)}."]
    return "\n".join([*lines, ""])


def _second_reading(spec: TaskSpec) -> str:
    """What is ranked by likelihood beside what the model writes, and what is not and why."""
    if spec.kind == "choice":
        return "the letters are ranked, and nothing is written"
    ranked = ["the letters of its choices"] if spec.likelihoods and spec.choices else []
    ranked += [f"{' and '.join(spec.ranked)} where one of them is right"] if spec.ranked else []
    told = [", and ".join(ranked)] if ranked else []
    return "; ".join([*told, *([f"none for {spec.unranked}" if ranked else f"none, as {spec.unranked}"] if spec.unranked else [])])


def scorers_page() -> str:
    """Every scorer, and how its scores compare with lmms-eval's, case by case."""
    sys.path.insert(0, str(TESTS))
    cases = importlib.import_module("scorer_cases")
    record = json.loads((TESTS / "recorded" / "lmms_eval.json").read_text(encoding="utf-8"))
    lines = ["# Scorers", MADE, "| name | |", "|--|--|"]
    for name, scorer in {**SCORERS, **OVER_TASK}.items():
        lines.append(f"| `{name}` | {_cell(_first_sentence(inspect.getdoc(scorer) or ''))} |")
    apart = sum(1 for case in cases.CASES if case.why)
    lines += ["", f"## Beside lmms-eval {record['lmms-eval']}", ""]
    lines += [f"{len(cases.CASES)} outputs, {SCORERS_ABOUT.format(apart=apart)}", ""]
    lines += ["| lmms-eval's task | scorer | output | right | here | there | why they differ |", "|--|--|--|--|--|--|--|"]
    for case, row in zip(cases.CASES, record["scores"], strict=True):
        named, there = cases.SCORER[case.metric], row["score"]
        right = ", ".join(f"`{_cell(answer)}`" for answer in dict.fromkeys(case.answers))
        here = cases.score(case)
        lines.append(f"| {case.metric} | {named} | {_code(case.output)} | {right} | {here:.2g} | {there:.2g} | {_cell(case.why)} |")
    lines += ["", "## Beside the study's reference code", "", "| scorer | output | right | here | there | why they differ |"]
    lines += ["|--|--|--|--|--|--|"]
    for one in cases.STUDY:
        lines.append(f"| {one.scorer} | `{one.output}` | `{one.answer}` | {one.here:.2g} | {one.there:.2g} | {one.why} |")
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text.strip() else "(nothing)"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"cli.md": cli_page, "api.md": api_page, "recipe.md": recipe_page, "tasks.md": tasks_page, "scorers.md": scorers_page}


def stale() -> list[str]:
    """The pages that are not what they would be if they were made now."""
    return [name for name, make in PAGES.items() if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text() != make()]


def main() -> None:
    """Write the pages, or check them."""
    importlib.invalidate_caches()
    if "--check" in sys.argv[1:]:
        if found := stale():
            raise SystemExit(f"not current: {', '.join(found)}; run python scripts/build_docs.py")
        return
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
