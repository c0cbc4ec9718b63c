"""Defines prompts, which insert a document into the slot of a prompt template.

A template is the text of the user's message. `checkpoints.tokenizer` adds the model's control
tokens, or puts the messages into the model's chat template.
"""

import dataclasses
import re
from collections.abc import Mapping

from dera_jax import checks

DOCUMENT, KEYWORDS = "{document}", "{keywords}"
SUMMARIZE = "summarize: {document}"  # the prefix that T5 was trained with


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Holds a document and the prompt template for it.

    Attributes:
        document: text of the document.
        template: the instruction, with the slot {document} exactly once and optional slots
            {keywords}.
        keywords: keywords of the document.
        keep_end: whether a document that is too long is truncated at its beginning instead of its
            end, as for a dialogue.
        system: text of the system message before the user's, for models with a chat template; None
            for no such message, so that a chat template may write its own.

    Raises:
        ValueError: a field has another type, or the template does not have the slot {document}
            exactly once.
    """

    document: str
    template: str = DOCUMENT
    keywords: tuple[str, ...] = ()
    keep_end: bool = False
    system: str | None = None

    def __post_init__(self):
        keywords = checks.sequence(checks.STRING, "('tax',)", least=0)
        checks.check_fields(
            self,
            document=checks.STRING,
            template=checks.TEXT,
            keywords=keywords,
            keep_end=checks.FLAG,
            system=checks.optional(checks.TEXT),
        )
        check_template(self.template, "Prompt")

    @property
    def around(self) -> tuple[str, str]:
        """The texts before and after the document, with the keywords filled in."""
        before, after = self.template.split(DOCUMENT)
        keywords = {KEYWORDS: ", ".join(self.keywords)}
        return fill(before, keywords), fill(after, keywords)

    def render(self) -> str:
        """Returns the text of the user's message; braces in the values are kept as text."""
        before, after = self.around
        return before + self.document + after


def check_template(template: str, name: str) -> None:
    """Checks that a template has the slot {document} exactly once; `name` starts the message.

    Raises:
        ValueError: the template is not a non-empty string, or has no or several slots {document}.
    """
    checks.check(f"{name}: the template", template, checks.TEXT)
    check_slots(template, f"{name}: the template", DOCUMENT)
    if template.count(DOCUMENT) > 1:
        raise ValueError(
            f"{name}: the template {template!r} has two slots {DOCUMENT} or more; keep exactly one."
        )


def check_slots(template: str, name: str, *slots: str) -> None:
    """Raises ValueError if a template lacks one of the slots; `name` starts the message."""
    for slot in slots:
        if slot not in template:
            raise ValueError(
                f"{name} {template!r} has no slot {slot}; insert {slot} where the text belongs."
            )


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns the template with all slots replaced at once, so slots in the values are kept."""
    slots = "|".join(map(re.escape, values))
    return re.sub(slots, lambda slot: values[slot[0]], template)
