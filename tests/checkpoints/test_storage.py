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
import numpy as np
import pytest
import safetensors.numpy

from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.vocabulary import Vocabulary
from tasks import vocabularies
from tests import golden

flat = lambda tree: flax.traverse_util.flatten_dict(tree, sep="/")


def assert_equal(found, expected) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name)


def run_with_devices(devices: int, script: str, *arguments: str) -> str:
    """What a script prints in a process with so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
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
    vocabulary = Vocabulary(pieces, 20)
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
from dera_jax.partitioning import make_mesh

found, expected = load(sys.argv[1], mesh=make_mesh(4)), load(sys.argv[2])
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
    assert sorted(x for x in spans if first <= x[0] < begin + last) == rows
