"""T5 in Hugging Face torch, and a pair of them mixed by a logits processor.

The other side of `decode_speed.py`, written as a careful user of `generate` would write it: both
models keep their caches, both see the encoder's mask, nothing records gradients. `convert` gives
the same parameters to our T5, so that the two sides can be held against each other first.

Axes: B prompts, S prompt length, T new tokens, V vocabulary.
"""

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessor, T5ForConditionalGeneration

from dera_jax.models.language_model import Prompts
from dera_jax.models.t5 import T5Config

ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


def random_model(config: T5Config, seed: int) -> T5ForConditionalGeneration:
    """A T5 of these sizes with random parameters that never ends a text by itself."""
    torch.manual_seed(seed)
    tied = config.logits_via_embedding
    model = T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            num_heads=config.num_heads,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            feed_forward_proj="relu" if config.mlp_activations == ("relu",) else "gated-gelu",
            tie_word_embeddings=tied,
            decoder_start_token_id=0,
        )
    )
    if tied:
        # An untrained T5 1.0 repeats its input token for ever; a smaller table, shorter than what
        # the layers add to it, makes greedy texts worth comparing.
        model.shared.weight.data *= 0.1
    else:
        # transformers 5 ties the matrices of every new T5, also of 1.1; a loaded one is untied.
        logits_matrix = torch.randn(config.vocab_size, config.emb_dim) * config.emb_dim**-0.5
        model.lm_head.weight = torch.nn.Parameter(logits_matrix)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:  # all ones at first, which would hide a misplaced one
                parameter.uniform_(0.5, 1.5)
    model.generation_config.eos_token_id = None
    return model.eval()


def convert(model: T5ForConditionalGeneration) -> dict:
    """Our parameter tree, float32 NumPy arrays, of a T5 1.0 or 1.1."""
    tree = {
        "token_embedder": {"embedding": _array(model.shared)},
        "encoder": _stack(model.encoder, "encoder"),
        "decoder": _stack(model.decoder, "decoder"),
    }
    if model.lm_head.weight is not model.shared.weight:
        tree["decoder"]["logits_dense"] = _dense(model.lm_head)
    return tree


def _stack(stack, name: str) -> dict:
    first = stack.block[0].layer[0].SelfAttention
    layers = {f"layers_{i}": _layer(block.layer) for i, block in enumerate(stack.block)}
    return layers | {
        "relpos_bias": {"rel_embedding": _array(first.relative_attention_bias).T},
        f"{name}_norm": _norm(stack.final_layer_norm),
    }


def _layer(parts) -> dict:
    """Two sublayers in the encoder; three, with cross-attention in the middle, in the decoder."""
    own, mlp = parts[0], parts[-1]
    dense = {name: _dense(x) for name, x in mlp.DenseReluDense.named_children() if "w" in name}
    tree = {"mlp": dense, "pre_mlp_layer_norm": _norm(mlp.layer_norm)}
    if len(parts) == 2:
        return tree | {
            "attention": _attention(own.SelfAttention),
            "pre_attention_layer_norm": _norm(own.layer_norm),
        }
    return tree | {
        "self_attention": _attention(own.SelfAttention),
        "pre_self_attention_layer_norm": _norm(own.layer_norm),
        "encoder_decoder_attention": _attention(parts[1].EncDecAttention),
        "pre_cross_attention_layer_norm": _norm(parts[1].layer_norm),
    }


def _attention(module) -> dict:
    return {ours: _dense(getattr(module, theirs)) for theirs, ours in ATTENTION.items()}


def _dense(linear) -> dict:
    return {"kernel": _array(linear).T}


def _norm(module) -> dict:
    return {"scale": _array(module)}


def _array(module) -> np.ndarray:
    return module.weight.detach().numpy()


class Realign(LogitsProcessor):
    """Turns the aligned model's logits into h_λ = λ·h + (1 − λ)·h_ref.

    Made anew for every `generate`: it holds the reference's encoder output and cache.
    """

    def __init__(self, reference: T5ForConditionalGeneration, prompts: dict, lam: float):
        self.reference, self.lam, self.cache = reference, lam, None
        self.mask = prompts["attention_mask"]
        self.encoded = reference.get_encoder()(**prompts)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids[B, tokens so far], scores[B, V] of the aligned model -> scores[B, V]."""
        output = self.reference(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=input_ids[:, -1:],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        return self.lam * scores + (1 - self.lam) * output.logits[:, -1]


@torch.inference_mode()
def generate(models, prompts: Prompts, lam: float, settings: GenerationConfig) -> torch.Tensor:
    """What `model.generate` gives for B prompts.

    Args:
        models: one model, or the reference and the aligned one.
        prompts: B of them; their λ is not read.
        lam: λ of the pair.
        settings: from `generation_settings`.
    """
    given = _torch(prompts)
    processors = [Realign(models[0], given, lam)] if len(models) > 1 else []
    return models[-1].generate(**given, generation_config=settings, logits_processor=processors)


def generation_settings(num_tokens: int, greedy: bool, scores: bool = False) -> GenerationConfig:
    """`num_tokens` new tokens, untruncated, temperature 1; with `scores`, logits are returned."""
    return GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=not greedy,
        top_k=None if greedy else 0,  # the default would be 50
        eos_token_id=None,
        pad_token_id=0,
        decoder_start_token_id=0,
        return_dict_in_generate=scores,
        output_scores=scores,
    )


@torch.inference_mode()
def teacher_forced(model, prompts: Prompts, decoder_inputs: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of B prompts and decoder_inputs[B, T]."""
    decoder_inputs = torch.as_tensor(decoder_inputs).long()
    return model(**_torch(prompts), decoder_input_ids=decoder_inputs).logits.numpy()


def _torch(prompts: Prompts) -> dict[str, torch.Tensor]:
    """Ids and mask [B, S] as arguments of a torch model."""
    names = {"input_ids": prompts.tokens, "attention_mask": prompts.mask}
    return {name: torch.as_tensor(np.array(x)).long() for name, x in names.items()}
