"""Computes ROUGE for text in any script.

rouge-score and nltk, which take a second to import, are imported when ROUGE is computed.
"""

from collections.abc import Callable, Sequence

from dera_jax.log import warn_once
from dera_jax.rewards.segmentation import words_of

ROUGE = ("rouge1", "rouge2", "rougeL")


class RougeWords:
    """Tokenizer of rouge-score that splits text into the words of `segmentation` and also at "_".

    On ASCII text the result equals that of rouge-score's tokenizer, which drops all other letters.

    Args:
        stem: whether words of four letters or more are replaced by their stems (Porter's, English).
    """

    def __init__(self, stem: bool = False):
        self._stem = _porter_stem() if stem else str

    def tokenize(self, text: str) -> list[str]:
        parts = [part for word in words_of(text) for part in word.split("_") if part]
        return [self._stem(part) if len(part) > 3 else part for part in parts]


def _porter_stem() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem


def rouge(
    references: Sequence[str], texts: Sequence[str], stem: bool = False
) -> dict[str, list[float]]:
    """Returns the F1 of ROUGE-1, -2 and -L of each pair, times 100.

    In scripts without spaces each character is a word, see `rewards.segmentation`. A pair in which
    one text has no word scores 0. ROUGE is not defined for a reference without a word, so a warning
    states the number of such references.

    Args:
        references: reference texts.
        texts: output texts, one for each reference.
        stem: whether stems of words are compared instead of words. T5 does not stem; most papers on
            summarization do, and their numbers are higher by 2 to 3 points.
    """
    from rouge_score import rouge_scorer

    _warn_of_wordless(references, texts)
    scorer = rouge_scorer.RougeScorer(ROUGE, tokenizer=RougeWords(stem))
    scores = [scorer.score(*pair) for pair in zip(references, texts, strict=True)]
    return {name: [100 * score[name].fmeasure for score in scores] for name in ROUGE}


def _warn_of_wordless(references: Sequence[str], texts: Sequence[str]) -> None:
    count_wordless = lambda group: sum(not any(map(str.isalnum, x)) for x in group)
    if count := count_wordless(references):
        warn_once(
            f"ROUGE is not defined for {count} of {len(references)} references, which have no word "
            "(no letter and no digit), and is counted as 0. Remove these references, or do not use "
            "ROUGE for this task."
        )
    if count := count_wordless(texts):
        warn_once(
            f"{count} of {len(texts)} texts have no word (no letter and no digit); their ROUGE and "
            "faithfulness are counted as 0."
        )
