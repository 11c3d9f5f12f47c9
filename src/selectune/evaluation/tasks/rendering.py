"""A source's row as what the model is asked and what was right: only text goes into a prompt, and the question is always in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from selectune.errors import DataError
from selectune.evaluation.scorers import letters
from selectune.evaluation.tasks.spec import PLACE, TaskSpec
from selectune.records.forms import text_of

Row = Mapping[str, Any]


def rendered(spec: TaskSpec, row: Row, where: str) -> dict[str, Any]:
    """The row of a question-answer table that a task's row stands for; `where` names the row in messages.

    Raises DataError for a column that is not there, for a value that is no text where text belongs, for an empty question, answer or list
    of answers, for an answer that is none of the choices, and for a picture or an id that is missing.
    """
    if spec.kind == "perplexity":
        return _identified(spec, row, where) | {"text": _words(row, str(spec.text), where)}
    question = _question(spec, row, where)
    offered = _offered(spec, row, question, where)
    prompt = _filled(spec, row, question, offered, where)
    found: dict[str, Any] = _identified(spec, row, where) | {"question": prompt} | _right(spec, row, offered, where)
    if offered and spec.lettered:
        found |= {"choices": list(letters(len(offered))), "options": [one for one in offered if one]}
    elif offered:
        found["choices"] = list(offered)
    if spec.ranked:
        found["ranked"] = list(spec.ranked) if not offered and found["answer"] in spec.ranked else []
    if spec.image is not None:
        found["images"] = column(row, spec.image, where)
        if found["images"] in (None, "", []):
            raise DataError("it has no picture", where=where, then="Take it out, or give its picture.")
    for name in spec.keep:
        found[name] = row.get(name)
    return found


def column(row: Row, name: str, where: str) -> Any:
    """The value of a column. Raises DataError, with near names, where there is none of that name."""
    if name not in row:
        near = get_close_matches(name, row)
        then = f"Did you mean {near[0]}?" if near else f"The columns are {', '.join(map(str, row))}."
        raise DataError(f'there is no column "{name}"', where=where, then=then)
    return row[name]


def _words(row: Row, name: str, where: str) -> str:
    return text_of(column(row, name, where), f"{where}: {name}")


def _identified(spec: TaskSpec, row: Row, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if spec.id is not None:
        found["id"] = column(row, spec.id, where)
        if found["id"] is None or not str(found["id"]).strip():
            raise DataError(f'it has no id in the column "{spec.id}"', where=where, then="Give every row an id of its own.")
    if spec.cluster is not None:
        found["cluster"] = _words(row, spec.cluster, where)
    return found


def _question(spec: TaskSpec, row: Row, where: str) -> str:
    assert spec.question is not None  # a spec of another kind than perplexity has one
    text = _words(row, spec.question.column, where)
    for step in spec.question.clean:
        if step == "no-image":
            text = text.replace("\n<image>", "").replace("<image>\n", "").replace("<image>", "")
        text = text.strip() if step == "strip" else text.capitalize() if step == "capitalise" else text
    if not text.strip():
        raise DataError("its question is empty", where=where, then="Give it a question, or take it out.")
    return text


def _offered(spec: TaskSpec, row: Row, question: str, where: str) -> list[str]:
    """The options' words; empty texts where only their letters are known, and nothing where the row offers none."""
    wanted = spec.choices
    if wanted is None:
        return []
    if wanted.letters is not None:
        return [""] * wanted.letters
    if wanted.pattern is not None:
        found = re.findall(wanted.pattern, question, flags=re.MULTILINE)
        if found and tuple(letter for letter, _ in found) != letters(len(found)):
            raise DataError(f"its options are {', '.join(letter for letter, _ in found)}", where=where, then="Letter them A, B, C …")
        return [words.strip() for _, words in found] if len(found) > 1 else []
    values = [column(row, name, where) for name in wanted.columns]
    several = values[0] if len(values) == 1 else values
    if not isinstance(several, Sequence) or isinstance(several, str | bytes):
        raise DataError(f'"{wanted.columns[0]}" holds no list of choices', where=where, then="Give a list of two texts or more.")
    if len(several) < 2:
        raise DataError(f"it offers {len(several)} choices", where=where, then="Give two or more.")
    return [text_of(one, f"{where}: choices") for one in several]


def _filled(spec: TaskSpec, row: Row, question: str, offered: Sequence[str], where: str) -> str:
    """The prompt. Every place is filled in one go, so that nothing in a text of the row is taken for a place."""
    lines = "\n".join(f"{letter}. {words}" for letter, words in zip(letters(len(offered)), offered, strict=True))
    values = {"question": question, "options": lines} | {name: _part(text, row, where) for name, text in spec.parts.items()}
    return PLACE.sub(lambda place: values[place[1]], spec.prompt)


def _part(text: str, row: Row, where: str) -> str:
    names = PLACE.findall(text)
    if any(row.get(name) in (None, "") for name in names):
        return ""
    return PLACE.sub(lambda place: _words(row, place[1], where), text)


def _right(spec: TaskSpec, row: Row, offered: Sequence[str], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if spec.answers is not None:
        several = column(row, spec.answers, where)
        if not isinstance(several, list | tuple) or not [one for one in several if one is not None and str(one).strip()]:
            raise DataError("its list of answers is empty", where=where, then="Give one right answer or more, or take it out.")
        found["answers"] = [text_of(one, f"{where}: {spec.answers}") for one in several if one is not None]
    if spec.answer is not None:
        value = column(row, spec.answer.column, where)
        if value is None or not str(value).strip():
            raise DataError("it has no right answer", where=where, then="Give it an answer, or take it out.")
        found["answer"] = _answer(spec, text_of(value, f"{where}: {spec.answer.column}"), offered, where)
    return found


def _answer(spec: TaskSpec, text: str, offered: Sequence[str], where: str) -> str:
    """The answer as the model should give it: a letter where one is asked for."""
    assert spec.answer is not None  # only called where there is one
    if spec.answer.pattern is not None:
        match = re.search(spec.answer.pattern, text)
        if match is None:
            raise DataError(
                f'its answer "{text[-60:]}" is not of the task\'s form', where=where, then=f"Write it as {spec.answer.pattern}."
            )
        text = match[1]
    if not offered:
        return text
    at = _index(spec.answer.form, text, offered)
    if at is None or not 0 <= at < len(offered):
        then = f"It offers {len(offered)}; the answer is read as {spec.answer.form}."
        raise DataError(f'its answer "{text}" is none of the choices', where=where, then=then)
    return letters(len(offered))[at] if spec.lettered else offered[at]


def _index(form: str, text: str, offered: Sequence[str]) -> int | None:
    """Which choice an answer means. A class's name, as `datasets` has it for MMLU's numbers, is its letter."""
    bare = text.strip().strip("().").strip()
    if form == "text":
        same = [index for index, words in enumerate(offered) if words.strip() == text.strip()]
        return same[0] if len(same) == 1 else None
    if form == "index" and bare.isdecimal():
        return int(bare)
    return ord(bare.upper()) - ord("A") if len(bare) == 1 and bare.isascii() and bare.isalpha() else None
