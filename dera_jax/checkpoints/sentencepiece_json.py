"""Converts the SentencePiece file of a decoder-only model to a tokenizer.json.

Llama 1 and 2, Mistral and Zephyr have such files: BPE whose merges are ordered by the scores of the
pieces, bytes for characters without a piece, and no normalization but ▁ for spaces.
"""

from collections.abc import Iterator, Mapping, Sequence

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, pre_tokenizers

_Model = sentencepiece_model_pb2.ModelProto
_Piece = _Model.SentencePiece
_SPACE = "▁"


def read_pieces(content: bytes, where: str) -> _Model:
    """Returns the message in a SentencePiece file; raises ValueError if it is none."""
    try:
        model = _Model.FromString(content)
    except DecodeError as error:
        raise ValueError(f"{where} is no SentencePiece model ({error})") from error
    if not model.pieces:  # an empty file is a valid message
        raise ValueError(f"{where} is no SentencePiece model: it has no pieces")
    return model


def tokenizer_json(
    model: _Model, added: Mapping[int, AddedToken], prefix: str | None, where: str
) -> str:
    """Returns the content of the tokenizer.json with the same ids, as by transformers 5.

    In contrast to SentencePiece, a text that begins with a space gets no further one.

    Args:
        model: content of the SentencePiece file.
        added: added tokens by id; those of the file's ids replace its pieces.
        prefix: before which texts a space is put, 'first' (of a sequence), 'always' (also behind
            control and added tokens, `legacy` in transformers) or 'never'; None for what the file
            says, 'first' or 'never'.
        where: the file, for error messages.

    Raises:
        ValueError: the file is no BPE model, or it normalizes texts.
    """
    _check(model, where)
    prefix = prefix or ("first" if model.normalizer_spec.add_dummy_prefix else "never")
    kinds = {_Piece.CONTROL: True, _Piece.UNKNOWN: True, _Piece.USER_DEFINED: False}
    own = {
        i: AddedToken(x.piece, special=kinds[x.type], normalized=False)
        for i, x in enumerate(model.pieces)
        if x.type in kinds
    }
    names = [str(added[i].content) if i in added else x.piece for i, x in enumerate(model.pieces)]
    bpe = models.BPE(
        {name: i for i, name in enumerate(names)},
        list(_merges([x for i, x in enumerate(model.pieces) if i not in added])),
        unk_token=next(
            (x.content for i, x in own.items() if model.pieces[i].type == _Piece.UNKNOWN), None
        ),
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )
    built = tokenizers.Tokenizer(bpe)
    built.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prefix, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    first = [] if prefix == "never" else [decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence([*steps, *first])
    tokens = sorted((own | added).items())
    built.add_tokens([token for _, token in tokens])
    for i, token in tokens:
        if built.token_to_id(token.content) != i:
            raise ValueError(
                f"{where}: the added token {token.content!r} has the id {i}; added tokens must follow the "
                f"{len(names)} ids of the file without a gap"
            )
    return built.to_str()


def _check(model: _Model, where: str) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    problem = next(
        (
            words
            for words, found in {
                "it is a Unigram model; only BPE is": trainer.model_type != trainer.BPE,
                "it normalizes texts, which is not": normalizer.precompiled_charsmap
                or normalizer.remove_extra_whitespaces,
                "it marks spaces at the ends of words, which is not": trainer.treat_whitespace_as_suffix,
            }.items()
            if found
        ),
        None,
    )
    if problem:
        raise ValueError(
            f"{where}: {problem} supported for decoder-only models; save the tokenizer as tokenizer.json "
            "(transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )


def _merges(pieces: Sequence[_Piece]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that form a piece, the pieces with the highest score first."""
    normal = {x.piece: x.score for x in pieces if x.type == _Piece.NORMAL}
    for piece in sorted(normal, key=lambda name: -normal[name]):
        for i in range(1, len(piece)):
            if piece[:i] in normal and piece[i:] in normal:
                yield piece[:i], piece[i:]
