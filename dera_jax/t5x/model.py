"""Defines a T5X model of two towers that decodes with this library instead of T5X's loop."""

from collections.abc import Mapping

import jax
from flax import core
from jax import Array
from t5x import models

from dera_jax.checkpoints.resources import RunResources
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.data import seqio_tasks
from dera_jax.data.seqio_extra import seqio
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import PyTree
from dera_jax.models.t5_lm import T5
from dera_jax.t5x.decoders import Decoder, Task
from dera_jax.t5x.two_towers import TOWERS, TwoTowers


class RealignedModel(models.EncoderDecoderModel):
    """Predicts with a decoder of this library; otherwise a t5x.models.EncoderDecoderModel.

    Scoring is T5X's own, at the λ of the module; prediction uses the λ of the decoder.
    """

    def __init__(
        self,
        module: TwoTowers,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer_def: object,
        decoder: Decoder,
    ):
        """Raises ValueError for a reward on the host, since T5X compiles the whole step."""
        reward = getattr(decoder, "reward", None)
        if reward is not None and reward.on_host:
            raise ValueError(
                f"{reward} is computed in Python, which T5X's compiled step cannot call; use a "
                "compiled reward, or dera_jax.main, which computes rewards between compiled calls"
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
        """Return tokens [B, T], or [B, K, T] if the decoder gives K > 1 outputs, and `Decoded.aux`.

        T is the length of the batch's targets. T5X's `rng` is the same in every run and is not
        used, since the decoder has its own seed.

        Raises:
            ValueError: an argument of T5X's own decoding is given, or the vocabulary has no end
                token.
        """
        del rng
        t5x_options = decoder_params, return_all_decodes, num_decodes, prompt_with_targets or None
        if any(x is not None for x in t5x_options):
            raise ValueError(
                "RealignedModel: decoder_params, return_all_decodes, num_decodes and "
                "prompt_with_targets are not supported; configure RealignedModel.decoder instead"
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
        result = decoded.tokens, dict(decoded.aux)
        return jax.tree.map(lambda x: x[:, 0], result) if decoded.tokens.shape[1] == 1 else result


def _end_id(vocabulary: seqio.Vocabulary) -> int:
    """Return the end token of a vocabulary; raises ValueError if there is none above id 0."""
    end = vocabulary.eos_id
    if end is None or end < 1:
        raise ValueError(
            f"RealignedModel: the output vocabulary {vocabulary} has no end token above id 0 "
            f"(eos_id is {end}); choose a vocabulary that has one"
        )
    return end


def _known(vocabulary: seqio.Vocabulary) -> Vocabulary | None:
    """Return None for a pass-through vocabulary, which only rewards of token ids support."""
    if isinstance(vocabulary, seqio.PassThroughVocabulary):
        return None
    return seqio_tasks.as_stored(vocabulary)
