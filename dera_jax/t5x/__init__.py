"""Plugs DeRa, DeAL and DARWIN into T5X, for use in `t5x.infer` and `t5x.eval`.

two_towers   the reference and aligned models as one flax module, for T5X's own models and decoding
decoders     sampling, beam search and evolutionary decoding of this library over the two models
model        a T5X model that decodes with one of these decoders
checkpoints  a T5X checkpoint manager that restores the two models from two checkpoints
tasks        the tasks of this repository as T5X reads them: token ids of a vocabulary

Only `model` and `checkpoints` import T5X. docs/t5x.md shows how to run them.
"""
