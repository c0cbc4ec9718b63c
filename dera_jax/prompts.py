"""What a model is asked about a document: a template with one slot for it.

Templates are the user's message as plain text. Which control tokens surround it is the model's
business, see `checkpoints.tokenizer`.
"""

import dataclasses
import re
from collections.abc import Mapping

from dera_jax import checks

DOCUMENT, KEYWORDS = "{document}", "{keywords}"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An instruction and the document that it is about.

    Attributes:
        document: its text.
        template: the instruction; has the slot {document} once, and may have {keywords}.
        keywords: of the document.
        keep_end: of a document that is too long the beginning is cut, not the end (a dialogue).

    Raises:
        ValueError: the template does not have the slot {document} once.
    """

    document: str
    template: str = DOCUMENT
    keywords: tuple[str, ...] = ()
    keep_end: bool = False

    def __post_init__(self):
        keywords = checks.several(checks.STRING, "('tax',)", least=0)
        checks.check_fields(
            self,
            document=checks.STRING,
            template=checks.TEXT,
            keywords=keywords,
            keep_end=checks.FLAG,
        )
        check_template(self.template, "Prompt")

    @property
    def around(self) -> tuple[str, str]:
        """The texts before and after the document."""
        before, after = self.template.split(DOCUMENT)
        keywords = {KEYWORDS: ", ".join(self.keywords)}
        return fill(before, keywords), fill(after, keywords)

    def render(self) -> str:
        """The template with its slots filled; braces in the document or the keywords mean nothing."""
        before, after = self.around
        return before + self.document + after


def check_template(template: str, name: str) -> None:
    """Raises ValueError unless the template is a string with the slot {document} once."""
    checks.check(f"{name}: the template", template, checks.TEXT)
    check_slots(template, f"{name}: the template", DOCUMENT)
    if template.count(DOCUMENT) > 1:
        raise ValueError(f"{name}: the template {template!r} has two slots {DOCUMENT}; leave one.")


def check_slots(template: str, name: str, *slots: str) -> None:
    """Raises ValueError for a slot that is not there."""
    for slot in slots:
        if slot not in template:
            raise ValueError(f"{name} {template!r} has no slot {slot}; put it where it belongs.")


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its slots replaced, all at once: what a value holds is left alone."""
    slots = "|".join(map(re.escape, values))
    return re.sub(slots, lambda slot: values[slot[0]], template)
