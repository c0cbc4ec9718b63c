"""Gives models that are decoded together one tokenizer, and restricts them to the ids that all have.

The folders of a base and of the model tuned from it may differ: in chat template, end ids, added
tokens and rows of the tables. Tokenizer, chat template and end ids are those of one of them, the
source: the first aligned model unless `template_from` names another. An id that a model lacks, since
its tokenizer does not assign it, is never produced, and prompts and end ids must do without it.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.vocabulary import NO_PIECE, Vocabulary, check_shared

REFERENCE = "reference"
_LISTED = 8  # ids in a message, at most


def source_index(template_from: str | int | None, names: Sequence[str]) -> int:
    """Returns the index of the source among models, reference first.

    Args:
        template_from: 'reference', the number of a model (0 for the reference), or its path; None
            for the first aligned model.
        names: paths of the models.

    Raises:
        ValueError: `template_from` names no model.
    """
    if template_from is None:
        return min(1, len(names) - 1)
    if template_from == REFERENCE:
        return 0
    if type(template_from) is int and 0 <= template_from < len(names):
        return template_from
    if str(template_from) in names:
        return names.index(str(template_from))
    raise ValueError(
        f"template_from must be {REFERENCE!r}, the number of a model from 0 (the reference) to "
        f"{len(names) - 1}, or one of the paths {', '.join(map(repr, names))}; found {template_from!r}"
    )


def with_known_vocabulary(
    loaded: Sequence[LoadedModel],
    names: Sequence[str],
    source: int,
    given: Vocabulary | None,
    name: str,
) -> list[LoadedModel]:
    """Gives a vocabulary to the models whose checkpoints hold none.

    It is the source's, another model's, or `given`, which must be equal to the first of these.

    Args:
        loaded, names: the models and their paths.
        source: index of the source.
        given: vocabulary of the data; None if the data are text.
        name: name of the data, for error messages.

    Returns:
        The models; unchanged if no vocabulary is known.

    Raises:
        ValueError: as in `LoadedModel.with_vocabulary`.
    """
    order = [source, *range(len(loaded))]
    first = next((i for i in order if loaded[i].vocabulary), None)
    if first is not None:
        own = loaded[first].with_vocabulary(given, name)
        loaded = [*loaded[:first], own, *loaded[first + 1 :]]
        given, name = (own.vocabulary, names[first]) if given is None else (given, name)
    if given is None:
        return list(loaded)
    return [x.with_vocabulary(given, name) if x.vocabulary is None else x for x in loaded]


def share_tokenizer(
    loaded: Sequence[LoadedModel], names: Sequence[str], source: int
) -> list[LoadedModel]:
    """Returns the models with the source's tokenizer, chat template and end ids.

    They produce only the ids that all of them have. What differs between them is printed to stderr.

    Args:
        loaded, names: the models, all with a vocabulary, and their paths.
        source: index of the source.

    Raises:
        ValueError: an id that two models share does not mean the same, see `check_shared`; or a
            model lacks an id that the source's prompts, completions or end ids need.
    """
    pieces = _pieces(loaded)
    for i, x in enumerate(loaded):
        if i != source:
            first, second = sorted((i, source))
            vocabularies = (loaded[k].vocabulary for k in (first, second))
            check_shared(*vocabularies, names[first], names[second])
            _check_needed(x, loaded[source], pieces, (repr(REFERENCE) if i == 0 else i, names[i]))
    shared = [_restricted(x, loaded, source) for x in loaded]
    for line in _differences(loaded, shared, names, source):
        print(line, file=sys.stderr)
    return shared


def _num_ids(x: LoadedModel) -> int:
    """Return the number of ids, `unused_ids` included, that a model may produce."""
    return x.model.vocab_size if x.model.num_ids is None else x.model.num_ids


def _has(x: LoadedModel, i: int) -> bool:
    return i < _num_ids(x) and i not in x.model.unused_ids


def _pieces(loaded: Sequence[LoadedModel]) -> dict[int, str]:
    """Return the piece of every id that a tokenizer assigns."""
    vocabularies = (x.vocabulary for x in loaded)
    return {i: x for v in vocabularies for i, x in enumerate(v.pieces) if x != NO_PIECE}


def _check_needed(
    x: LoadedModel, source: LoadedModel, pieces: Mapping[int, str], called: tuple[object, str]
) -> None:
    """Raise ValueError if a model, called by number and name, lacks an id that the source needs."""
    needed = source.tokenizer.template_ids.union(source.model.end_ids)
    missing = sorted(i for i in needed if _has(source, i) and not _has(x, i))
    if missing:
        raise ValueError(
            f"the prompts, answers or end ids need the ids {_listed(missing, pieces)}, which {called[1]} "
            f"lacks; set template_from={called[0]} (TEMPLATE_FROM in a run), so that tokenizer, chat "
            "template and end ids are those of that model"
        )


def _restricted(x: LoadedModel, loaded: Sequence[LoadedModel], source: int) -> LoadedModel:
    """Return a model with the source's tokenizer and end ids, and the ids that all models have."""
    common = min(map(_num_ids, loaded))
    unused = sorted({i for other in loaded for i in other.model.unused_ids if i < common})
    model = dataclasses.replace(
        x.model,
        config=dataclasses.replace(x.model.config, end_ids=loaded[source].model.end_ids),
        num_ids=common if common < x.model.vocab_size else None,
        unused_ids=tuple(unused),
    )
    text = {"vocabulary": loaded[source].vocabulary, "chat_template": loaded[source].chat_template}
    return dataclasses.replace(x, model=model, **text)


def _differences(
    loaded: Sequence[LoadedModel], shared: Sequence[LoadedModel], names: Sequence[str], source: int
) -> Iterator[str]:
    """Yield lines about what differs between the models; none if nothing does."""
    pieces = _pieces(loaded)
    described = [_described(x, pieces) for x in loaded]
    different = [key for key in described[0] if len({x[key] for x in described}) > 1]
    if not different:
        return
    yield f"{' | '.join(names)}: these models differ in"
    for key in different:
        yield f"  {key}: {' | '.join(x[key] for x in described)}"
    yield f"  tokenizer, chat template and end ids are those of {names[source]}"
    limit = _num_ids(shared[0])
    if limit < max(x.model.vocab_size for x in shared):
        yield f"  the ids from {limit:,} on are never produced, since not all tokenizers assign them"
    if lacking := [i for i in sorted(pieces) if not _has(shared[0], i)]:
        yield f"  tokens that are never produced, since a model lacks them: {_listed(lacking, pieces)}"


def _described(x: LoadedModel, pieces: Mapping[int, str]) -> dict[str, str]:
    """Return the properties in which models may differ, as text."""
    begin, special = x.vocabulary.begin_id, x.vocabulary.special_tokens._asdict().items()
    return {
        "chat template": "none" if x.chat_template is None else _hashed(x.chat_template),
        "end ids": _listed(x.model.end_ids, pieces),
        "token before prompts": "none" if begin is None else repr(pieces[begin]),
        "special tokens": ", ".join(f"{role} {token!r}" for role, token in special if token),
        "ids of the tokenizer": f"{len(x.vocabulary.pieces):,}",
        "rows of the embedding tables": f"{x.model.vocab_size:,}",
    }


def _hashed(text: str) -> str:
    return f"{len(text):,} characters, SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:8]}…"


def _listed(ids: Sequence[int], pieces: Mapping[int, str]) -> str:
    """Return ids with their pieces, at most `_LISTED` of them."""
    more = f" and {len(ids) - _LISTED:,} more" * (len(ids) > _LISTED)
    return ", ".join(f"{i} ({pieces.get(i, NO_PIECE)!r})" for i in ids[:_LISTED]) + more
