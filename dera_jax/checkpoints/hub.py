"""Downloads models of the Hugging Face hub, by name, into the cache of the huggingface_hub library.

owner/name                  the model on the branch main
owner/name@revision         on another branch or tag, or at a commit (40 hexadecimal digits)
owner/name/file.gguf        one GGUF file of a repository; a revision may follow

Only files that dera_jax reads are downloaded, and no pickles. The library's environment variables
apply: HF_TOKEN for gated and private models, HF_HUB_OFFLINE=1 to use the cache alone, HF_HOME for the
cache, HF_ENDPOINT for another hub. Within a process, a name means the commit that it meant first.

Source: the library's documentation of snapshot_download, of the cache and of hf:// addresses.
"""

import contextlib
import dataclasses
import functools
import glob
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dera_jax.checkpoints.hugging_face import (
    INDEX,
    OTHER_WEIGHTS,
    WEIGHTS,
    no_safetensors,
    shards_by_array,
)
from dera_jax.checkpoints.hugging_face_tokenizer import CONFIG, GENERATION
from dera_jax.checkpoints.hugging_face_tokens import ADDED, SPECIAL, TOKENIZER
from dera_jax.checkpoints.json_vocabulary import JSON
from dera_jax.checkpoints.model_folder import CARD
from dera_jax.checkpoints.storage import open_folder
from dera_jax.progress_bar import redraws

# Names of the library start and end with a letter, digit or '_', and have no '--' or '..'.
_PART = r"\w(?:(?:(?!--|\.\.)[\w.-]){0,94}\w)?"
_NAME = re.compile(
    rf"(?P<name>{_PART}/{_PART}(?<!\.git))(?P<file>(?:/{_PART})+\.gguf)?(?:@(?P<revision>[\w.+/-]{{1,150}}))?",
    re.ASCII,
)
_ADAPTER_CONFIG, _ADAPTER = "adapter_config.json", "adapter_model.safetensors"
_SETTINGS = (CONFIG, GENERATION, CARD, JSON, TOKENIZER, SPECIAL, ADDED, "*.model", "*.jinja", INDEX, _ADAPTER_CONFIG)  # fmt: skip
_UNAUTHORIZED, _FORBIDDEN = 401, 403  # status of responses
_MOST_NAMES = 4  # files that a message lists


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A model of the hub whose files are in the cache.

    Attributes:
        name: owner/name, or owner/name/file.gguf.
        revision: hash of the commit.
        path: the folder in the cache with the files of that commit, or the GGUF file there.
    """

    name: str
    revision: str
    path: Path

    @property
    def pinned(self) -> str:
        """The name with the commit, which always means the same files."""
        return f"{self.name}@{self.revision}"


def is_hub_name(path: str | Path) -> bool:
    """Returns whether a path is a name on the hub: it has that form, and nothing lies at it here."""
    return _NAME.fullmatch(str(path)) is not None and not Path(path).exists()


def download(name: str | Path, weights: bool = True) -> HubModel:
    """Downloads what the cache lacks of a model.

    Args:
        name: a name for which `is_hub_name` is true.
        weights: whether to download the parameters; without them, the tokenizer can be read.

    Raises:
        FileNotFoundError: there is neither such a path nor such a model, revision or GGUF file;
            offline, the model is not in the cache; or it has no parameters in safetensors files.
        PermissionError: the model is gated, or the token is not valid.
        ConnectionError: the hub cannot be reached, or the download failed.
        OSError: the cache cannot be written to, for example because the disk is full.
        ValueError: the index of the shards is not valid.
    """
    asked = str(name)
    repository, file, revision = _NAME.fullmatch(asked).group("name", "file", "revision")
    snapshot = _settings(asked, repository, revision)
    model = HubModel(f"{repository}{file or ''}", snapshot.name, snapshot)
    if file:
        wanted = [file[1:]]
        model = dataclasses.replace(model, path=snapshot / wanted[0])
    else:
        wanted = _weights(snapshot) if weights else []
    if not all((snapshot / x).exists() for x in wanted):
        _snapshot(asked, repository, snapshot.name, [glob.escape(x) for x in wanted])
    if wanted and not any((snapshot / x).exists() for x in wanted):
        raise FileNotFoundError(_no_weights(model, repository, snapshot, revision))
    return model


def cached(name: str) -> HubModel | None:
    """Returns a model of the branch main with one file of parameters, if the cache has that file.

    The network is never used.
    """
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, WEIGHTS)
    if not isinstance(file, str):
        return None
    snapshot = Path(file).parent
    return HubModel(name, snapshot.name, snapshot)


@functools.cache
def _settings(asked: str, repository: str, revision: str | None) -> Path:
    """Download all small files of a model and return their folder, which the commit names."""
    folder = _snapshot(asked, repository, revision, _SETTINGS)
    if _names(repository, folder.name) is None:
        print(
            f"{asked}: the cache has no list of the model's files, so that some may be missing in "
            f"{folder}; load it once with a connection to the hub",
            file=sys.stderr,
        )
    return folder


def _snapshot(asked: str, repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download files by pattern; raises as `download`."""
    # Imported here: it takes 0.4 seconds, and local checkpoints do not need it.
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    show = contextlib.nullcontext if redraws() else disable_progress_bars
    try:
        with show():
            return Path(
                snapshot_download(repository, revision=revision, allow_patterns=list(patterns))
            )
    except (OSError, errors.HTTPError) as error:
        raise _explained(asked, repository, error) from error


def _weights(snapshot: Path) -> list[str]:
    """Return the names of the parameters' files; of a sharded model, those that its index names.

    Raises:
        ValueError: the index is not valid, or names files of another format.
    """
    names = []
    if (snapshot / _ADAPTER_CONFIG).exists():
        names.append(_ADAPTER)
    if (snapshot / INDEX).exists():
        names += sorted(set(shards_by_array(open_folder(snapshot)).values()))
        if pickles := [x for x in names if not x.endswith(".safetensors")]:
            raise ValueError(
                f"{snapshot / INDEX}: weight_map names {pickles[0]!r}; only .safetensors files are "
                "downloaded"
            )
    elif (snapshot / CONFIG).exists() or not names:
        names.append(WEIGHTS)
    return names


def _names(repository: str, commit: str) -> list[str] | None:
    """Return the names of all files of a commit from the cache; None if it does not list them."""
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        return [x.path for x in get_cached_repo_tree(repository, revision=commit)]
    except errors.CachedRepoTreeNotFoundError:
        return None


def _no_weights(model: HubModel, repository: str, snapshot: Path, revision: str | None) -> str:
    """Return what is wrong with a model of which no file of parameters can be read."""
    names = _names(repository, snapshot.name) or []
    files = [x for x in names if x.endswith(".gguf")]
    listed = ", ".join(files[:_MOST_NAMES]) + (", ..." if len(files) > _MOST_NAMES else "")
    if model.path != snapshot:
        others = f"its GGUF files are {listed}" if files else "it has no GGUF file"
        return f"{repository} has no file {model.path.relative_to(snapshot)} at {snapshot.name}; {others}"
    if (snapshot / INDEX).exists():
        return (
            f"{model.pinned} is no complete model: it has none of the files that its {INDEX} names"
        )
    if (snapshot / _ADAPTER_CONFIG).exists():
        return (
            f"{model.pinned} has no {_ADAPTER}; an adapter_model.bin is not read here (a pickle can run "
            "arbitrary code): load it once with peft, if you trust its source, and save it with "
            "save_pretrained('converted')"
        )
    if files:
        at = f"@{revision}" if revision else ""
        return (
            f"{model.pinned} has no {WEIGHTS}, but GGUF files ({listed}); name one of them, such as "
            f"{repository}/{files[0]}{at}"
        )
    others = [x for x in OTHER_WEIGHTS if x in names]
    source = repr(repository) + (f", revision={revision!r}" if revision else "")
    return no_safetensors(open_folder(snapshot), model.pinned, source, others)


def _explained(asked: str, repository: str, error: Exception) -> Exception:
    """Return an exception whose message is one sentence with the cause and what to do."""
    from huggingface_hub import constants, errors, get_token

    hub, cause = constants.ENDPOINT, error.__cause__ or error
    page, neither = f"{hub}/{repository}", f"there is no local path {asked!r}, and"
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{neither} the model of that name on the hub is gated: accept its conditions on {page}, "
            "and set HF_TOKEN to a token of the account that accepted them"
        )
    status = _status(error) or _status(cause)
    is_unknown = status == _UNAUTHORIZED and not get_token()  # the answer for private models, too
    if is_unknown or isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{neither} {hub} shows no model {repository}: correct the path or the name, or set "
            "HF_TOKEN to a token that may read the model if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{neither} the model {repository} has no such revision: give a branch, a tag or a full "
            f"commit hash of {page}"
        )
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return PermissionError(
            f"{neither} {hub} does not let the token in use read {repository} ({reason}): correct "
            "HF_TOKEN and the permissions of that token, or log in again with 'hf auth login'"
        )
    return _not_downloaded(neither, repository, error, reason)


def _not_downloaded(neither: str, repository: str, error: Exception, reason: str) -> Exception:
    """Return an exception for a download that failed on this machine or on the way to it."""
    from huggingface_hub import constants

    if isinstance(error, OSError) and error.errno is not None:
        return OSError(
            error.errno,
            f"{error.strerror}, while {repository} was downloaded from the hub: make room, or set "
            "HF_HOME to another folder",
            error.filename or constants.HF_HUB_CACHE,
        )
    if constants.HF_HUB_OFFLINE:
        return FileNotFoundError(
            f"{neither} the model {repository} is not, or not completely, in the cache "
            f"{constants.HF_HUB_CACHE}: correct the path, or unset HF_HUB_OFFLINE to download it"
        )
    return ConnectionError(
        f"{neither} the model {repository} cannot be downloaded from {constants.ENDPOINT} "
        f"({reason}): correct the path, or try again when the hub can be reached"
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the response that an error is about; None for other errors."""
    return getattr(getattr(error, "response", None), "status_code", None)
