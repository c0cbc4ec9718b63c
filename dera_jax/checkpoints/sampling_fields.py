"""Says which sampling fields of a published model are not applied.

They would make the sampled distribution another one than the models' mixture, so only a run sets such values.
"""

from collections.abc import Mapping

# Fields of generation_config.json that change what is sampled, with the value that changes nothing.
FIELDS = {
    "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": 1,
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "length_penalty": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "min_length": 0, "min_new_tokens": 0, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0, "penalty_alpha": 0, "guidance_scale": 1, "suppress_tokens": None,
    "begin_suppress_tokens": None, "bad_words_ids": None, "sequence_bias": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "watermarking_config": None,
}  # fmt: skip
_OF_RUNS = ("temperature", "temp", "top_k", "top_p")


def effective(settings: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of a generation_config.json that change what is sampled."""
    found = {name: settings.get(name) for name in FIELDS}
    return {name: x for name, x in found.items() if x is not None and x != FIELDS[name]}


def notes(where: str, fields: Mapping[str, object]) -> tuple[str, ...]:
    """Returns sentences about sampling fields that are not applied: those a run can set, and the others.

    Args:
        where: the file, for the message.
        fields: values by name; what stands before the last dot of a name is not compared.
    """
    settable = {x: value for x, value in fields.items() if x.rpartition(".")[2] in _OF_RUNS}
    others = {x: value for x, value in fields.items() if x not in settable}
    sentences = (
        (settable, "not applied; set them in the run to apply them"),
        (others, "not applied, and not supported"),
    )
    return tuple(
        f"{where}: {', '.join(f'{x} {value}' for x, value in found.items())}: {what}"
        for found, what in sentences
        if found
    )
