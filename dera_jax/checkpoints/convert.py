"""Rewrites any checkpoint that is known as a folder of ours, or of Hugging Face's transformers.

python -m dera_jax.checkpoints.convert gs://bucket/t5_1_1_small/checkpoint_1000000 t5_small \
    --vocabulary sentencepiece.model
python -m dera_jax.checkpoints.convert dera_jax/assets/aligned exported --to hugging_face
"""

import argparse
from pathlib import Path

from dera_jax import command_line
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.destinations import output_folder

KINDS = ("dera_jax", "hugging_face")
DTYPES = ("float32", "bfloat16")
BYTES = "bytes"


def convert(
    source: str,
    target: str,
    to: str = KINDS[0],
    dtype: str = DTYPES[0],
    vocabulary: Vocabulary | None = None,
) -> None:
    """Writes `target` complete or not at all.

    Args:
        source: see `loading.load`.
        target: a folder to be made.
        to: one of KINDS.
        dtype: of the stored parameters, one of DTYPES.
        vocabulary: what the ids mean, where the source does not say.

    Raises:
        FileExistsError: `target` exists.
        FileNotFoundError, ValueError: as `loading.load`.
        ValueError, OSError: as `output_folder`.
    """
    if output_folder(target).exists():
        raise FileExistsError(f"{target} exists; choose another folder, or remove it")
    found = load(source, vocabulary=vocabulary, dtype=dtype)
    content = found.model.config, found.vocabulary, found.params
    if to == KINDS[0]:
        save_model(Path(target), *content, found.card, dtype)
    else:
        save_hugging_face(Path(target), *content, dtype)


def _vocabulary(file: str | None, extra_ids: int) -> Vocabulary | None:
    if file is None:
        return None
    if file == BYTES:
        return ByteVocabulary(extra_ids)
    if file.endswith(".json"):
        return JsonVocabulary(file)
    return SentencePieceVocabulary(file, extra_ids)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="checkpoint: T5X's, Hugging Face's or ours; path or URL")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--to", choices=KINDS, default=KINDS[0], help="what to write")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of what is written")
    parser.add_argument(
        "--vocabulary",
        help="of a checkpoint that does not hold it: a SentencePiece file, a tokenizer.json, or "
        f"'{BYTES}' for ByT5's",
    )
    parser.add_argument(
        "--extra_ids", type=int, default=0, help="sentinels that are not pieces of that file"
    )
    options = parser.parse_args()
    vocabulary = _vocabulary(options.vocabulary, options.extra_ids)
    arguments = options.source, options.target, options.to, options.dtype, vocabulary
    command_line.run(lambda: convert(*arguments), lambda: options.target)


if __name__ == "__main__":
    main()
