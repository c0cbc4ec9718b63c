"""Converts a supported checkpoint to a dera_jax or a Hugging Face transformers folder."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dera_jax import command_line

if TYPE_CHECKING:
    from dera_jax.checkpoints.vocabulary import Vocabulary

KINDS = ("dera_jax", "hugging_face")
DTYPES = ("float32", "bfloat16")
_EXAMPLES = (
    "dera-jax convert t5_1_1_small/checkpoint_1000000 t5_small --vocabulary sentencepiece.model --extra_ids 100",
    "dera-jax convert my_reference exported --to hugging_face",
    "dera-jax convert exported my_half --dtype bfloat16",
)


def convert(
    source: str,
    target: str,
    to: str = KINDS[0],
    dtype: str = DTYPES[0],
    vocabulary: "Vocabulary | None" = None,
) -> None:
    """Converts a checkpoint and writes it to `target`, completely or not at all.

    Args:
        source: path, URL or hub name of the checkpoint, see `loading.load`.
        target: folder to create.
        to: format to write, one of KINDS.
        dtype: dtype of the stored parameters, one of DTYPES.
        vocabulary: vocabulary of the model; needed where the source holds none.

    Raises:
        FileExistsError: `target` exists.
        FileNotFoundError, ValueError: as in `loading.load`.
        ValueError, OSError: as in `output_folder`.
    """
    # Imported here, so that --help needs no JAX.
    from dera_jax.checkpoints.hugging_face import save_hugging_face
    from dera_jax.checkpoints.loading import load, read_config
    from dera_jax.files.destinations import output_folder

    if output_folder(target).exists():
        raise FileExistsError(f"{target} exists; choose another folder, or remove it")
    loaded = load(source, vocabulary=vocabulary, dtype=dtype)
    activations = read_config(source).dtype  # what is stored in bfloat16 may be computed in float32
    config = dataclasses.replace(loaded.model.config, dtype=activations)
    loaded = dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, config=config))
    if to == KINDS[0]:
        loaded.save(Path(target), loaded.params, loaded.card, dtype)
    else:
        content = loaded.model.config, loaded.vocabulary, loaded.params
        save_hugging_face(Path(target), *content, dtype, loaded.chat_template)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = _parser().parse_args(argv)
    arguments = options.source, options.target, options.to, options.dtype

    def run() -> None:
        from dera_jax.checkpoints.named_vocabulary import named_vocabulary

        convert(*arguments, named_vocabulary(options.vocabulary, options.extra_ids))

    command_line.run(run, lambda: options.target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dera-jax convert",
        description=__doc__,
        epilog="\n".join(["examples:", *(f"  {line}" for line in _EXAMPLES)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        help="path or URL of a T5X, Hugging Face or dera_jax checkpoint, or owner/name on the Hugging Face hub",
    )
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--to", choices=KINDS, default=KINDS[0], help="format to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="dtype of the stored parameters",
    )
    parser.add_argument(
        "--vocabulary",
        help="vocabulary of a checkpoint that holds none: a SentencePiece file (….model), a "
        "tokenizer.json, 'bytes' for ByT5, a model folder, or owner/name on the Hugging Face hub",
    )
    parser.add_argument(
        "--extra_ids",
        "--extra-ids",
        type=int,
        default=0,
        help="number of sentinels that the file does not hold",
    )
    return parser


if __name__ == "__main__":
    main()
