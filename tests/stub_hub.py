"""A stand-in for the Hugging Face hub on loopback, with the requests that huggingface_hub makes.

GET  /api/models/{owner}/{name}/revision/{revision}   commit of a branch, tag or commit
GET  /api/models/{owner}/{name}/tree/{commit}         names and sizes of the files
HEAD, GET /{owner}/{name}/resolve/{commit}/{file}     size and ETag; content, or for *.safetensors a
                                                      redirect to /cdn/{sha256}
"""

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_stub"
LARGE = ".safetensors"  # stored by Git LFS, and served from another address


@dataclasses.dataclass
class Repository:
    """The files of each commit, the branches, and who may read: 'all', 'token' or 'accepted'."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    readers: str = "all"


@dataclasses.dataclass
class StubHub:
    """What is served, and the requests so far; a status in `failing` answers every request."""

    endpoint: str = ""
    repositories: dict[str, Repository] = dataclasses.field(default_factory=dict)
    requests: list[str] = dataclasses.field(default_factory=list)
    failing: int | None = None

    def push(self, name: str, folder: Path, branch: str = "main", readers: str = "all") -> str:
        """Commits the files of a folder; returns the hash of the commit."""
        files = {
            str(x.relative_to(folder)): x.read_bytes()
            for x in sorted(folder.rglob("*"))
            if x.is_file()
        }
        content = repr([(path, sha(x)) for path, x in files.items()])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}, readers))
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def downloaded(self) -> set[str]:
        """The names of the files whose content was sent."""
        asked = {x.rpartition("/")[2] for x in self.requests if x.startswith("GET /cdn/")}
        commits = [
            x for repository in self.repositories.values() for x in repository.commits.values()
        ]
        large = {name for files in commits for name, x in files.items() if sha(x) in asked}
        small = {
            x.rpartition("/")[2] for x in self.requests if x.startswith("GET") and "/resolve/" in x
        }
        return large | small


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[StubHub]:
    """Serves a hub without models until the `with` block ends."""
    hub = StubHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: StubHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            hub.requests.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            if hub.failing:
                self.answer(hub.failing)
            elif parts[0] == "cdn":
                self.answer(200, contents()[parts[1]])
            elif parts[:2] == ["api", "models"]:
                self.ask(parts[2:4], parts[4], "/".join(parts[5:]).replace("%2F", "/"))
            elif parts[2:3] != ["resolve"]:
                self.answer(404)  # what the library asks for its own use
            else:
                self.resolve(parts[:2], parts[3], "/".join(parts[4:]))

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

        def answer(self, status: int, content: bytes = b"", **headers: str):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def readable(self, name: list[str], is_file: bool) -> Repository | None:
            """The repository, or None after the answer that it may not be read, as the hub gives it."""
            repository, token = hub.repositories.get("/".join(name)), self.headers["Authorization"]
            if token not in (None, f"Bearer {TOKEN}"):
                message = "Invalid credentials in Authorization header"
                self.answer(401, X_Error_Message=message)
            elif repository is None or (repository.readers == "token" and not token):
                code = {"X_Error_Code": "RepoNotFound"} if token else {}
                self.answer(404 if token else 401, X_Error_Message="Repository not found", **code)
            elif repository.readers == "accepted" and is_file:  # its names are public
                self.answer(403 if token else 401, X_Error_Code="GatedRepo")
            elif repository.readers == "disabled":
                self.answer(403, X_Error_Message="Access to this resource is disabled.")
            else:
                return repository
            return None

        def ask(self, name: list[str], what: str, revision: str):
            repository = self.readable(name, is_file=False)
            if repository is None:
                return
            commit = repository.branches.get(revision, revision)
            if commit not in repository.commits:
                self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            elif what == "revision":
                self.answer(200, json.dumps({"id": "/".join(name), "sha": commit}).encode())
            else:
                entries = [entry(*x) for x in repository.commits[commit].items()]
                self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")

        def resolve(self, name: list[str], commit: str, file: str):
            repository = self.readable(name, is_file=True)
            if repository is None:
                return
            content = repository.commits[commit][file]
            found = {"X_Repo_Commit": commit, "ETag": f'"{sha(content)}"'}
            if not file.endswith(LARGE):
                self.answer(200, content, **found)
                return
            linked = {"X_Linked_ETag": found["ETag"], "X_Linked_Size": str(len(content))}
            self.answer(
                302, Location=f"{elsewhere()}/cdn/{sha(content)}", **linked, X_Repo_Commit=commit
            )

    def elsewhere() -> str:
        """The address of large files, which the client takes for another server."""
        return hub.endpoint.replace("127.0.0.1", "localhost")

    def contents() -> dict[str, bytes]:
        commits = [
            x for repository in hub.repositories.values() for x in repository.commits.values()
        ]
        return {sha(content): content for files in commits for content in files.values()}

    def entry(path: str, content: bytes) -> dict:
        found = {"type": "file", "path": path, "size": len(content), "oid": sha(content)[:40]}
        lfs = {"oid": sha(content), "size": len(content), "pointerSize": 130}
        return found | ({"lfs": lfs} if path.endswith(LARGE) else {})

    return Handler
