"""Which device holds which part of a T5, and that a model over several devices is the same."""

from dera_jax.checkpoints.hugging_face import save_hugging_face
from tests import golden
from tests.decoding.worlds import run_on_eight_devices

PLACES = """
import dataclasses, jax, numpy as np, pytest
from jax.sharding import PartitionSpec
from dera_jax.partitioning import make_mesh, param_shardings
from tests import golden
from flax.traverse_util import flatten_dict

mesh = make_mesh(4)
assert mesh.devices.shape == (2, 4) and mesh.axis_names == ("data", "model")
# T5X's, by the last part of a parameter's name but 'kernel'
SPLIT = {
    **dict.fromkeys(["embedding", "rel_embedding", "out", "wo"], ("model", None)),
    **dict.fromkeys(["query", "key", "value", "wi", "wi_0", "wi_1", "logits_dense"], (None, "model")),
    "scale": (None,),
}
for version in golden.VERSIONS:
    model, params, _ = golden.load(version)
    places, params = param_shardings(model, mesh), flatten_dict(params, sep="/")
    assert places.keys() == params.keys()
    seen = set()
    for path, x in params.items():
        name = path.removesuffix("/kernel").rpartition("/")[2]
        seen.add(name)
        spec = (*places[path].spec, *[None] * x.ndim)[: x.ndim]
        assert spec == SPLIT[name], (path, spec)
        shards = jax.device_put(x, places[path]).addressable_shards
        parts = np.prod(x.shape) // np.prod(shards[0].data.shape)
        assert parts == (1 if name == "scale" else 4), path
    v1_0 = {"wi_0", "wi_1", "logits_dense"}
    assert seen == SPLIT.keys() - ({"wi"} if version == "v1_1" else v1_0)

model = golden.load("v1_1")[0]
for field, size, parameter in (
    ("num_heads", 6, r"(en|de)coder/relpos_bias/rel_embedding has shape \\(6, 32\\), whose 6 is"),
    ("mlp_dim", 66, r"mlp/w(i_0|i_1|o)/kernel has shape .*, whose 66 is"),
    ("vocab_size", 130, r"(token_embedder/embedding|logits_dense/kernel) has shape .*, whose 130 is"),
):
    message = parameter + " not divisible by the 4 devices along 'model'"
    with pytest.raises(ValueError, match=message):
        config = dataclasses.replace(model.config, **{field: size})
        param_shardings(dataclasses.replace(model, config=config), mesh)
for size in (3, 16, 0, -2):
    with pytest.raises(ValueError, match=f"{size} devices along 'model' does not fit 8 devices"):
        make_mesh(size)
print("identical")
"""


def test_parameters_lie_as_t5x_places_them():
    run_on_eight_devices(PLACES)


LOADED = """
import sys, jax, numpy as np
from dera_jax.checkpoints.loading import load
from dera_jax.decoding.sampling import Sampling, sample
from dera_jax.models.language_model import sequence_keys
from dera_jax.partitioning import make_mesh, param_shardings
from flax.traverse_util import flatten_dict
from tests import golden, prompts

documents = prompts.zero_padded(golden.load("v1_1")[2]["encoder_input_tokens"])
texts = []
for path in PATHS:
    for mesh in (None, make_mesh(1), make_mesh(4)):
        loaded = load(path, mesh=mesh)
        params, expected = flatten_dict(loaded.params, sep="/"), golden.load("v1_1")[1]
        for name, x in flatten_dict(expected, sep="/").items():
            assert params[name].dtype == x.dtype
            np.testing.assert_array_equal(params[name], x, name)
        if mesh is not None:
            places = param_shardings(loaded.model, mesh)
            assert all(x.sharding == places[name] for name, x in params.items())
        keys = sequence_keys(0, np.arange(4), [0, 1])
        sampling = Sampling(max_length=16, end_ids=(1,))
        out = sample(loaded.model, loaded.params, documents, keys, sampling)
        texts.append(np.asarray(out.tokens))
assert len(np.unique(texts[0])) > 20
assert all(np.array_equal(x, texts[0]) for x in texts)
print("identical")
"""


def test_a_model_over_several_devices_is_the_same_and_writes_the_same(tmp_path):
    model, params, _ = golden.load("v1_1")
    save_hugging_face(tmp_path / "theirs", model.config, None, params, "float32")
    legacy = golden.unpack("v1_1", "legacy", tmp_path)
    run_on_eight_devices(f"PATHS = {[str(legacy), str(tmp_path / 'theirs')]}\n{LOADED}")
