"""A plug-in for T5X: DeRa, DeAL and DARWIN inside `t5x.infer` and `t5x.eval`.

two_towers   reference and aligned model as one flax module, for T5X's own models and decoding
decoders     this library's sampler, search and evolution over the two towers
model        a T5X model that decodes with one of these
checkpoints  a T5X checkpoint manager that restores the two halves from two checkpoints

Only the last two import T5X. docs/t5x.md shows how to run them.
"""
