"""Records as token ids with labels: exactly the assistant's words, and the token with which the template ends the turn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, overload

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from selectune.errors import DataError, ModelError
from selectune.records.collating import IGNORED
from selectune.records.picture import Picture
from selectune.records.record import Message, Record
from selectune.records.showing import Shown, marked
from selectune.records.templates import ChatTemplate, Turn

if TYPE_CHECKING:
    import torch

_Tokens = tuple[list[int], list[tuple[int, int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One record as a model reads it. `input_ids` and `labels` are of one length; `labels` is -100 outside what is supervised."""

    record_id: str
    input_ids: list[int]
    """Image tokens expanded as the processor does."""
    labels: list[int]
    pictures: tuple[Picture, ...]
    text: str
    """What the chat template rendered, image tokens not expanded."""
    extra: Mapping[str, list[int]] = field(default_factory=dict)
    """Further inputs of the same length that the model's processor makes, such as `mm_token_type_ids`."""

    @property
    def supervised(self) -> int:
        """Count of labelled positions."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedRecords(Sequence[Encoded]):
    """Encoded records in order, and how many were left out because they are too long."""

    items: tuple[Encoded, ...]
    dropped: Mapping[str, int]
    """Reason and count; empty where nothing was left out."""
    dropped_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        return self.items[index]


class Encoder:
    """Turns records into inputs with a transformers processor (pictures and text) or tokenizer (text alone).

    Labels are the assistant's words in every turn, with the white space between the generation prompt and the words, and the end-of-turn
    token where the template writes one right behind them: a model that never learns it never stops. Decoded without special tokens they are
    the words and nothing else. A record without a user turn (the form `text`) is plain text: no template, and every token but the first
    special ones is labelled.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase, *, template_options: Mapping[str, Any] | None = None) -> None:
        self._processor = processor if isinstance(processor, ProcessorMixin) else None
        self.template = ChatTemplate(processor, template_options)
        self.tokenizer = self.template.tokenizer
        if not self.tokenizer.is_fast:
            then = "Save the model with its fast tokenizer (tokenizer.json)."
            raise ModelError(
                "the tokenizer tells no character offsets, so labels cannot be placed for certain", where="tokenizer", then=then
            )
        self._kinds = self._kind_names()
        self._expansions: dict[tuple[tuple[int, int], ...], tuple[str, ...]] = {}
        self._verified = False
        self._strip = self._prompt_ends_loosely()

    def encode(self, record: Record) -> Encoded:
        """The whole record with its labels; never cut.

        Raises DataError where there is nothing to learn, or the words cannot be placed for certain.
        """
        where = _where(record)
        self.template.refuse_control_tokens(record.messages, where)
        if _is_plain(record):
            return self._plain(record)
        if not any(message.role == "assistant" for message in record.messages):
            raise DataError("has no answer to learn from", where=where, then="Give it an answer, or use it for prompts only.")
        try:
            return self._conversation(record)
        except DataError as error:
            raise _placed(error, where) from error

    def encode_all(self, records: Iterable[Record], max_length: int | None = None) -> EncodedRecords:
        """Every record that is at most `max_length` tokens long; the longer ones are counted in `dropped`, never cut.

        Raises DataError where none is left.
        """
        kept: list[Encoded] = []
        too_long: list[str] = []
        shortest = 0
        for record in records:
            encoded = self.encode(record)
            n = len(encoded.input_ids)
            if max_length is not None and n > max_length:
                shortest = min(shortest or n, n)
                too_long.append(record.id)
            else:
                kept.append(encoded)
        if not kept:
            if not too_long:
                raise DataError("there are no records to encode", then="Give a source or split that holds some.")
            raise DataError(
                f"every one of {len(too_long)} records is longer than {max_length} tokens",
                then=f"Raise max_length; the shortest has {shortest}.",
            )
        dropped = {f"longer than {max_length} tokens": len(too_long)} if too_long else {}
        return EncodedRecords(items=tuple(kept), dropped=dropped, dropped_ids=tuple(too_long))

    def prompt(self, record: Record) -> Encoded:
        """What a model is given to generate the record's last answer: the messages before it and the generation prompt; labels all -100."""
        where = _where(record)
        messages = record.prompt
        self.template.refuse_control_tokens(messages, where)
        pictures = tuple(picture for message in messages for picture in message.pictures)
        if not messages:
            raise DataError("has no question to ask", where=where, then="Measure it by likelihood (perplexity), not by generation.")
        try:
            text = self.template.render(messages, ask=True)
            text = text.rstrip() if self._strip else text
            ids, _ = self._tokens(self._expanded(text, pictures, 0)[0])
        except DataError as error:
            raise _placed(error, where) from error
        return self._encoded(record, ids, [IGNORED] * len(ids), pictures, text)

    def pixels(self, *groups: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """The pixel inputs of one or more records, each group the pictures of one of them; empty where there are no pictures.

        Names and shapes are the processor's own: for LLaVA-1.5 `pixel_values` of (pictures, 3, height, width), float32. Decodes
        the pictures and raises DataError as `Picture.open` does.
        """
        images = [[picture.open() for picture in group] for group in groups if group]
        if not images:
            return {}
        if self._processor is None:
            raise DataError(
                "there is a picture, and this model reads none", then="Use a vision-language model, or records without pictures."
            )
        return dict(self._processor(images=images, return_tensors="pt"))

    def describe(self, record: Record) -> Shown:
        """The record as a model will read it, decoded: the sample that `plan` prints."""
        encoded = self.encode(record)
        pixels = {name: tuple(tensor.shape) for name, tensor in self.pixels(encoded.pictures).items()}
        names = tuple(picture.name for picture in encoded.pictures)
        return Shown(
            record_id=record.id,
            text=marked(encoded.input_ids, encoded.labels, self.tokenizer, self.template.image_token),
            tokens=len(encoded.input_ids),
            supervised=encoded.supervised,
            pixels=pixels,
            pictures=names,
            end_of_turn=self.template.end_of_turn,
        )

    def words(self, encoded: Encoded) -> str:
        """The labelled ids, decoded without special tokens."""
        return str(self.tokenizer.decode([label for label in encoded.labels if label != IGNORED], skip_special_tokens=True))

    def _plain(self, record: Record) -> Encoded:
        text = record.answer
        ids = list(self.tokenizer(text)["input_ids"])
        special = set(self.tokenizer.all_special_ids)
        lead = sum(1 for _ in takewhile(special.__contains__, ids))
        labels = [IGNORED] * lead + ids[lead:]
        if len(ids) == lead:
            raise DataError("has no words", where=_where(record), then="Take the record out.")
        return self._encoded(record, ids, labels, (), text)

    def _conversation(self, record: Record) -> Encoded:
        text, turns = self.template.turns(record.messages, strip=self._strip)
        full, places = self._expanded(text, record.pictures, 0)
        tokens = self._tokens(full)
        if record.pictures and not self._verified:
            self._verify(text, record.pictures, tokens[0])
        labels = [IGNORED] * len(tokens[0])
        for turn in turns:
            shifted = Turn(start=_shift(turn.start, places), end=_shift(turn.end, places), follows_prompt=turn.follows_prompt)
            first = self._first(full, shifted, tokens)
            last = _last(full, shifted, tokens[1], first)
            labels[first:last] = tokens[0][first:last]
        return self._encoded(record, tokens[0], labels, record.pictures, text)

    def _first(self, full: str, turn: Turn, tokens: _Tokens) -> int:
        """The first token of a turn; it may take white space from the end of the prompt, and nothing else."""
        ids, offsets = tokens
        if not turn.follows_prompt:
            first = next(index for index, (_, end) in enumerate(offsets) if end > turn.start)
            return first if not full[offsets[first][0] : turn.start].strip() else _torn(full, turn)
        given, given_offsets = self._tokens(full[: turn.start])
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(given, ids, strict=False)))
        if same < len(given):
            rest = full[given_offsets[same - 1][1] if same else 0 : turn.start]
            if not rest or rest.strip():
                return _torn(full, turn)
        return same

    def _expanded(self, text: str, pictures: tuple[Picture, ...], start: int) -> tuple[str, list[tuple[int, int]]]:
        """The text with image tokens written out as the processor does; for each, where it ended and the characters gained by then."""
        token = self.template.image_token
        count = text.count(token) if token else 0
        if count != len(pictures):
            what = f"the chat template writes {count} image tokens for {len(pictures)} pictures"
            raise DataError(what, where="chat template", then="Use a template that shows every picture once.")
        if not pictures or token is None:
            return text, []
        pieces, places, gained = text.split(token), [], 0
        full, at = [pieces[0]], len(pieces[0]) + start
        for piece, expansion in zip(pieces[1:], self._expansion(pictures, token), strict=True):
            at += len(token)
            gained += len(expansion) - len(token)
            places.append((at, gained))
            full += [expansion, piece]
            at += len(piece)
        return "".join(full), places

    def _expansion(self, pictures: tuple[Picture, ...], token: str) -> tuple[str, ...]:
        """What the processor writes for each picture of a record; kept by their sizes, as it depends on these and their number alone."""
        sizes = tuple(picture.size for picture in pictures)
        if sizes not in self._expansions:
            assert self._processor is not None  # a template with an image token belongs to a processor
            images = [[picture.open() for picture in pictures]]
            made = self._processor(images=images, text=[token * len(pictures)], return_text_replacement_offsets=True)
            if "text_replacement_offsets" not in made:
                then = "Use a model whose processor does it as transformers' own do."
                raise ModelError(
                    f"{type(self._processor).__name__} does not tell how it expands image tokens", where="processor", then=then
                )
            self._expansions[sizes] = tuple(entry["replacement"] for entry in made["text_replacement_offsets"][0])
        return self._expansions[sizes]

    def _verify(self, text: str, pictures: tuple[Picture, ...], ids: list[int]) -> None:
        """Once: our ids of a record with pictures are those of the processor itself."""
        assert self._processor is not None  # pictures were expanded, so there is one
        images = [[picture.open() for picture in pictures]]
        made = self._processor(images=images, text=[text], add_special_tokens=self._adds_special(text))["input_ids"][0]
        if list(made) != ids:
            then = "Use a model whose processor does it as transformers' own do."
            raise ModelError(f"{type(self._processor).__name__} encodes text in a way of its own", where="processor", then=then)
        self._verified = True

    def _adds_special(self, text: str) -> bool:
        """As `apply_chat_template`: a tokenizer adds no special tokens to rendered text, a processor does unless it begins with one."""
        bos = self.tokenizer.bos_token
        return self._processor is not None and not (bos is not None and text.startswith(bos))

    def _tokens(self, text: str) -> _Tokens:
        made = self.tokenizer(text, add_special_tokens=self._adds_special(text), return_offsets_mapping=True, verbose=False)
        return list(made["input_ids"]), list(made["offset_mapping"])

    def _kind_names(self) -> tuple[str, ...]:
        """Names of the inputs, one number a token, that this processor makes to tell text from pictures."""
        if self._processor is None or not self._processor.return_mm_token_type_ids:
            return ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = self._processor(text=["a"])
        return tuple(name for name in made if name in ("mm_token_type_ids", "token_type_ids"))

    def _prompt_ends_loosely(self) -> bool:
        """Whether white space that ends the generation prompt joins an answer's first token, as in `ASSISTANT: ` before ` yes`."""
        question, answer = Message(role="user", parts=("Is it so?",)), Message(role="assistant", parts=("yes",))
        whole = self._tokens(self.template.render([question, answer]))[0]
        prompt = self.template.render([question], ask=True)
        given, bare = self._tokens(prompt)[0], self._tokens(prompt.rstrip())[0]
        return whole[: len(given)] != given and whole[: len(bare)] == bare

    def _encoded(self, record: Record, ids: list[int], labels: list[int], pictures: tuple[Picture, ...], text: str) -> Encoded:
        kinds = self._processor.create_mm_token_type_ids([ids])[0] if self._processor is not None and self._kinds else []
        return Encoded(
            record_id=record.id,
            input_ids=ids,
            labels=labels,
            pictures=pictures,
            text=text,
            extra={name: list(kinds) for name in self._kinds},
        )


def _is_plain(record: Record) -> bool:
    return len(record.messages) == 1 and record.messages[0].role == "assistant"


def _shift(place: int, places: Sequence[tuple[int, int]]) -> int:
    """A character's place after the image tokens before it grew."""
    return place + max((gained for end, gained in places if end <= place), default=0)


def _last(full: str, turn: Turn, offsets: Sequence[tuple[int, int]], first: int) -> int:
    """One past the last token of a turn. It may take white space from behind the turn, as a token `.\\n` does, and nothing else."""
    inside = [index for index, (start, end) in enumerate(offsets[first:], first) if start < turn.end and end > turn.start]
    if not inside or full[turn.end : offsets[inside[-1]][1]].strip():
        return _torn(full, turn)
    return inside[-1] + 1


def _torn(full: str, turn: Turn) -> int:
    shown = full[max(0, turn.start - 20) : turn.start] + "|" + full[turn.start : turn.start + 20]
    what = f"the tokenizer joins the prompt and the assistant's words into one token ({shown!r})"
    raise DataError(what, where="chat template", then="Use a template whose prompt ends with a special token or a line break.")


def _where(record: Record) -> str:
    for picture in record.pictures:
        if picture.where:
            return picture.where
    return f'record "{record.id}"'


def _placed(error: DataError, where: str) -> DataError:
    """The same error, with the record it came up in."""
    inner = error.where
    if inner is not None and inner.startswith(where):
        return error
    return DataError(error.what, where=f"{where}: {inner}" if inner else where, then=error.then)
