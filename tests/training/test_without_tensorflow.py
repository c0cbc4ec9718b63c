"""Training and sampling from arrays, where TensorFlow, seqio, gin and clu are not installed."""

import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses
import sys
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin", "clu", "t5x"):
    sys.modules[name] = None  # as if it were not installed
from pathlib import Path
import numpy as np
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.orbax import Saving
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.examples import Examples, train_batches
from dera_jax.models.language_model import Padded, Prompts, padded, sequence_keys
from dera_jax.models.llama import LlamaConfig
from dera_jax.models.t5 import T5Config
from dera_jax.prompts import Prompt
from dera_jax.training import optimizers, preferences, supervised
from dera_jax.training.train_step import Loss
from dera_jax.training.validation import Validation

WORDS = ["kiwi", "plum", "fig", "lime", "pear", "date", "peach", "melon"]


class Words:
    name, split, inputs, targets, batch_size = "words", "train", 8, 8, 4

    def check(self, *splits, pairs=False):
        assert set(splits) <= {"train", "validation", "test"}

    def known_vocabulary(self):
        return ByteVocabulary()

    def described(self):
        return {"words": WORDS}

    def encoded_by(self, tokenizer):
        return EncodedWords(tokenizer)


@dataclasses.dataclass
class EncodedWords:
    tokenizer: Tokenizer

    def left_out(self):
        return {}

    def read(self, split, seed=0):
        text = self.tokenizer
        column = lambda words: Padded(*padded([text.encode_completion(x) for x in words], 8))
        return Examples(
            inputs=Prompts(*padded([text.encode_prompt(x, 8).ids for x in WORDS], 8)),
            targets=column(WORDS), rejected=column([x[::-1] for x in WORDS]),
            example_id=np.arange(len(WORDS)), asked=[Prompt(x) for x in WORDS], summaries=WORDS,
            notes={},
        )

    def batches(self, seed, start_step, with_documents=False, check_documents=None):
        return train_batches(lambda s: self.read("train", s), Words.batch_size, seed, start_step)


CONFIGS = {
    "t5": T5Config(259, 16, 2, 1, 1, 8, 16, ("relu",), True, dropout_rate=0.0),
    "llama": LlamaConfig(259, 18, 9, 3, 2, 4, 24),
}
folder, config = Path(sys.argv[1]), CONFIGS[sys.argv[2]]
rate = optimizers.adamw(lambda step: 3e-3, clip_norm=1.0, weight_decay=0.0)
saving, more = Saving(100), {"seed": 0}
sft = supervised.Training(
    supervised.new_model(config, 0), Words(), rate, 6, 0, Validation(3, decoded=2), Loss(), saving
)
first = sft.run(folder / "sft")
assert first["best_loss"] < np.log(259), first
finished = supervised.finished_model(str(folder / "sft" / "best"), 0.0)
dpo = preferences.PreferenceTraining(
    preferences.dpo(finished, 0.1), Words(), rate, 6, 0, preferences.Validation(3), saving
)
found = dpo.run(folder / "dpo")
assert found["best_loss"] < np.log(2), found
pair = load(folder / "sft" / "best", folder / "dpo" / "best")
prompts = Words().encoded_by(pair.tokenizer).read("test").inputs.replace(lam=np.full((8, 1), 0.5))
out = sample(pair.model, pair.params, prompts, sequence_keys(0, np.arange(8), [0]), Sampling(8))
assert out.tokens.shape == (8, 1, 8)
assert (folder / "sft" / "metrics.jsonl").exists() and list((folder / "sft").glob("events.*"))
print("done", first["best_loss"], found["best_loss"])
"""


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_runs_from_arrays(family, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), family]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]
