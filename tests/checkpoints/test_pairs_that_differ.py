"""Pairs of a base and a model tuned from it, whose folders differ."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import main
from dera_jax.checkpoints.loading import load, load_models, read_tokenizer
from dera_jax.checkpoints.vocabulary import NO_PIECE
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import UNUSED_LOGIT, Prompts, pad_sequences, sequence_keys
from tests.checkpoints import chat, differing
from tests.checkpoints.differing import CHAT, END, IDS, TOOL
from tests.compiled import compiled

LAMS = (0.0, 1.0, 0.5, 5.0, -2.0)
K, T = 6, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders by name. The pairs (base, tuned) and (base, zephyr) can be decoded together."""
    root = tmp_path_factory.mktemp("pairs")
    instruct = {"added": CHAT, "rows": 304}
    differing.write(root / "base", edit=differing.without_tool)
    differing.write(root / "padded", rows=312)
    differing.write(root / "instruct", template=chat.CHATML, ends=[END, 301], **instruct)
    differing.write(root / "zephyr", template=chat.ZEPHYR, **instruct)
    return root


@pytest.fixture(scope="module")
def pair(root):
    return load(root / "base", root / "zephyr")


def allowed(size: int) -> np.ndarray:
    """The ids that both models of `pair` have."""
    ids = np.arange(size)
    return (ids < IDS) & (ids != TOOL)


def prompts(pair, lam: float | None) -> Prompts:
    ids = [pair.encode_prompt(text, 99).ids for text in ("they're", "a 日本 🙂")]
    return Prompts(*pad_sequences(ids, 64), None if lam is None else np.full((2, 1), lam, "f"))


def test_the_aligned_model_says_how_prompts_are_written(root, pair):
    alone = load(root / "zephyr")
    assert pair.encode_prompt("they're", 99) == alone.encode_prompt("they're", 99)
    assert pair.encode_completion("ok") == alone.encode_completion("ok")
    assert pair.chat_template == chat.ZEPHYR and pair.vocabulary == alone.vocabulary
    assert {x.model.end_ids for x in pair.components} == {(END,)}
    base = load(root / "base")
    for name in ("reference", 0, str(root / "base"), root / "base"):
        other = load(root / "base", root / "zephyr", template_from=name)
        assert other.encode_prompt("they're", 99) == base.encode_prompt("they're", 99)
        assert other.chat_template is None and other.vocabulary == base.vocabulary


@pytest.mark.parametrize("template_from", ["aligned", 2, -1, True, 0.0, "/no/model"])
def test_template_from_names_one_of_the_models(root, template_from):
    with pytest.raises(ValueError, match=r"'reference', the number of a model from 0 .*; found"):
        load(root / "base", root / "zephyr", template_from=template_from)
    with pytest.raises(ValueError, match="template_from must be"):
        load(root / "base", template_from="/no/model")


def test_a_template_that_needs_an_id_that_a_model_lacks_is_refused(root):
    message = (
        r"need the ids 300 \('<\|im_start\|>'\), 301 \('<\|im_end\|>'\), which .*base lacks; "
        r"set template_from='reference' \(TEMPLATE_FROM"
    )
    with pytest.raises(ValueError, match=message):
        load(root / "base", root / "instruct")
    remedied = load(root / "base", root / "instruct", template_from="reference")
    assert remedied.model.end_ids == (END,) and remedied.chat_template is None
    with pytest.raises(ValueError, match=r"301 .*, which .*base lacks; set template_from=1 "):
        load(root / "instruct", root / "base", template_from=0)


def test_end_ids_that_a_model_lacks_are_refused(root, tmp_path):
    ending = differing.write(tmp_path / "m", CHAT, 304, template=chat.ZEPHYR, ends=[END, 301])
    with pytest.raises(ValueError, match=r"need the ids 301 \('<\|im_end\|>'\), which .*base"):
        load(root / "base", ending)


def test_end_ids_are_all_of_one_model(root):
    pair = load(root / "instruct", root / "instruct")
    assert set(pair.model.end_ids) == {END, 301}
    assert load(root / "zephyr", root / "instruct").model.end_ids == pair.model.end_ids
    assert load(root / "instruct", root / "zephyr").model.end_ids == (END,)


def test_the_begin_token_is_of_one_model(root, tmp_path, capsys):
    other = differing.write(tmp_path / "m", add_bos_token=False)
    begin = differing.SPECIAL.index("<s>")
    for template_from, begins in ((None, False), ("reference", True)):
        pair = load(root / "base", other, template_from=template_from)
        assert (pair.encode_prompt("they're", 99).ids[0] == begin) == begins
        assert "  token before prompts: '<s>' | none\n" in capsys.readouterr().err


def test_differences_are_printed_once(root, capsys):
    load(root / "base", root / "zephyr")
    said = capsys.readouterr().err
    for line in (
        f"{root}/base | {root}/zephyr: these models differ in",
        "  ids of the tokenizer: 300 | 302",
        "  rows of the embedding tables: 300 | 304",
        f"  tokenizer, chat template and end ids are those of {root}/zephyr",
        "  the ids from 300 on are never produced",
        "a model lacks them: 3 ('<tool>'), 300 ('<|im_start|>'), 301 ('<|im_end|>')\n",
    ):
        assert said.count(line) == 1, line
    assert "  chat template: none | " in said and "end ids: " not in said
    load(root / "zephyr", root / "zephyr")
    assert "differ" not in capsys.readouterr().err


def test_added_tokens_in_the_padding_of_the_other_s_table_are_not_produced(root):
    """Both tables are larger than the base's tokenizer, and of two sizes."""
    pair = load(root / "padded", root / "zephyr")
    assert (pair.model.vocab_size, pair.model.num_ids, pair.model.unused_ids) == (312, IDS, ())
    assert [x.model.num_ids for x in pair.components] == [IDS, IDS]


def test_the_ids_that_a_model_lacks(pair):
    assert (pair.model.vocab_size, pair.model.num_ids) == (304, IDS)
    assert pair.model.unused_ids == (TOOL,)
    for component, rows in zip(pair.components, (None, IDS), strict=True):
        assert (component.model.num_ids, component.model.unused_ids) == (rows, (TOOL,))


@pytest.fixture(scope="module")
def outputs(pair):
    """Teacher-forced outputs of the pair at every λ, one hypothesis for each."""
    lam = np.tile(np.asarray(LAMS, "f"), (2, 1))
    tokens = np.random.default_rng(0).integers(4, IDS, (2, len(LAMS), T))
    some = prompts(pair, None).replace(lam=lam)
    state = compiled(pair.model, "start", 2, 3)(pair.params, some, len(LAMS), T)
    return tokens, compiled(pair.model, "teacher_forced")(pair.params, state, jnp.asarray(tokens))


def test_probabilities_are_over_the_ids_that_remain(outputs):
    _, found = outputs
    for logits in (found.logits, *found.parts):
        used = allowed(logits.shape[-1])
        assert (logits[..., ~used] == UNUSED_LOGIT).all()
        sums = np.exp(jax.nn.log_softmax(logits))[..., used].sum(-1)
        np.testing.assert_allclose(sums, 1.0, atol=1e-5)
    mixture, reference = (jax.nn.log_softmax(x) for x in (found.logits, found.parts[0]))
    kl = np.sum(np.exp(mixture) * (mixture - reference), axis=-1)
    assert np.isfinite(kl).all() and (kl[:, 0] < 1e-6).all() and (kl[:, 3:] > 0.1).all()


def test_parts_are_the_models_own_logits(root, pair, outputs):
    tokens, found = outputs
    for name, part in zip(("base", "zephyr"), found.parts, strict=True):
        alone = load(root / name)
        assert alone.model.num_ids in (None, 302)
        args = alone.params, prompts(pair, None), len(LAMS), T
        state = compiled(alone.model, "start", 2, 3)(*args)
        own = compiled(alone.model, "teacher_forced")(alone.params, state, jnp.asarray(tokens))
        used = allowed(own.logits.shape[-1])
        np.testing.assert_array_equal(
            np.asarray(part)[..., : used.size][..., used], np.asarray(own.logits)[..., used]
        )
        # Without the other model, the ids that it lacks would be produced.
        assert name == "base" or (np.argmax(own.logits, -1) >= IDS).mean() > 0.5


@pytest.mark.parametrize("greedy", [False, True])
def test_ids_that_a_model_lacks_are_not_sampled(pair, greedy):
    lam = np.tile(np.asarray(LAMS, "f"), (2, 1))
    some, keys = prompts(pair, None).replace(lam=lam), sequence_keys(0, [0, 1], [0] * len(LAMS))
    out = sample(pair.model, pair.params, some, keys, Sampling(T, greedy=greedy))
    assert allowed(pair.model.vocab_size)[np.asarray(out.tokens)].all()
    everything = jax.tree.leaves(out.scores)
    assert all(np.isfinite(x).all() for x in everything) and out.scores.log_prob.min() > -50
    for i, component in enumerate(pair.components):
        alone = sample(
            component.model, component.params, some.replace(lam=None), keys[:, i : i + 1],
            Sampling(T, greedy=greedy),
        )  # fmt: skip
        np.testing.assert_array_equal(out.tokens[:, i], alone.tokens[:, 0])


def test_prompts_without_meaning_for_a_model_are_refused(pair):
    for wrong in (TOOL, 301):
        some = Prompts(np.array([[5, wrong]]), np.array([2]), np.ones((1, 1), "f"))
        with pytest.raises(ValueError, match=rf"prompts.tokens .*found {wrong} at \[0, 1\]"):
            sample(pair.model, pair.params, some, sequence_keys(0, [0], [0]), Sampling(2))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"added": CHAT[::-1]}, r"at id 300: '<\|im_end\|>' in .*m, '<\|im_start\|>' in .*zephyr"),
        (
            {"edit": differing.with_tool_elsewhere},
            r"'<tool>' is id 305 in .*m and id 3 in .*zephyr",
        ),
        ({"edit": differing.with_fewer_merges}, "encode the text ' two  spaces   and three' as"),
        ({"edit": differing.with_normalizer}, "encode the text 'naïve e\u0301' as"),
    ],
)
def test_ids_that_do_not_mean_the_same_are_refused(root, tmp_path, written, message):
    other = differing.write(tmp_path / "m", **({"rows": 320} | written))
    with pytest.raises(ValueError, match=message):
        load(other, root / "zephyr")


def test_the_tokenizer_is_known_before_parameters_are_read(root):
    paths = [root / "base", root / "zephyr"]
    for template_from in (None, "reference"):
        found = read_tokenizer(paths, None, template_from)
        expected = load_models(paths, template_from=template_from)[0].tokenizer
        assert found.encode_prompt("they're", 99) == expected.encode_prompt("they're", 99)
        assert found.vocabulary == expected.vocabulary


def test_unassigned_ids_are_not_produced_by_a_single_model(root):
    alone = load(root / "base")
    assert alone.vocabulary.pieces[TOOL] == NO_PIECE and alone.model.unused_ids == (TOOL,)


def test_a_sweep_runs_by_changing_the_paths_only(root, tmp_path):
    macros = {
        "REFERENCE": str(root / "base"), "ALIGNED": str(root / "instruct"),
        "MODEL_DIR": str(tmp_path / "run"), "TASK": "newswire", "INPUTS": 64, "DOCUMENTS": 2,
        "MAX_LENGTH": 4, "SAMPLES": 1, "LAMBDAS": (0.0, 5.0), "LOW": 0, "HIGH": 2,
    }  # fmt: skip
    bindings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    arguments = ["--gin_file=gin_configs/runs/sweep.gin", *bindings]
    with pytest.raises(
        SystemExit, match=r"base lacks; set template_from='reference' \(TEMPLATE_FROM"
    ):
        main.main(arguments)
    main.main([*arguments, "--gin.TEMPLATE_FROM='reference'"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["documents"] == 2 and len(result["lambda"]) == 2
    assert np.isfinite([row["kl"] for row in result["lambda"]]).all()
