"""Renders conversations by the chat templates that checkpoints hold, which are programs in Jinja.

The environment is that of transformers (`utils/chat_template_utils.py`). Templates come from strangers,
so they run in Jinja's immutable sandbox.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from dera_jax.checkpoints.storage import Folder, prefix_errors

TEMPLATE = "chat_template.jinja"
_MARK = "\ufdd0"  # a noncharacter: Unicode will never assign it


def stored_template(folder: Folder) -> str | None:
    """Returns the content of chat_template.jinja, or None; raises ValueError unless it is UTF-8."""
    if not folder.has(TEMPLATE):
        return None
    with prefix_errors(folder.path(TEMPLATE)):
        return folder.read(TEMPLATE).decode()


class Message(NamedTuple):
    """A message of a conversation; the role is 'system', 'user' or 'assistant'."""

    role: str
    content: str


class RenderedPart(NamedTuple):
    """A part of a rendered conversation.

    Attributes:
        text: the part.
        message: index of the message whose content the part is; None for the template's own text.
    """

    text: str
    message: int | None


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the special tokens that it can write.

    Attributes:
        source: the program.
        begin, end, padding, unknown: the tokens that the program reads as `bos_token`, `eos_token`,
            `pad_token` and `unk_token`; None for a token that the tokenizer does not have.
        where: the checkpoint, for error messages.

    Raises:
        ValueError: the source is not valid.
    """

    source: str
    begin: str | None = None
    end: str | None = None
    padding: str | None = None
    unknown: str | None = None
    where: str = "this checkpoint"

    def __post_init__(self):
        try:
            _compiled(self.source)
        except Exception as error:
            raise self._error("is not valid", error) from error

    @property
    def has_date(self) -> bool:
        """Whether the program reads the present date."""
        return "strftime_now" in self.source

    def render(self, messages: Sequence[Message], answer: bool) -> str:
        """Returns the text of a conversation.

        Args:
            messages: the conversation.
            answer: whether the text ends with the beginning of an answer by the assistant, as
                `add_generation_prompt` of transformers.

        Raises:
            ValueError: the template refuses the messages, as Mistral's refuses two messages of the
                user in a row; or it fails, or it does what the sandbox forbids.
        """
        tokens = {
            "bos_token": self.begin,
            "eos_token": self.end,
            "pad_token": self.padding,
            "unk_token": self.unknown,
        }
        try:
            return _compiled(self.source).render(
                messages=[message._asdict() for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=answer,
                **{name: token for name, token in tokens.items() if token is not None},
            )
        except Exception as error:  # a template can raise whatever an expression can
            roles = ", ".join(message.role for message in messages)
            raise self._error(f"cannot render the messages ({roles})", error) from error

    def parts(self, messages: Sequence[Message], answer: bool) -> list[RenderedPart]:
        """Returns the rendered conversation, split into the template's text and the contents.

        Contents are as the template writes them: it may remove whitespace at their ends.

        Args:
            messages, answer: see `render`.

        Raises:
            ValueError: as in `render`; or the template does not write each content exactly once, or
                changes one otherwise than by removing whitespace at its ends.
        """
        rendered = self.render(messages, answer)
        layout = _layout(self, tuple(message.role for message in messages), answer)
        for contents in itertools.product(*(_trimmed(x.content) for x in messages)):
            parts = [
                x if x.message is None else x._replace(text=contents[x.message]) for x in layout
            ]
            if "".join(part.text for part in parts) == rendered:
                return parts
        raise ValueError(
            f"{self.where}: the chat template changes the content of a message: {rendered[:200]!r}... "
            f"does not hold {' and '.join(repr(x.content[:60]) for x in messages)}; only whitespace at the "
            "ends may be removed"
        )

    def _error(self, problem: str, error: Exception) -> ValueError:
        text = f"{type(error).__name__}: {error}"
        return ValueError(f"{self.where}: the chat template {problem} ({text})")


@functools.lru_cache(maxsize=32)
def _layout(template: ChatTemplate, roles: tuple[str, ...], answer: bool) -> list[RenderedPart]:
    """Return the parts of a conversation with these roles; the texts of contents are placeholders."""
    messages = [Message(role, f"{_MARK}{i}{_MARK}") for i, role in enumerate(roles)]
    parts = re.split(f"{_MARK}([0-9]+){_MARK}", template.render(messages, answer))
    found = [int(i) for i in parts[1::2]]
    for i, role in enumerate(roles):
        if found.count(i) != 1:
            raise ValueError(
                f"{template.where}: the chat template writes the content of message {i + 1} of "
                f"{', '.join(roles)} ({role}) {found.count(i)} times; it must write it once"
            )
    return [
        RenderedPart(text, int(text) if i % 2 else None) for i, text in enumerate(parts) if text
    ]


def _trimmed(content: str) -> list[str]:
    """Return the content as templates write it: unchanged or without whitespace at its ends."""
    forms = [content]
    for characters in (None, "\n"):
        forms += [f(content, characters) for f in (str.strip, str.lstrip, str.rstrip)]
    return list(dict.fromkeys(forms))


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
    """Reads the tag `generation`, which marks what the assistant writes, and keeps its content."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(value: object, ensure_ascii: bool = False, **options: object) -> str:
    """Return JSON without Jinja's escapes of HTML and sorting of keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return _start().strftime(form)


@functools.cache
def _start() -> datetime.datetime:
    """Return the time of the first call, so that the prompts of one process have the same date."""
    return datetime.datetime.now()
