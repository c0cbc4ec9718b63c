"""Converts prompts and completions to token ids, and token ids to text.

No other module adds control tokens to a sequence or truncates a prompt.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from dera_jax.checkpoints.chat_template import ChatTemplate, Message
from dera_jax.checkpoints.vocabulary import TextPart, Vocabulary, check_end
from dera_jax.prompts import Prompt


class EncodedPrompt(NamedTuple):
    """The token ids of a prompt.

    Attributes:
        ids: token ids, including the control tokens before and after the text.
        cut: number of tokens by which the document was truncated.
    """

    ids: list[int]
    cut: int


class _PromptText(NamedTuple):
    """The text of a prompt in parts: a chat template's, the user's message, a chat template's."""

    head: list[TextPart]
    before: TextPart  # of the user's message, before the document
    document: TextPart
    after: TextPart
    tail: list[TextPart]


class _Answer(NamedTuple):
    """The text of a conversation from the user's message on, as a chat template writes it."""

    header: str  # between the user's message and the assistant's answer
    answer: str
    after: str


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes text, with the same ids as seqio or transformers for the same file.

    Control tokens that a text spells are encoded as ordinary characters; only this class and the
    chat template add control tokens. With a chat template, nothing else is added: a prompt has a
    begin token if the template writes one, as in transformers' `apply_chat_template`.

    Attributes:
        vocabulary: a vocabulary with an end token.
        ends_prompts: whether an end token follows a prompt, as T5 encoders were trained. A prompt
            of a decoder-only model begins with the begin token, if any, and has no end token.
        chat_template: the chat template of a decoder-only model; None for a model without one.
    """

    vocabulary: Vocabulary
    ends_prompts: bool = True
    chat_template: ChatTemplate | None = None

    @property
    def end_id(self) -> int:
        """The id that ends completions: of the chat template's turns, or of sequences."""
        return self._end_of_turn[1] if self.chat_template else self.vocabulary.end_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids after which a model has finished: of the vocabulary and of the chat template."""
        return tuple(dict.fromkeys([self.vocabulary.end_id, self.end_id]))

    @property
    def template_ids(self) -> frozenset[int]:
        """The ids that prompts and completions need; a model that lacks one cannot be used."""
        if self.chat_template is None:
            return frozenset(itertools.chain(*self.control_tokens, [self.end_id]))
        text = self._text(Prompt("a"))
        ids = self.vocabulary.encode_parts([*text.head, text.document, *text.tail])
        return frozenset([*ids, self.end_id])

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about prompts that may surprise, to print when the model is loaded."""
        template, begin = self.chat_template, self.vocabulary.begin_id
        notes = []
        if template and begin is not None and begin not in self.template_ids:
            notes.append(
                f"{template.where}: prompts do not begin with {self.vocabulary.pieces[begin]!r}, since the "
                "chat template does not write it, as in transformers' apply_chat_template; a text "
                "outside the template would begin with it"
            )
        if template and template.has_date:
            notes.append(
                f"{template.where}: the chat template writes today's date, so prompts of another day "
                "have other ids"
            )
        return tuple(notes)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without control tokens."""
        return self.vocabulary.encode_text(text)

    def encode_prompt(self, prompt: Prompt | str, max_tokens: int) -> EncodedPrompt:
        """Returns at most `max_tokens` ids of a prompt; a longer prompt's document is truncated.

        If the prompt is too long without its document, the document is dropped and the end of the
        user's message is truncated. A chat template's text is never truncated.

        Raises:
            ValueError: the chat template alone is too long, or as in `ChatTemplate.parts`; or the
                prompt has a system message and the model has no chat template.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        text, (begin, end) = self._text(prompt), self.control_tokens
        budget = max(max_tokens - len(begin) - len(end), 0)
        ids, cut = self._cut_document(text, budget, prompt.keep_end)
        ids = self._cut_message(text, ids, budget)
        return EncodedPrompt([*begin, *ids, *end], cut)

    def encode_conversation(self, document: str, answer: str, max_tokens: int) -> EncodedPrompt:
        """Returns at most `max_tokens` ids of a prompt with its answer; a long document is truncated.

        With a chat template, these are the ids of the conversation that transformers'
        `apply_chat_template` gives, without a generation prompt. Without one, they are those of
        `encode_prompt` and `encode_completion`.

        Raises:
            ValueError: the answer is too long even without the document, or as in
                `ChatTemplate.parts`.
        """
        if self.chat_template is None:
            completion = self.encode_completion(answer)
            prompt = self.encode_prompt(document, max(max_tokens - len(completion), 0))
            whole = EncodedPrompt([*prompt.ids, *completion], prompt.cut)
        else:
            whole = self._cut_document(self._text(Prompt(document), answer), max_tokens)
        if len(whole.ids) > max_tokens:
            raise ValueError(
                f"a conversation has {len(whole.ids)} tokens without its document, and may have "
                f"{max_tokens}; the answer begins with {answer[:60]!r}"
            )
        return whole

    @property
    def ending(self) -> list[int]:
        """The ids after an answer to the end of a conversation, without any further message."""
        if self.chat_template is None:
            return [self.vocabulary.end_id]
        after = TextPart(self._conversation("b").after, has_control=True)
        return self._after(TextPart("b"), [after])

    def document_size(self, prompt: Prompt) -> int:
        """Returns the number of tokens by which `encode_prompt` can truncate the document."""
        text = self._text(prompt)
        ids = self._encode(*text.head, text.before, text.document, text.after, *text.tail)
        start, stop = self._document_span(text, ids)
        return stop - start

    def encode_completion(self, text: str) -> list[int]:
        """Returns the ids of a target completion, including the end token.

        With a chat template it is the assistant's answer to the end of its turn, encoded behind the
        prompt as in the whole conversation. Where the answer's first characters would form a token
        with the end of the prompt, as newlines do, the answer is encoded by itself, since a model
        generates it behind the prompt's last token.

        Raises:
            ValueError: as in `ChatTemplate.parts`; or the template writes something else between
                prompt and answer than after a prompt.
        """
        if self.chat_template is None:
            return [*self.encode(text), self.end_id]
        (end, _), answer = self._end_of_turn, TextPart(self._conversation(text).answer)
        ids = self._behind(*self._opening, answer, end)
        if ids is None:
            ids = [*self.encode(answer.text), *self._encode(end)]
        return ids if end.text else [*ids, self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids.

        Ids without text are skipped: padding, begin and end of sequence, sentinels, and ids of a
        padded embedding table beyond the vocabulary.
        """
        return self.vocabulary.decode(ids)

    @property
    def control_tokens(self) -> tuple[list[int], list[int]]:
        """The control token ids that are put before and after the text of a prompt."""
        if self.ends_prompts:
            return [], [self.vocabulary.end_id]
        begin = None if self.chat_template else self.vocabulary.begin_id
        return [] if begin is None else [begin], []

    def _encode(self, *parts: TextPart) -> list[int]:
        return self.vocabulary.encode_parts(parts)

    def _text(self, prompt: Prompt, answer: str | None = None) -> _PromptText:
        """Return the text of a prompt, in the chat template if there is one, and then of its answer."""
        before, after = prompt.around
        if self.chat_template is None:
            if prompt.system is not None:
                raise ValueError(
                    f"the prompt has a system message ({prompt.system[:60]!r}), and the model has no "
                    "chat template to put it in; write it into the prompt template instead"
                )
            return _PromptText([], *map(TextPart, (before, prompt.document, after)), [])
        system = [] if prompt.system is None else [Message("system", prompt.system)]
        answered = [] if answer is None else [Message("assistant", answer)]
        content = before + prompt.document + after
        messages = [*system, Message("user", content), *answered]
        parts = self.chat_template.parts(messages, answer=answer is None)
        at = [x.message for x in parts].index(len(system))
        texts = [TextPart(x.text, x.message is None) for x in parts]
        kept = parts[at].text
        # The template may have removed whitespace at the ends of the message.
        removed = content.index(kept)
        start = min(max(len(before) - removed, 0), len(kept))
        stop = min(max(len(before) + len(prompt.document) - removed, start), len(kept))
        inside = map(TextPart, (kept[:start], kept[start:stop], kept[stop:]))
        return _PromptText(texts[:at], *inside, texts[at + 1 :])

    def _cut_document(
        self, text: _PromptText, budget: int, keep_end: bool = False
    ) -> EncodedPrompt:
        """Return the ids of a text, whose document is cut by what exceeds the budget or dropped."""
        ids = self._encode(*text.head, text.before, text.document, text.after, *text.tail)
        if len(ids) <= budget:
            return EncodedPrompt(ids, 0)
        start, stop = self._document_span(text, ids)
        cut = min(len(ids) - budget, stop - start)
        kept = ids[start + cut : stop] if keep_end else ids[start : stop - cut]
        return EncodedPrompt([*ids[:start], *kept, *ids[stop:]], cut)

    def _document_span(self, text: _PromptText, ids: list[int]) -> tuple[int, int]:
        """Return the first and the last index + 1 of the document's ids.

        A token that spans template and document belongs to the document.
        """
        start = _common(self._encode(*text.head, text.before), ids)
        last = TextPart(text.document.text[-1:])
        tail = self._after(last, [text.after, *text.tail])
        return start, max(len(ids) - _common(tail[::-1], ids[::-1]), start)

    def _cut_message(self, text: _PromptText, ids: list[int], budget: int) -> list[int]:
        """Return the ids of a prompt of which the end of the user's message is cut to the budget."""
        if len(ids) <= budget:
            return ids
        if self.chat_template is None:
            return ids[:budget]
        head = _common(self._encode(*text.head), ids)
        message = text.before.text + text.document.text + text.after.text
        tail = _common(self._after(TextPart(message[-1:]), text.tail)[::-1], ids[::-1])
        if head + tail > budget:
            raise ValueError(
                f"{self.chat_template.where}: the chat template alone takes {head + tail} tokens of a "
                f"prompt, which may have {budget}; raise the limit (INPUTS)"
            )
        return [*ids[: budget - tail], *ids[len(ids) - tail :]]

    def _after(self, before: TextPart, parts: Sequence[TextPart]) -> list[int]:
        """Return the ids of parts after `before`, which may differ from those of the parts alone."""
        joined = self._encode(before, *parts)
        return joined[_common(self._encode(before), joined) :]

    def _behind(self, context: list[TextPart], *parts: TextPart) -> list[int] | None:
        """Return the ids of parts behind a context; None if a token spans both."""
        before, joined = self._encode(*context), self._encode(*context, *parts)
        return joined[len(before) :] if joined[: len(before)] == before else None

    def _conversation(self, answer: str) -> _Answer:
        """Return the text behind the user's message in a conversation that ends with an answer."""
        messages = [Message("user", "a"), Message("assistant", answer)]
        parts = self.chat_template.parts(messages, answer=False)
        user, assistant = ([x.message for x in parts].index(i) for i in (0, 1))
        joined = lambda some: "".join(x.text for x in some)
        header, after = parts[user + 1 : assistant], parts[assistant + 1 :]
        return _Answer(joined(header), parts[assistant].text, joined(after))

    @functools.cached_property
    def _end_of_turn(self) -> tuple[TextPart, int]:
        """What the template writes behind an answer up to the first control token, and its id.

        If it writes only whitespace, the text is empty and the id is the end-of-sequence id.

        Raises:
            ValueError: it writes other text without a control token, so that the end is not known.
        """
        after = self._conversation("b").after
        ids = self._after(TextPart("b"), [TextPart(after, has_control=True)])
        end_id = next((i for i in ids if i in self.vocabulary.control_ids), None)
        if end_id is None and after.strip():
            raise ValueError(
                f"{self.chat_template.where}: the chat template ends an answer with {after!r}, which has no "
                "special token of the tokenizer; declare the token that ends an answer as special "
                "(added_tokens in tokenizer.json), or name it as eos_token"
            )
        if end_id is None:
            return TextPart(""), self.vocabulary.end_id
        name = self.vocabulary.pieces[end_id]
        return TextPart(after[: after.index(name) + len(name)], has_control=True), end_id

    @functools.cached_property
    def _opening(self) -> tuple[list[TextPart], TextPart]:
        """The end of a prompt, and the whitespace between it and the answer.

        Raises:
            ValueError: see `encode_completion`.
        """
        messages = [Message("user", "a")]
        parts = self.chat_template.parts(messages, answer=True)
        header, prompt = self._conversation("b").header, "".join(x.text for x in parts)
        whole = self.chat_template.render([*messages, Message("assistant", "b")], answer=False)
        after = [x.message for x in parts].index(0) + 1
        asked = "".join(x.text for x in parts[after:])
        lead = header[len(asked) :]
        # What is more than whitespace, as Qwen 3's empty thoughts, is not a part of the answer.
        space = TextPart("" if lead.strip() else lead)
        context = [TextPart("a"), TextPart(asked, has_control=True)]
        joined = self._behind(context, space, TextPart("b")) is None
        if joined or not (whole.startswith(prompt) and header.startswith(asked)):
            raise ValueError(
                f"{self.chat_template.where}: completions cannot be put behind a prompt of this chat "
                f"template: a prompt ends with {asked!r}, a conversation continues with {header + 'b'!r}"
                f"{', of which one token spans the prompt and the answer' if joined else ''}"
            )
        return context, space


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return sum(itertools.takewhile(bool, same))


def check_template_ids(tokenizer: Tokenizer, rows: int, where: str) -> None:
    """Raises ValueError, naming the ids, if prompts need ids beyond the rows of a model's table."""
    missing = sorted(i for i in tokenizer.template_ids if i >= rows)
    if missing:
        listed = ", ".join(f"{i} ({tokenizer.vocabulary.pieces[i]!r})" for i in missing)
        raise ValueError(
            f"{where}: prompts and answers need the ids {listed}, and the model has {rows:,} ids only; "
            "use the tokenizer and chat template that the model was trained with"
        )


def tokenizer(
    vocabulary: Vocabulary | None,
    ends_prompts: bool = True,
    where: str = "this checkpoint",
    chat_template: str | None = None,
) -> Tokenizer:
    """Returns the tokenizer for a model's vocabulary.

    Args:
        vocabulary: vocabulary of the model; None if it is not known.
        ends_prompts: see `Tokenizer`.
        where: the checkpoint, for error messages.
        chat_template: source of the model's chat template; None for a model without one.

    Raises:
        ValueError: the vocabulary is None or has no end token, or the chat template is not valid or
            belongs to an encoder-decoder. Whether it ends answers is found when that is needed.
    """
    if vocabulary is None:
        raise ValueError(
            f"{where} does not say what its ids mean: it has no tokenizer.json, no spiece.model and no "
            "vocabulary in config.json (T5X checkpoints never have one). Name it: "
            "VOCABULARY and EXTRA_IDS in a run, "
            "load(path, vocabulary=SentencePieceVocabulary('spiece.model', extra_ids=100)) in "
            "Python, or once for all python -m dera_jax.checkpoints.convert --vocabulary"
        )
    check_end(vocabulary, where)
    if chat_template is None:
        return Tokenizer(vocabulary, ends_prompts)
    if ends_prompts:
        raise ValueError(
            f"{where} is an encoder-decoder with a chat template, which is not supported"
        )
    template = ChatTemplate(chat_template, *vocabulary.special_tokens, where)
    return Tokenizer(vocabulary, ends_prompts, template)
