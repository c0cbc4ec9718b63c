"""Mutators against counts of what they may draw, and against lists that a scripted model writes."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.decoding import mutation
from dera_jax.decoding.mutation import (
    InputEdits,
    Rewriter,
    TemplateBank,
    Unchanged,
    parse_numbered,
    split_sentences,
)
from dera_jax.decoding.realign import Realigned
from dera_jax.decoding.sampling import Sampling
from dera_jax.models.language_model import Output, State, sequence_keys
from dera_jax.models.tabular import TabularLM
from dera_jax.prompts import Prompt

BYTES = tokenizer(ByteVocabulary())


def encode(text: str, max_tokens: int) -> list[int]:
    """A request's bytes with the end token, cut so that this fits."""
    return BYTES.encode_prompt(text, max_tokens).ids


WORDS = encode, BYTES.decode
VOCAB = 259
ROOM = 56  # tokens of a script


def keys(batch: int, seed: int = 0):
    return sequence_keys(seed, np.arange(batch), [0])[:, 0]


def children_of(mutator, parent: Prompt, number: int, seed: int = 0) -> list[Prompt]:
    return mutator([parent], number, keys(1, seed)).children[0]


def counts(drawn, possible) -> list[int]:
    """How often each of the possible outcomes was drawn; there are no others."""
    found = collections.Counter(drawn)
    assert set(found) <= set(possible)
    return [found[x] for x in possible]


# Prompts


def test_slots_are_filled_once_and_braces_mean_nothing():
    document = "f{0} {document} {keywords} {{}} \\1"
    prompt = Prompt(document, "{keywords}? {document}! {other}", ("a", "{document}"))
    assert prompt.render() == f"a, {{document}}? {document}! {{other}}"
    assert Prompt(document).render() == document


def test_a_template_without_its_document_is_refused():
    with pytest.raises(ValueError, match=r"the template 'Summarize' has no slot \{document\}"):
        Prompt("a", "Summarize")
    with pytest.raises(
        ValueError, match=r"'\{document\} and \{document\}' has two slots \{document\}"
    ):
        Prompt("a", "{document} and {document}")


# All mutators that need no model

PARENTS = [
    Prompt("One. Two. Three.", "Say {document}", ("two",)),
    Prompt("Four; five.", "Tell {document}", ("x",)),
    Prompt("Six seven.", "{document}", ("y",)),
]
WITHOUT_MODEL = [
    Unchanged(),
    TemplateBank(("1 {document}", "2 {document}", "3 {document} {keywords}")),
    InputEdits(),
]


@pytest.mark.parametrize("mutator", WITHOUT_MODEL, ids=lambda x: type(x).__name__)
def test_an_input_s_children_do_not_depend_on_the_batch(mutator):
    together = mutator(PARENTS, 4, keys(3))
    for b, parent in enumerate(PARENTS):
        alone = mutator([parent], 4, keys(3)[b : b + 1])
        assert together.children[b] == alone.children[0] and len(alone.children[0]) == 4
        assert together.fallbacks[b] == alone.fallbacks[0]
    assert together.forward_tokens.tolist() == [0, 0, 0]


def test_inputs_with_equal_parents_draw_apart():
    drawn = InputEdits()([Prompt("A. B. C. D. E.")] * 2, 8, keys(2)).children
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("mutator", WITHOUT_MODEL[1:], ids=lambda x: type(x).__name__)
def test_a_missing_key_is_refused(mutator):
    with pytest.raises(ValueError, match="shorter"):
        mutator(PARENTS, 2, keys(2))


def test_unchanged_copies():
    offspring = Unchanged()(PARENTS, 2, keys(3))
    assert offspring.children == [[parent, parent] for parent in PARENTS]
    assert offspring.fallbacks.tolist() == [0, 0, 0]  # copies are what was asked for


# TemplateBank


def test_the_bank_is_dealt_out_before_any_template_comes_again():
    bank = tuple(f"{i} {{document}}" for i in range(3))
    children = children_of(TemplateBank(bank), Prompt("x", keywords=("k",)), 8)
    assert all(child.document == "x" and child.keywords == ("k",) for child in children)
    templates = [child.template for child in children]
    assert set(templates[:3]) == set(templates[3:6]) == set(bank)
    assert len(set(templates[6:])) == 2


def test_the_parents_own_template_is_not_drawn():
    bank = TemplateBank(("{document}", "1 {document}", "2 {document}"))
    templates = [x.template for x in children_of(bank, Prompt("x", "1 {document}"), 40)]
    assert set(templates) == {"{document}", "2 {document}"}
    only = children_of(TemplateBank(("1 {document}",)), Prompt("x", "1 {document}"), 2)
    assert [x.template for x in only] == ["1 {document}"] * 2  # there is no other


def test_every_order_of_the_bank_is_as_likely():
    bank = tuple(f"{i} {{document}}" for i in range(4))
    drawn = TemplateBank(bank)([Prompt("x")] * 2400, 2, keys(2400)).children
    pairs = [tuple(child.template for child in row) for row in drawn]
    found = counts(pairs, list(itertools.permutations(bank, 2)))
    assert stats.chisquare(found).pvalue > 1e-3


def test_banks_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="templates must be a non-empty tuple"):
        TemplateBank(())
    with pytest.raises(ValueError, match=r"the template 'Sum up' has no slot \{document\}"):
        TemplateBank(("{document}", "Sum up"))
    with pytest.raises(ValueError, match=r"TemplateBank: .* has two slots \{document\}"):
        TemplateBank(("{document}", "{document} {document}"))
    bank = TemplateBank(("{document}", "{document} with {keywords}"))
    with pytest.raises(
        ValueError, match=r"'\{document\} with \{keywords\}'.*parent 1 of the batch"
    ):
        bank([Prompt("a", keywords=("k",)), Prompt("b")], 1, keys(2))


# InputEdits


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two!  Three?\nFour; five", ["One.", "Two!", "Three?", "Four;", "five"]),
        ("At 3.5 f(x;y) e.g. this", ["At 3.5 f(x;y) e.g.", "this"]),
        ("One only.", ["One only."]),
        ("What?! No...", ["What?!", "No..."]),
    ],
)
def test_sentences_and_what_is_between_them_are_the_text(text, sentences):
    found, gaps = split_sentences(text)
    assert found == sentences and len(gaps) == len(found) - 1
    assert all(gap and not gap.strip() for gap in gaps)
    assert found[0] + "".join(gap + x for gap, x in zip(gaps, found[1:], strict=True)) == text


def test_edits_are_drawn_uniformly_then_their_sentences():
    """A text of three sentences: each of three edits 1/3, then 3 drops, or 6 moves to 4 texts."""
    parents = [Prompt("A. B. C.", keywords=("B",))] * 7200
    texts = [children[0].document for children in InputEdits()(parents, 1, keys(7200)).children]
    third = 1 / 3
    probabilities = {
        "B. C.": third / 3,
        "A. C.": third / 3,
        "A. B.": third / 3,
        "B. A. C.": third / 3,
        "A. C. B.": third / 3,
        "B. C. A.": third / 6,
        "C. A. B.": third / 6,
        "B.": third,
    }
    expected = [7200 * p for p in probabilities.values()]
    assert stats.chisquare(counts(texts, list(probabilities)), expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "text, keywords, possible",
    [
        ("A. B.", (), {"A.", "B.", "B. A."}),
        ("A. A.", (), {"A."}),  # a move changes nothing
        ("A. A. B.", (), {"A. B.", "A. A.", "A. B. A.", "B. A. A."}),
        ("A. B.", ("a", "b"), {"A.", "B.", "B. A."}),  # all have a keyword
        ("A. B.", ("c",), {"A.", "B.", "B. A."}),  # none has
        ("A{0}. B{document}.", (), {"A{0}.", "B{document}.", "B{document}. A{0}."}),
        (" A.  B.\n", (), {" A.\n", " B.\n", " B.  A.\n"}),  # white space keeps its places
        ("A.  A.\nA. ", (), {"A.  A. "}),
    ],
)
def test_what_edits_can_make_of_a_text(text, keywords, possible):
    offspring = InputEdits()([Prompt(text, "T {document}", keywords)], 300, keys(1))
    assert {child.document for child in offspring.children[0]} == possible
    assert {(child.template, child.keywords) for child in offspring.children[0]} == {
        ("T {document}", keywords)
    }
    assert offspring.fallbacks.tolist() == [0]


@pytest.mark.parametrize("text", ["One sentence, 3.5 long.", "", "  \n", " A;b\n"])
def test_a_text_that_no_edit_changes_is_copied_and_counted(text):
    parent = Prompt(text, keywords=("one",))
    offspring = InputEdits()([parent, Prompt("A. B.")], 3, keys(2))
    assert offspring.children[0] == [parent] * 3
    assert offspring.fallbacks.tolist() == [3, 0]


def test_the_instruction_stays():
    """Sentences of it are none of the document's."""
    parent = Prompt("A. B.", "Sum. Up: {document} In. Short:")
    texts = {x.render() for x in children_of(InputEdits(), parent, 100)}
    assert texts == {f"Sum. Up: {x} In. Short:" for x in ("A.", "B.", "B. A.")}


@pytest.mark.parametrize(
    "keyword, kept",
    [
        ("Cat", {"The cat. An old-cat."}),
        ("old CAT", {"An old-cat."}),
        ("concatenate", {"To concatenate."}),
        ("cat old", set()),
        ("enate", set()),  # inside another word
        ("!", set()),  # no word at all
        (".*", set()),
    ],
)
def test_keywords_are_whole_words_in_any_case(keyword, kept):
    parent = Prompt("The cat. An old-cat. To concatenate. Cats.", keywords=(keyword,))
    texts = {x.document for x in children_of(InputEdits(), parent, 100)}
    # A drop leaves three of the four sentences.
    assert {x for x in texts if len(split_sentences(x)[0]) < 3} == kept


def test_one_of_the_keywords_is_enough():
    parent = Prompt("A one. B two. C. D.", keywords=("two", "one", "none"))
    assert "A one. B two." in {x.document for x in children_of(InputEdits(), parent, 100)}


# parse_numbered


@pytest.mark.parametrize(
    "text",
    [
        "1. a b 2. c 3. d",
        "1. a b\n2. c\n3. d\n",
        "1) a b 2) c 3) d",
        "Sure, here are 3: 1. a b\n\n2) c  3. d",
    ],
)
def test_lists_that_can_be_read(text):
    assert parse_numbered(text, 3) == ["a b", "c", "d"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b c",
        "1. a 2. b",  # one too few
        "1. a 2. b 3. c 4. d",  # one too many
        "1. a 3. b 4. c",
        "1. a 2. b 2. c 3. d",
        "2. a 1. b 3. c",
        "0. a 1. b 2. c",
        "1. a 2. 3. c",  # an empty item
        "1. a 2. b 3.",
        "1.a 2.b 3.c",
        "01. a 02. b 03. c",
    ],
)
def test_lists_that_cannot_be_read(text):
    assert parse_numbered(text, 3) is None


def test_four_of_five_are_not_five():
    four = "1. a 2. b 3. c 4. d"
    assert parse_numbered(four, 5) is None
    assert parse_numbered(f"{four} 5. e", 5) == list("abcde")


def test_numbers_within_an_item_and_of_two_digits():
    assert parse_numbered("1. use 3.5 of v2 (2) 2. b", 2) == ["use 3.5 of v2 (2)", "b"]
    ten = " ".join(f"{i}. item{i}" for i in range(1, 11))
    assert parse_numbered(ten, 10) == [f"item{i}" for i in range(1, 11)]


# Rewriter


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Logits params[first byte of the prompt - ord("A"), position]."""

    vocab_size: int = VOCAB
    start_token: int = 0
    end_ids: tuple[int, ...] = (1,)
    num_ids: None = None
    unused_ids: tuple[int, ...] = ()

    def check(self, prompts, num_hypotheses):
        assert prompts.lam is None and num_hypotheses > 0

    def start(self, params, prompts, num_hypotheses, max_len):
        scripts = prompts.tokens[:, 0] - BYTES.encode("A")[0]
        fed = jnp.zeros((len(scripts), num_hypotheses))
        return State(jnp.zeros((), jnp.int32), 0 * scripts, shared=scripts, kept=(), cache=fed)

    def step(self, params, state, tokens):
        logits = jnp.repeat(params[state.shared, state.position][:, None], tokens.shape[1], axis=1)
        return Output(logits), state.replace(position=state.position + 1)


def script(*alternatives: str) -> np.ndarray:
    """Logits [ROOM, V]: at each position the alternatives' bytes, equally likely, then the end."""
    logits = np.full((ROOM, VOCAB), -1e9, np.float32)
    for text in alternatives:
        for t, token in enumerate([*BYTES.encode(text), 1]):
            logits[t, token] = 0
    return logits


REQUEST, INPUTS = "{instruction}#{number}", 24
SAMPLING = Sampling(ROOM, temperature=0.7, top_k=40)


def rewriter(*scripts: np.ndarray, **settings) -> Rewriter:
    settings = {"inputs": INPUTS, "sampling": SAMPLING, "request": REQUEST} | settings
    three = [*scripts, script(), script()][:3]  # of one shape in all tests, to compile less
    return Rewriter(Scripted(), np.stack(three), *WORDS, **settings)


def test_rewrites_become_templates():
    parents = [Prompt("x {0}", "A {document} B", ("k",)), Prompt("y", "Big: {document}")]
    first, second = "1. Do {document} so 2. Now {document}, {document}", "1) One:\n2) Two"
    offspring = rewriter(script(first), script(second))(parents, 2, keys(2))
    templates = [[child.template for child in row] for row in offspring.children]
    assert templates == [
        ["Do {document} so", "Now , {document}"],
        ["One: {document}", "Two {document}"],
    ]
    assert [[(x.document, x.keywords) for x in row] for row in offspring.children] == [
        [("x {0}", ("k",))] * 2,
        [("y", ())] * 2,
    ]
    assert offspring.children[0][1].render() == "Now , x {0}"
    assert offspring.fallbacks.tolist() == [0, 0]
    read = [len("A  B#2") + 1, len("Big:#2") + 1]
    assert offspring.forward_tokens.tolist() == [
        read[0] + len(first) + 1,
        read[1] + len(second) + 1,
    ]


def test_children_of_one_parent_differ_while_there_are_edits():
    parents = [Prompt("A. B. C. D. E. F.")] * 20  # 6 drops, 25 moves: free draws often agree
    children = InputEdits()(parents, 6, keys(20)).children
    assert all(len({child.document for child in some}) == 6 for some in children)
    few = [x.document for x in children_of(InputEdits(), Prompt("A. B."), 8)]
    assert set(few) == {"A.", "B.", "B. A."}


def test_many_children_are_asked_for_five_at_a_time():
    parents, five = (
        [Prompt("x", "A {document}"), Prompt("y", "B {document}")],
        "1. a 2. b 3. c 4. d 5. e",
    )
    offspring = rewriter(script(five), script("no list"))(parents, 7, keys(2))
    assert [x.template[0] for x in offspring.children[0]] == [*"abcdeab"]
    assert offspring.children[1] == [parents[1]] * 7
    assert offspring.fallbacks.tolist() == [0, 2]
    read = len("A#5") + 1
    assert offspring.forward_tokens.tolist() == [
        read + 2 * (len(five) + 1),
        read + 2 * len("no list1"),
    ]


def test_a_list_that_cannot_be_read_gives_copies_and_one_fallback():
    parents = [Prompt("x", "A {document}"), Prompt("y", "B {document}")]
    offspring = rewriter(script("1. a 2. b"), script("1. a 2. b 3. c"))(parents, 3, keys(2))
    assert offspring.children[0] == [parents[0]] * 3
    assert [x.template for x in offspring.children[1]] == [
        "a {document}",
        "b {document}",
        "c {document}",
    ]
    assert offspring.fallbacks.tolist() == [1, 0]


def test_a_list_without_an_end_counts_what_was_sampled():
    short = Sampling(9, temperature=0.7, top_k=40)
    mutator = rewriter(script("1. a 2. bcdef"), sampling=short)
    offspring = mutator([Prompt("x", "A{document}")], 2, keys(1))
    assert [x.template for x in offspring.children[0]] == ["a {document}", "b {document}"]
    assert offspring.forward_tokens.tolist() == [len("A#2") + 1 + 9]


@pytest.fixture
def seen(monkeypatch):
    """The arguments of every call of `sample`."""
    calls, real = [], mutation.sample
    monkeypatch.setattr(mutation, "sample", lambda *a: calls.append(a) or real(*a))
    return calls


def test_one_call_reads_the_requests_as_they_should_be(seen):
    parents = [
        Prompt("x", "A full {keywords} room: {document}"),
        Prompt("y"),
        Prompt("z", "C {number} {document}"),
    ]
    rewriter(*[script("1. a")] * 3, default_instruction="B it")(parents, 4, keys(3))
    ((_, _, requests, drawn, sampling),) = seen
    texts = ["A full {keywords} room:", "B it#4", "C {number}#4"]  # 23 tokens: no room for #4
    expected = [BYTES.encode(x) + [1] + [0] * (INPUTS - 1 - len(x)) for x in texts]
    np.testing.assert_array_equal(requests.tokens, expected)
    np.testing.assert_array_equal(requests.lengths, [len(x) + 1 for x in texts])
    first = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys(3))
    np.testing.assert_array_equal(jax.random.key_data(drawn)[:, 0], jax.random.key_data(first))
    assert drawn.shape == (3, 1)
    assert sampling == SAMPLING and requests.lam is None


def test_a_long_request_is_cut_and_keeps_its_end(seen):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    offspring = rewriter(script("1. a"))([Prompt("x", letters + "{document}")], 1, keys(1))
    np.testing.assert_array_equal(seen[0][2].tokens, [BYTES.encode(letters[:23]) + [1]])
    assert offspring.forward_tokens.tolist() == [INPUTS + len("1. a") + 1]


def test_the_end_tokens_of_the_model_end_an_answer():
    """An end token of an answer is handed to `decode` with the rest."""
    several, read = dataclasses.replace(Scripted(), end_ids=(1, *BYTES.encode("|"))), []
    decode = lambda ids: read.append(list(ids)) or BYTES.decode(ids)
    scripts = np.stack([script("1. a|2. b")])
    mutator = Rewriter(several, scripts, encode, decode, INPUTS, SAMPLING, REQUEST)
    offspring = mutator([Prompt("x", "A {document}")], 1, keys(1))
    assert read == [BYTES.encode("1. a|")]
    assert [x.template for x in offspring.children[0]] == ["a| {document}"]
    assert offspring.forward_tokens.tolist() == [len("A#1") + 1 + len("1. a|")]


def test_a_mixture_is_no_rewriter():
    """A request has no λ."""
    model, two = TabularLM(VOCAB, horizon=1), (np.zeros((1, 2, VOCAB), np.float32),) * 2
    mutator = Rewriter(Realigned(model, (model,)), two, *WORDS, INPUTS, SAMPLING, REQUEST)
    with pytest.raises(ValueError, match="lam must be an array of numbers"):
        mutator([Prompt("x", "A {document}")], 1, keys(1))


def test_rewrites_depend_on_their_key_and_not_on_the_batch():
    two = script("1. aaaaaaaa 2. aaaaaaaa", "1. bbbbbbbb 2. bbbbbbbb")
    mutator = rewriter(two, two, script("no list"))
    parents = [
        Prompt("x", "A {document}"),
        Prompt("x", "B {document}"),
        Prompt("x", "C {document}"),
    ]
    together = mutator(parents, 2, keys(3))
    for b, parent in enumerate(parents):
        alone = mutator([parent], 2, keys(3)[b : b + 1])
        assert alone.children[0] == together.children[b]
        assert alone.forward_tokens[0] == together.forward_tokens[b]
        assert alone.fallbacks[0] == together.fallbacks[b] == (b == 2)
    assert together.children[0] != together.children[1]
    assert mutator(parents, 2, keys(3, seed=1)).children[0] != together.children[0]


def test_the_request_of_the_module_and_the_released_sampling():
    asked = Rewriter(Scripted(), None, *WORDS, 8)
    text = asked._request(Prompt("x", "Sum up: {document}"), 5)
    assert '"Sum up:"' in text and "5" in text and "{" not in text
    assert (asked.sampling.temperature, asked.sampling.top_k) == (0.7, 40)


def test_requests_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match=r"the request 'Rewrite \{number\}' has no slot \{instr"):
        rewriter(script(""), request="Rewrite {number}")
    with pytest.raises(ValueError, match="inputs must be an integer of at least 2; found 1"):
        rewriter(script(""), inputs=1)
    with pytest.raises(ValueError, match="Rewriter.model has no end token ids"):
        Rewriter(dataclasses.replace(Scripted(), end_ids=()), None, *WORDS, INPUTS)
