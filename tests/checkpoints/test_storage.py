"""Checkpoints in a bucket, files that lie about themselves, and the memory that reading takes."""

import http.server
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
import safetensors.numpy
import tensorstore as ts
from flax import serialization

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import open_folder, read_file
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import vocabularies
from tests import golden

ASSETS = Path(__file__).resolve().parents[2] / "dera_jax" / "assets"
flat = lambda tree: flax.traverse_util.flatten_dict(tree, sep="/")


def assert_equal(found, expected) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name)


def run_with_devices(devices: int, script: str, *arguments: str) -> str:
    """What a script prints in a process with so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    # What is freed is given back: else each thread keeps up to 64 MB, whatever the model's size.
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class Bucket(http.server.ThreadingHTTPServer):
    """A folder, as Google's storage serves it; `requests` has (file, its Range or None)."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.requests = root, []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        *_, place, name = url.path.split("/o", 1)[1].partition("/")
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        if not place:
            return self._list(query)
        name, wanted = urllib.parse.unquote(name), self.headers.get("Range")
        file = self.server.root / name
        if not file.is_file():
            return self._send(404)
        content = file.read_bytes()
        if query.get("alt") != "media":
            about = {"name": name, "size": str(len(content)), "generation": "1"}
            return self._send(200, json.dumps(about).encode())
        self.server.requests.append((name, wanted))
        if not wanted:
            return self._send(200, content)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        first, last = (int(first), int(last or len(content))) if first else (-int(last), None)
        part = content[first : last and last + 1]
        first %= len(content)
        if not part:
            return self._send(416)
        span = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self._send(206, part, {"Content-Range": span})

    def _list(self, query: dict):
        root = self.server.root
        names = sorted(str(x.relative_to(root)) for x in root.rglob("*") if x.is_file())
        start, end = query.get("startOffset", ""), query.get("endOffset", chr(0x10FFFF))
        found = [{"name": x} for x in names if start <= x < end]
        self._send(200, json.dumps({"items": found}).encode())

    def _send(self, code: int, body: bytes = b"", headers: dict | None = None):
        self.send_response(code)
        known = {"x-goog-generation": "1", "Content-Length": str(len(body))}
        for name, value in (known | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """gs://bucket, with the two golden T5X checkpoints, a model folder of ours and Hugging Face's."""
    root = tmp_path_factory.mktemp("bucket")
    golden.unpack("v1_1", "legacy", root / "legacy")
    golden.unpack("v1_1", "orbax", root / "orbax")
    model, params, _ = golden.load("v1_1")
    pieces = root / "pieces.model"
    vocabularies.train(["some words to make pieces from, and yet more"] * 9, str(pieces), 76)
    vocabulary = SentencePieceVocabulary(pieces, 20)
    save_model(root / "ours", model.config, vocabulary, params, {"loss": 2.5})
    save_hugging_face(root / "theirs", model.config, vocabulary, params, "float32")
    bucket = Bucket(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{bucket.server_port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        yield bucket
    bucket.shutdown()


@pytest.mark.parametrize(
    "path", ["legacy/checkpoint_1000", "orbax/checkpoint_1000", "ours", "theirs"]
)
def test_a_checkpoint_in_a_bucket_is_as_good_as_a_local_one(bucket, path):
    found, expected = load(f"gs://bucket/{path}"), load(bucket.root / path)
    assert found.model == expected.model
    assert_equal(found.params, expected.params)
    assert found.card.keys() == expected.card.keys()
    if expected.vocabulary is None:
        assert found.vocabulary is None
    else:
        assert found.vocabulary.file.startswith(f"gs://bucket/{path}/")
        assert found.vocabulary.sha256 == expected.vocabulary.sha256
        assert found.vocabulary.extra_ids == expected.vocabulary.extra_ids == 20


def test_a_folder_of_checkpoints_in_a_bucket_stands_for_the_latest(bucket, capsys):
    run = bucket.root / "run"
    shutil.copytree(bucket.root / "legacy" / "checkpoint_1000", run / "checkpoint_1000")
    (run / "checkpoint_900").mkdir()
    (run / "checkpoint_900" / "checkpoint").write_bytes(b"older, and not to be read")
    assert_equal(load("gs://bucket/run").params, golden.load("v1_1")[1])
    assert "gs://bucket/run/checkpoint_1000: a T5X" in capsys.readouterr().err


def test_a_shipped_model_is_found_from_any_folder(tmp_path, monkeypatch):
    """Under the path it has in a clone, as gin files name it; a file of the user at that path comes first."""
    monkeypatch.chdir(tmp_path)
    name = "dera_jax/assets/reference"
    assert open_folder(name).read("config.json") == (ASSETS / "reference/config.json").read_bytes()
    assert (
        read_file("dera_jax/assets/docstrings.model") == (ASSETS / "docstrings.model").read_bytes()
    )
    Path(name).mkdir(parents=True)
    (Path(name) / "config.json").write_bytes(b"the user's")
    assert open_folder(name).read("config.json") == b"the user's"


def test_a_path_that_is_not_in_the_bucket_is_named(bucket):
    with pytest.raises(FileNotFoundError, match=r"no model folder gs://bucket/nowhere"):
        load("gs://bucket/nowhere/")
    (bucket.root / "half").mkdir(exist_ok=True)
    shutil.copy(bucket.root / "ours" / "config.json", bucket.root / "half")
    with pytest.raises(FileNotFoundError, match=r"gs://bucket/half .*no model.safetensors"):
        load("gs://bucket/half")


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(ValueError, match=r"foo://x: no URL that can be read .*scheme .?foo"):
        load("foo://x")


SHARDED = """
import sys, jax, numpy as np
from dera_jax.checkpoints.loading import load
from dera_jax.partitioning import make_mesh, use_mesh

with use_mesh(make_mesh(model=4)):
    found = load(sys.argv[1])
expected = load(sys.argv[2])
jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
"""


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_only_parts_of_a_file_are_asked_for(bucket, name):
    """Of the eight devices two hold each part, and share what was read."""
    bucket.requests.clear()
    run_with_devices(8, SHARDED, f"gs://bucket/{name}", str(bucket.root / name))
    file = bucket.root / name / "model.safetensors"
    ranges = [wanted for path, wanted in bucket.requests if path == f"{name}/model.safetensors"]
    assert all(wanted and re.fullmatch(r"bytes=\d+-\d+", wanted) for wanted in ranges)
    spans = [tuple(map(int, wanted[6:].split("-"))) for wanted in ranges]
    arrays = safetensors.numpy.load_file(file)
    longest = max(last + 1 - first for first, last in spans)
    assert longest <= max(x.nbytes for x in arrays.values())
    table = "token_embedder/embedding" if name == "ours" else "shared.weight"
    begin = struct.unpack("<Q", file.read_bytes()[:8])[0] + 8
    first, last = json.loads(file.read_bytes()[8:begin])[table]["data_offsets"]
    first, quarter = begin + first, (last - first) // 4
    rows = [(first + i * quarter, first + (i + 1) * quarter - 1) for i in range(4)]
    probe = (file.stat().st_size - 1,) * 2  # whether the file is complete
    assert sorted(x for x in spans if x != probe and first <= x[0] < begin + last) == rows


def write_safetensors(folder: Path, header: object, content: bytes = bytes(24)) -> None:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "m").write_bytes(struct.pack("<Q", len(header)) + header + content)


def entry(**settings) -> dict:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | settings}


BETWEEN = {"dtype": "F32", "shape": [4]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": ', "no safetensors file"),
        (b"\xff\xff\xff", "no safetensors file"),
        (b"[" * 100_000, "no safetensors file"),
        (b"", "a header of 0 bytes"),
        ([1, 2], "no safetensors file .*no JSON object"),
        (None, "no safetensors file .*no JSON object"),
        (
            b'{"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}, "a": {}}',
            "no safetensors file .*the key 'a' occurs more than once",
        ),
        ({"a": 3}, "entry for 'a' is 3"),
        ({"a": {"dtype": "F32"}}, "entry for 'a' is"),
        (entry(dtype="F8_E4M3"), "'a' is of type 'F8_E4M3'; known are F64, F32, F16, BF16,"),
        (entry(dtype=[]), "'a' is of type"),
        (entry(shape=[2, 4]), r"'a' is F32 \[2, 4\], and that it has the bytes 0 to 24"),
        (entry(dtype="F64"), r"'a' is F64 \[2, 3\], and"),
        (entry(shape=[-2, -3]), "entry for 'a' is"),
        (entry(shape="23"), "entry for 'a' is"),
        (entry(shape=[2.0, 3.5]), "entry for 'a' is"),
        (entry(shape=[float("inf")]), "no safetensors file .*Infinity is not a JSON value"),
        (entry(data_offsets=[24, 0]), "bytes 24 to 0"),
        (entry(dtype="I64", data_offsets=[24, 8]), "bytes 24 to 8"),
        (entry(data_offsets=[-24, 0]), "entry for 'a' is"),
        (entry(data_offsets=[0, 12, 24]), "entry for 'a' is"),
        (entry(data_offsets=[4, 28]), "'a' at the bytes 4 to 28 leaves a gap before it"),
        (entry(dtype="I64", data_offsets=[0, 24]), r"'a' is I64 \[2, 3\], and"),
        (entry(dtype="I64", data_offsets=[0, 48]), "half written or damaged"),
        (
            entry() | {"b": BETWEEN | {"data_offsets": [20, 36]}},
            "'b' at .* overlaps the one before",
        ),
        (entry() | {"b": BETWEEN | {"data_offsets": [0, 16]}}, "'a' at .* overlaps the one before"),
        (entry() | {"b": BETWEEN | {"data_offsets": [25, 41]}}, "'b' at .* leaves a gap before it"),
        (entry(shape=[2, 2], data_offsets=[0, 16]), "the file goes on after its last array"),
        ({"__metadata__": {}}, "the file goes on after its last array"),
        (entry(shape=[2**62], data_offsets=[0, 2**64]), "entry for 'a' is"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, message):
    write_safetensors(tmp_path, header)
    with pytest.raises(ValueError, match=f"{tmp_path}/m: .*{message}"):
        open_safetensors(open_folder(tmp_path), "m")


@pytest.mark.parametrize("length", [0, 7, 8, 20, -1])
def test_a_file_cut_off_is_refused(tmp_path, length):
    """In the header's length, before and in the header, and in the last array."""
    write_safetensors(tmp_path, entry())
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{tmp_path}/m: half written or damaged"):
        open_safetensors(open_folder(tmp_path), "m")


def test_a_header_longer_than_any_is_not_asked_for(tmp_path):
    (tmp_path / "m").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match=f"{tmp_path}/m: no safetensors file .*{2**60} bytes"):
        open_safetensors(open_folder(tmp_path), "m")


def whole(array) -> np.ndarray:
    return array.read(tuple(slice(0, size) for size in array.shape))


def test_numbers_are_those_that_the_library_reads(tmp_path):
    """Every number of 16 bits, and buffers of whole numbers between them."""
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    arrays = {
        "half": bits.view(np.float16),
        "bfloat16": bits.view(ml_dtypes.bfloat16),
        "single": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32),
        "double": np.random.default_rng(1).standard_normal(7),
        "empty": np.zeros((0, 4), np.float32),
    }
    arrays |= {f"buffer {x}": np.ones(3, x) for x in ("int64", "uint8", "bool", "int16")}
    file = tmp_path / "m"
    safetensors.numpy.save_file(arrays, file, metadata={"format": "pt"})
    found, expected = (
        open_safetensors(open_folder(tmp_path), "m"),
        safetensors.numpy.load_file(file),
    )
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape
        assert whole(array).tobytes() == expected[name].tobytes() == arrays[name].tobytes()


def test_parts_are_those_of_numpy(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{len(s)}": rng.standard_normal(s).astype(np.float32) for s in ((), (7,), (6, 5))}
    arrays["3"] = rng.standard_normal((4, 3, 2)).astype(np.float16)
    safetensors.numpy.save_file(arrays, tmp_path / "m")
    found = open_safetensors(open_folder(tmp_path), "m")
    for name, expected in arrays.items():
        for _ in range(30):
            bounds = [sorted(rng.integers(0, n + 1, 2)) for n in expected.shape]
            index = tuple(slice(int(a), int(b)) for a, b in bounds)
            np.testing.assert_array_equal(found[name].read(index), expected[index])
            turned = found[name].transposed()
            assert turned.shape == expected.T.shape
            np.testing.assert_array_equal(turned.read(index[::-1]), expected.T[index[::-1]])


LARGE = T5Config(
    vocab_size=32128, emb_dim=512, num_heads=8, num_encoder_layers=8, num_decoder_layers=8,
    head_dim=64, mlp_dim=1024, mlp_activations=("gelu", "linear"),
)  # fmt: skip
PEAK = """
import sys, jax
from dera_jax.checkpoints.loading import load
from dera_jax.partitioning import make_mesh, use_mesh

path, small, dtype, model = sys.argv[1:]
mesh = make_mesh(model=int(model)) if int(model) else make_mesh(1)
status = lambda key: next(
    int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key)
)
with use_mesh(mesh):
    load(small, dtype=dtype)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
with use_mesh(mesh):
    params = load(path, dtype=dtype).params
print(sum(x.nbytes for x in jax.tree.leaves(params)), status("VmHWM") - before)
"""


def write_legacy(folder: Path, params) -> None:
    """As T5X: arrays in gzipped chunks, and a file that names them."""
    folder.mkdir()
    specs = {}
    for name, x in flat(params).items():
        path = f"target.{name.replace('/', '.')}"
        metadata = {"shape": x.shape, "chunks": [min(n, 8192) for n in x.shape], "dtype": "<f4"}
        metadata["compressor"] = {"id": "gzip", "level": 1}
        kvstore = {"driver": "file", "path": f"{folder / path}/"}
        spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
        ts.open(spec, create=True).result().write(x).result()
        specs[name] = {**spec, "metadata": {"shape": list(x.shape)}}
    tree = flax.traverse_util.unflatten_dict(specs, sep="/")
    content = {"version": 3, "optimizer": {"target": tree}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


@pytest.fixture(scope="module")
def large():
    like, rng = jax.eval_shape(T5(LARGE).init, jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), like)


WRITERS = {
    "ours": lambda folder, params: save_model(folder, LARGE, None, params, {}),
    "hf": lambda folder, params: save_hugging_face(folder, LARGE, None, params, "float32"),
    "hf bf16": lambda folder, params: save_hugging_face(folder, LARGE, None, params, "bfloat16"),
    "legacy": write_legacy,
    "orbax": lambda folder, params: orbax.checkpoint.PyTreeCheckpointer().save(
        folder / "state", {"target": params}
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind == "hf bf16" else pytest.mark.evidence)
        for kind in WRITERS
    ],
)
def test_reading_takes_little_more_memory_than_the_parameters(kind, large, tmp_path):
    """On one device, and split over four, where every part is read by itself."""
    small, params, _ = golden.load("v1_1")
    save_model(tmp_path / "small", small.config, None, params, {})
    WRITERS[kind](tmp_path / "large", large)
    for model in (0, 4) if kind in ("ours", "legacy") else (0,):
        arguments = str(tmp_path / "large"), str(tmp_path / "small"), "float32", str(model)
        held, peak = map(int, run_with_devices(max(1, model), PEAK, *arguments).split())
        assert 300e6 < held < 350e6
        assert peak < 1.3 * held, f"{peak / held} over {model}"
    shutil.rmtree(tmp_path / "large")
