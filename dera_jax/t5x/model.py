"""A T5X model over two towers that decodes with this library instead of T5X's loop."""

from collections.abc import Mapping

import jax
import seqio
from flax import core
from jax import Array
from t5x import models

from dera_jax import seqio_tasks
from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import PyTree
from dera_jax.models.t5_lm import T5
from dera_jax.t5x.decoders import Decoder, Task
from dera_jax.t5x.two_towers import TOWERS, TwoTowers


class RealignedModel(models.EncoderDecoderModel):
    """t5x.models.EncoderDecoderModel whose predictions are a decoder's.

    Scoring is T5X's own, over the mixture at the module's λ; prediction uses the decoder's λ.
    """

    def __init__(
        self,
        module: TwoTowers,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer_def: object,
        decoder: Decoder,
    ):
        """Raises ValueError for a reward in Python: T5X compiles the whole step."""
        reward = getattr(decoder, "reward", None)
        if reward is not None and reward.on_host:
            raise ValueError(
                f"{reward} calls Python, which T5X's compiled step cannot; use a compiled reward, or "
                "dera_jax.main, which judges between compiled calls"
            )
        super().__init__(module, input_vocabulary, output_vocabulary, optimizer_def)
        self._decoder = decoder

    def predict_batch_with_aux(
        self,
        params: PyTree,
        batch: Mapping[str, Array],
        rng: Array | None = None,
        decoder_params: Mapping[str, object] | None = None,
        return_all_decodes: bool | None = None,
        num_decodes: int | None = None,
        prompt_with_targets: bool = False,
    ) -> tuple[Array, Mapping[str, Array]]:
        """Tokens [B, T], or [B, K, T] of a decoder that gives K > 1 texts; and `Decoded.aux`.

        T is the length of the batch's targets. T5X's `rng` is the same in every run and is not used:
        the decoder has a seed.

        Raises:
            ValueError: an argument that belongs to T5X's own decoding, or a vocabulary without an
                end of sequence.
        """
        del rng
        theirs = decoder_params, return_all_decodes, num_decodes, prompt_with_targets or None
        if any(x is not None for x in theirs):
            raise ValueError(
                "RealignedModel: decoding is set by its decoder, not by decoder_params"
            )
        task = Task(
            inputs=batch["encoder_input_tokens"],
            targets=batch["decoder_target_tokens"],
            max_length=batch["decoder_input_tokens"].shape[-1],
            end_ids=(_end_id(self.output_vocabulary),),
            resources=RunResources(_known(self.output_vocabulary)),
        )
        config, params = self.module.config, core.unfreeze(params)
        size = self.output_vocabulary.vocab_size
        tower = T5(config, num_ids=size if size < config.vocab_size else None)
        pair = tuple(params[name] for name in TOWERS)
        decoded = self._decoder(Realigned(tower, (tower,)), pair, task)
        found = decoded.tokens, dict(decoded.aux)
        return jax.tree.map(lambda x: x[:, 0], found) if decoded.tokens.shape[1] == 1 else found


def _end_id(vocabulary: seqio.Vocabulary) -> int:
    """Raises ValueError where the vocabulary has no end of sequence."""
    end = vocabulary.eos_id
    if end is None or end < 1:
        raise ValueError(
            f"RealignedModel: its output vocabulary {vocabulary} has no end of sequence above id 0 "
            f"(eos_id is {end}); give one that has"
        )
    return end


def _known(vocabulary: seqio.Vocabulary) -> Vocabulary | None:
    """None for ids without a text, of which only rewards of ids can be computed."""
    if isinstance(vocabulary, seqio.PassThroughVocabulary):
        return None
    return seqio_tasks.as_stored(vocabulary)
