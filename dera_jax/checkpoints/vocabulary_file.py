"""What vocabularies that are one file have in common."""

import hashlib
from pathlib import Path

from dera_jax.checkpoints.storage import read_file


class VocabularyFile:
    """Gives name, content and hash of the vocabulary's `file`, a field of the class that extends it."""

    file: str

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return Path(self.file).name

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file's content, in hexadecimal."""
        return hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """Returns the file's content; raises as `storage.read_file`."""
        return read_file(self.file)
