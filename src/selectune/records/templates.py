"""A model's chat template: what it renders, and where in the text the assistant's words stand.

The words are found, never guessed. Where the template marks them with ``{% generation %}``, its marks are taken. Otherwise the text
rendered up to a turn, with the generation prompt, must be a prefix of the whole, and the words must follow it; a template for which that
fails is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from selectune.errors import DataError, ModelError
from selectune.records.record import Message

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = "selectune asks", "selectune answers"
_MARK_HINT = "Mark the assistant's words in the template with {% generation %} … {% endgeneration %}, or set template_options."


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One assistant turn in the rendered text: characters [start, end) are its words and the end-of-turn token behind them."""

    start: int
    end: int
    follows_prompt: bool
    """Whether the text before `start` is what a model is given to generate this turn; False: the template's marks say where it starts."""


class ChatTemplate:
    """The chat template of a processor or a tokenizer. Raises ModelError where there is none, or it cannot be rendered."""

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
        self.image_token: str | None = getattr(processor, "image_token", None) if isinstance(processor, ProcessorMixin) else None
        self.source = _source(processor)
        self.marked = bool(_MARKS.search(self.source))
        """Whether the template marks what the assistant says."""
        self._values = {**self.tokenizer.special_tokens_map, **(options or {})}
        self.lists, self.reason = self._style(isinstance(processor, ProcessorMixin))
        self._control = self._control_tokens()
        self.end_of_turn = self._end_of_turn()
        """What the template writes right behind the assistant's words to end the turn: a token, or None."""

    def render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """The messages as text; `ask` adds the generation prompt. Raises DataError where the template refuses them."""
        return self._render([self._plain(message, self.lists) for message in messages], ask=ask, marks=False)[0]

    def turns(self, messages: Sequence[Message], *, strip: bool = False) -> tuple[str, tuple[Turn, ...]]:
        """The whole conversation as text, and its assistant turns in order.

        `strip` counts white space at the end of a generation prompt to the turn.

        Raises DataError where the words cannot be found for certain.
        """
        plain = [self._plain(message, self.lists) for message in messages]
        text, marks = self._render(plain, ask=False, marks=self.marked)
        said = [(index, message.text) for index, message in enumerate(messages) if message.role == "assistant"]
        if self.marked and len(marks) != len(said):
            raise DataError(f"the chat template marks {len(marks)} turns of {len(said)}", where="chat template", then=_MARK_HINT)
        turns = []
        for number, (index, words) in enumerate(said):
            if self.marked:
                start = marks[number][0]
            else:
                prompt, _ = self._render(plain[:index], ask=True, marks=False)
                if not text.startswith(prompt):
                    what = f"what the chat template renders before assistant turn {number + 1} is no prefix of the whole conversation"
                    raise DataError(what, where="chat template", then=_MARK_HINT)
                start = len(prompt.rstrip()) if strip else len(prompt)
            turns.append(Turn(start=start, end=self._turn_end(text, start, words, number), follows_prompt=not self.marked))
        return text, tuple(turns)

    def refuse_control_tokens(self, messages: Sequence[Message], where: str) -> None:
        """Raises DataError where a text would be read as one of the model's control tokens (end of turn, image, next speaker)."""
        for message in messages:
            found = self._control.search(message.text)
            if found:
                then = "Take it out of the text: the model would read it as a command, not as words."
                raise DataError(f'the text contains the control token "{found.group()}"', where=where, then=then)

    def _turn_end(self, text: str, start: int, words: str, number: int) -> int:
        if not words.strip():
            raise DataError(f"assistant turn {number + 1} is empty", then="Give every assistant turn words, or take the record out.")
        end = _end_of(text, start, words)
        if end is None:
            what = f'assistant turn {number + 1} does not begin with its words: the chat template writes "{text[start : start + 40]}"'
            raise DataError(what, where="chat template", then=_MARK_HINT)
        stop = self.end_of_turn
        return end + len(stop) if stop is not None and text.startswith(stop, end) else end

    def _render(self, plain: list[dict[str, Any]], *, ask: bool, marks: bool) -> tuple[str, list[tuple[int, int]]]:
        try:
            # Annotated as returning one string, it returns the texts and the marks of each conversation.
            rendered: Any = render_jinja_template(
                [plain], chat_template=self.source, add_generation_prompt=ask, return_assistant_tokens_mask=marks, **self._values
            )
            texts, spans = rendered
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            then = "Give the turns in the order that the model knows, or use another template."
            raise DataError(f"the chat template refuses the conversation ({error})", where="chat template", then=then) from error
        return texts[0], [(int(start), int(end)) for start, end in spans[0]] if marks else []

    def _plain(self, message: Message, lists: bool) -> dict[str, Any]:
        if message.pictures and self.image_token is None:
            raise DataError(
                "there is a picture, and this model reads none", then="Use a vision-language model, or records without pictures."
            )
        if not lists:
            return {
                "role": message.role,
                "content": "".join(part if isinstance(part, str) else str(self.image_token) for part in message.parts),
            }
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in message.parts]
        return {"role": message.role, "content": parts}

    def _style(self, multimodal: bool) -> tuple[bool, str]:
        """Whether the template wants content as a list of parts or as one string, with the reason."""
        question = Message(role="user", parts=(_QUESTION,))
        refusal: DataError | None = None
        for lists in (multimodal, not multimodal):
            try:
                text, _ = self._render([self._plain(question, lists)], ask=True, marks=False)
            except DataError as error:
                refusal = error
                continue
            if _QUESTION in text and "'type'" not in text and '"type"' not in text:
                kind = "a list of parts" if lists else "one string"
                return lists, f"content is {kind}: so rendered, a question appears as it is"
        then = "Use a template that renders a plain user turn."
        raise ModelError("the chat template shows no question" if refusal is None else refusal.what, where="chat template", then=then)

    def _end_of_turn(self) -> str | None:
        messages = [Message(role="user", parts=(_QUESTION,)), Message(role="assistant", parts=(_ANSWER,))]
        text, _ = self._render([self._plain(message, self.lists) for message in messages], ask=False, marks=False)
        tail = text[text.rfind(_ANSWER) + len(_ANSWER) :]
        added = sorted((token.content for token in self.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        for token in [*added, f" {self.tokenizer.eos_token}"]:
            if token.strip() and tail.startswith(token):
                return token
        return None

    def _control_tokens(self) -> re.Pattern[str]:
        known = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special or token.content in self.source}
        known |= {*self.tokenizer.all_special_tokens, *([self.image_token] if self.image_token else [])}
        # The unknown token commands nothing, and plain corpora are full of it.
        known -= {self.tokenizer.unk_token}
        tokens = sorted((token for token in known if token and token.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) if tokens else r"(?!)")


def _source(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    found = processor.chat_template or tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise ModelError(
            "the model has no chat template", where="chat template", then="Save one with its processor: processor.chat_template = …"
        )
    return str(found)


def _end_of(text: str, start: int, words: str) -> int | None:
    """Where `words` end if they stand at `start`: as they are, or without the white space around them that a template trims or adds."""
    if text.startswith(words, start):
        return start + len(words)
    bare = words.strip()
    lead = start
    while lead < len(text) and text[lead].isspace():
        lead += 1
    return lead + len(bare) if text.startswith(bare, lead) else None
