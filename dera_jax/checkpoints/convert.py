"""Rewrites any checkpoint that is known as a folder of ours, or of Hugging Face's transformers.

python -m dera_jax.checkpoints.convert gs://bucket/t5_1_1_small/checkpoint_1000000 t5_small \
    --vocabulary sentencepiece.model
python -m dera_jax.checkpoints.convert dera_jax/assets/aligned exported --to hugging_face
"""

import argparse
from pathlib import Path

from dera_jax import command_line
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.named_vocabulary import BYTES, named_vocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.destinations import output_folder

KINDS = ("dera_jax", "hugging_face")
DTYPES = ("float32", "bfloat16")


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
        help="of a checkpoint that does not hold it: a SentencePiece file (….model), a tokenizer.json, "
        f"'{BYTES}' for ByT5's, or a model's folder",
    )
    parser.add_argument(
        "--extra_ids", type=int, default=0, help="sentinels that are not pieces of that file"
    )
    options = parser.parse_args()
    arguments = options.source, options.target, options.to, options.dtype

    def run() -> None:
        convert(*arguments, named_vocabulary(options.vocabulary, options.extra_ids))

    command_line.run(run, lambda: options.target)


if __name__ == "__main__":
    main()
