"""The forms that people keep records in: which one a table has, and why; and a row of each as messages.

==================  ===========================================================================================================
llava               ``conversations`` of ``{from, value}`` with ``<image>`` in the text, and ``image``: a path or a list of them
sharegpt            ``conversations`` of ``{from, value}``, with ``images`` or without pictures
openai              ``messages`` of ``{role, content}``; pictures are parts of the content: a file path or a ``data:`` URL
messages            ``messages`` of ``{role, content}``, and ``images`` or ``image`` beside them
prompt-completion   ``prompt`` and ``completion``: text, or lists of messages
question-answer     ``question`` and ``answer`` (or ``answers``), with ``image`` or ``images`` or none
text                ``text`` alone: plain text without a question; so is a question-answer row with an empty question and no picture
==================  ===========================================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from selectune.errors import DataError
from selectune.records.files import Table
from selectune.records.picture import Picture, picture
from selectune.records.record import Message, Role

FORMS = ("llava", "sharegpt", "openai", "messages", "prompt-completion", "question-answer", "text")
PARTS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "messages": ("conversations", "messages"),
    "images": ("image", "images"),
    "question": ("question", "prompt"),
    "answer": ("answer", "completion", "label"),
    "answers": ("answers",),
    "choices": ("choices",),
    "cluster": ("cluster",),
    "text": ("text",),
    "split": ("split",),
}
"""The parts that a column can play, and the names by which each is known; `columns` of a recipe's data maps a part to another name."""

PLACEHOLDER = "<image>"
_NEEDED = {
    "llava": ("messages",),
    "sharegpt": ("messages",),
    "openai": ("messages",),
    "messages": ("messages", "images"),
    "prompt-completion": ("question", "answer"),
    "question-answer": ("question",),
    "text": ("text",),
}
_SPEAKERS: Mapping[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A table's form, why it is that one, and which column plays which part."""

    name: str
    reason: str
    columns: Mapping[str, str]
    prompt: str | None = None
    """The question for rows without one."""


def detect(table: Table, columns: Mapping[str, str], form: str | None = None, prompt: str | None = None) -> Form:
    """The table's form. `columns` and `form` are the user's word and override what is detected.

    Raises DataError for an unknown form or part, a column that is not there, two columns for one part, and a table of no known form.
    """
    found = _columns(table, columns)
    name, reason = _named(table, found, prompt)
    if form is not None:
        if form not in FORMS:
            near = get_close_matches(form, FORMS)
            raise DataError(
                f'"{form}" is no form', where=table.place, then=f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(FORMS)}."
            )
        lacking = [part for part in _NEEDED[form] if part not in found and not (part == "question" and prompt)]
        if lacking:
            then = f"Map it with columns: {{{lacking[0]}: NAME}}; the columns are {', '.join(table.columns)}."
            raise DataError(f"the form {form} needs a column for {lacking[0]}", where=table.place, then=then)
        name, reason = form, "form asks for it"
    if columns:
        reason = f"{reason}; columns: " + ", ".join(f"{part} is {json_name(column)}" for part, column in columns.items())
    if not name:
        then = f"Map the columns with columns: {{question: NAME, answer: NAME}}; known forms: {', '.join(FORMS)}."
        raise DataError(f"the columns {', '.join(table.columns) or '(none)'} are of no known form", where=table.place, then=then)
    return Form(name=name, reason=f"{name}: {reason}", columns=found, prompt=prompt)


def json_name(name: str) -> str:
    """A column's name as messages show it."""
    return f'"{name}"'


def _columns(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    for part, column in columns.items():
        if part not in PARTS:
            near = get_close_matches(part, PARTS)
            then = f"Did you mean {near[0]}?" if near else f"The parts are {', '.join(PARTS)}."
            raise DataError(f'columns: "{part}" is no part of a record', where=table.place, then=then)
        if column not in table.columns and not (part == "id" and column == "-"):
            near = get_close_matches(column, table.columns)
            then = f"Did you mean {near[0]}?" if near else f"The columns are {', '.join(table.columns)}."
            raise DataError(f'columns: there is no column "{column}"', where=table.place, then=then)
    found = {part: column for part, column in columns.items() if column != "-"}
    for part, names in PARTS.items():
        there = [name for name in names if name in table.columns and name not in found.values()]
        if part in columns or not there:
            continue
        if part in ("messages", "images") and len(there) > 1:
            then = f"Say which with columns: {{{part}: {there[0]}}}."
            raise DataError(f"{' and '.join(map(json_name, there))} both look like {part}", where=table.place, then=then)
        found[part] = there[0]
    return found


def _named(table: Table, found: Mapping[str, str], prompt: str | None) -> tuple[str, str]:
    """The form's name and reason; an empty name where there is none."""
    has = {part: json_name(column) for part, column in found.items()}
    if "messages" in found:
        turns = next((row[found["messages"]] for row in table.rows if row.get(found["messages"])), None)
        first = turns[0] if isinstance(turns, Sequence) and turns and not isinstance(turns, str) else None
        if isinstance(first, Mapping) and "from" in first:
            if found.get("images") == "image":
                return "llava", f'has {has["messages"]} and "image"'
            return "sharegpt", f"has {has['messages']} of from and value" + (
                f" and {has['images']}" if "images" in has else ' and no "image"'
            )
        if "images" in found:
            return "messages", f"has {has['messages']} of role and content and {has['images']}"
        return "openai", f"has {has['messages']} of role and content and no column of pictures"
    pictures = f" and {has['images']}" if "images" in has else ""
    if found.get("question") == "prompt" and found.get("answer") == "completion":
        return "prompt-completion", f'has "prompt" and "completion"{pictures}'
    if "question" in found:
        answer = has.get("answer") or has.get("answers")
        return "question-answer", f"has {has['question']} and {answer or 'no answers'}{pictures}"
    if prompt is not None and "images" in found:
        return "question-answer", f"has {has['images']}, and prompt gives the question"
    if "text" in found:
        return "text", f"has {has['text']} and no question"
    return "", ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row on its way to messages: its values by part, and where its pictures lie."""

    values: Mapping[str, Any]
    root: Path
    where: str

    def messages(self, form: Form) -> tuple[Message, ...]:
        """The row's messages. Raises DataError where the row is not of the form."""
        if form.name == "text":
            return (Message(role="assistant", parts=(self.words("text"),)),)
        images = iter(self._images())
        if "messages" in form.columns and form.name in ("llava", "sharegpt", "openai", "messages"):
            found = self._turns(self.values.get("messages"), images)
        else:
            found = self._pair(form, images)
        return self._placed(found, list(images))

    def words(self, part: str) -> str:
        """The text of a part; numbers as they are written. Raises DataError for anything else."""
        return text_of(self.values.get(part), f"{self.where}: {part}")

    def _images(self) -> list[Picture]:
        value = self.values.get("images")
        if value is None or value == "":
            return []
        several = value if isinstance(value, list | tuple) else [value]
        return [picture(item, self.root, self.where, number) for number, item in enumerate(several, 1)]

    def _pair(self, form: Form, images: Iterator[Picture]) -> list[Message]:
        question = self.values.get("question")
        if isinstance(question, list):
            completion = self.values.get("answer")
            return [*self._turns(question, images), *(self._turns(completion, images) if completion else [])]
        asked = text_of(form.prompt if question is None else question, f"{self.where}: question")
        answer = self._answer()
        if answer is not None and not asked.strip() and not self._has_images():
            return [Message(role="assistant", parts=(answer,))]
        found = [Message(role="user", parts=tuple(self._split(asked, images)))]
        return [*found, Message(role="assistant", parts=(answer,))] if answer is not None else found

    def _answer(self) -> str | None:
        """The answer; of several `answers` the most frequent, of equally frequent ones the first. None where the row has none."""
        answer, answers = self.values.get("answer"), self.values.get("answers")
        if answer is None and isinstance(answers, Sequence) and answers:
            counts = Counter(text_of(item, f"{self.where}: answers") for item in ([answers] if isinstance(answers, str) else answers))
            return counts.most_common(1)[0][0]
        if answer is None or answer == "":
            return None
        choices = self.values.get("choices")
        if isinstance(answer, int) and isinstance(choices, list | tuple) and str(answer) not in map(str, choices):
            then = "Write the choice itself as the answer; whether a number counts from 0 or 1 is not guessed."
            raise DataError(f"the answer {answer} is none of the choices", where=self.where, then=then)
        return text_of(answer, f"{self.where}: answer")

    def _turns(self, value: Any, images: Iterator[Picture]) -> list[Message]:
        if not isinstance(value, list | tuple) or not value:
            raise DataError("holds no list of turns", where=self.where, then='Write [{"role": "user", "content": …}, …].')
        return [self._turn(turn, images, number) for number, turn in enumerate(value, 1)]

    def _turn(self, turn: Any, images: Iterator[Picture], number: int) -> Message:
        where = f"{self.where}: turn {number}"
        if not isinstance(turn, Mapping):
            raise DataError(f"is a {type(turn).__name__}", where=where, then='Write {"role": "user", "content": …}.')
        name = turn.get("from") if turn.get("from") is not None else turn.get("role")
        speaker = _SPEAKERS.get(name) if isinstance(name, str) else None
        if speaker is None:
            raise DataError(
                f"the speaker {name!r} is not known", where=where, then=f"Use one of {', '.join(_SPEAKERS)}; tool calls are not read."
            )
        value = turn.get("value") if "value" in turn and turn.get("value") is not None else turn.get("content")
        parts = [part for item in value for part in self._part(item, images, where)] if isinstance(value, list | tuple) else None
        if parts is None:
            parts = list(self._split(text_of(value, where), images))
        if speaker == "assistant" and any(isinstance(part, Picture) for part in parts):
            raise DataError("there is a picture in an assistant's turn", where=where, then="Pictures can be shown, not taught.")
        return Message(role=speaker, parts=tuple(parts))

    def _part(self, item: Any, images: Iterator[Picture], where: str) -> Iterator[str | Picture]:
        if isinstance(item, str):
            yield from self._split(item, images)
            return
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "text":
            yield from self._split(text_of(item.get("text"), where), images)
        elif kind in ("image", "image_url"):
            inner = item.get("image_url") if kind == "image_url" else item.get("image")
            value = inner.get("url") if isinstance(inner, Mapping) and "url" in inner else inner
            value = next((found for found in (value, item.get("url"), item.get("path")) if found is not None), None)
            yield self._next(images) if value is None else picture(value, self.root, self.where)
        else:
            raise DataError(f"a content part of type {kind!r} is not known", where=where, then="Use text, image and image_url.")

    def _split(self, text: str, images: Iterator[Picture]) -> Iterator[str | Picture]:
        """Text with pictures in the place of its placeholders.

        A line break beside a placeholder goes: what stands there is the chat template's to say.
        """
        if PLACEHOLDER not in text or not self._has_images():
            if text:
                yield text
            return
        pieces = text.split(PLACEHOLDER)
        for index, piece in enumerate(pieces):
            if index:
                yield self._next(images)
                piece = piece.removeprefix("\n")
            piece = piece.removesuffix("\n") if index < len(pieces) - 1 else piece
            if piece:
                yield piece

    def _has_images(self) -> bool:
        return self.values.get("images") not in (None, "", [], ())

    def _next(self, images: Iterator[Picture]) -> Picture:
        found = next(images, None)
        if found is None:
            raise DataError("there are more places for pictures than pictures", where=self.where, then="Give one picture for each place.")
        return found

    def _placed(self, messages: list[Message], left: list[Picture]) -> tuple[Message, ...]:
        """The messages, with pictures that no placeholder names put before the first question, where none is named at all."""
        if not left:
            return tuple(messages)
        if any(message.pictures for message in messages):
            then = f"Write one {PLACEHOLDER} for each picture, or none at all."
            raise DataError(f"{len(left)} pictures have no place in the text", where=self.where, then=then)
        for index, message in enumerate(messages):
            if message.role == "user":
                messages[index] = Message(role="user", parts=(*left, *message.parts))
                return tuple(messages)
        raise DataError("there are pictures and no user's turn", where=self.where, then="Add a turn that shows them.")


def text_of(value: Any, where: str) -> str:
    """A value as text. Numbers are written as they are; true and false, null, and text that is no Unicode are refused with DataError."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError("the text is no Unicode (half of a surrogate pair)", where=where, then="Save the source as UTF-8.") from error
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    shown = (
        {None: "nothing", True: "true", False: "false"}.get(value)
        if value is None or isinstance(value, bool)
        else f"a {type(value).__name__}"
    )
    raise DataError(f"there is {shown} where text belongs", where=where, then="Write text.")
