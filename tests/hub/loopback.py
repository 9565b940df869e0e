"""A Hugging Face Hub on 127.0.0.1, in memory: what huggingface_hub's client asks for, and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from hub.xet_store import XetStore
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

WRITE, READ, OTHER, WRONG = (f"hf_{name}{'x7' * 15}" for name in ("Write", "Read", "Other", "Wrong"))
ACCOUNTS = {WRITE: ("alice", "write"), READ: ("alice", "read"), OTHER: ("bob", "write")}
BINARY = (".safetensors", ".png", ".bin")


@dataclass(frozen=True)
class File:
    """One file of a commit; `oid` is git's for what git holds, the SHA-256 for what lies in the object store."""

    oid: str
    size: int
    lfs: bool


@dataclass
class Repo:
    """Commits by id, each a mapping of paths to files, and the branches and tags that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File]) -> str:
        """Put `files` at the tip of a branch; returns the commit's id."""
        content = f"{len(self.commits)}{branch}{sorted(files.items())}"
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str:
        """Return the commit that a branch, a tag or a commit id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


@dataclass
class Fault:
    """What goes wrong on a route, so many times.

    Args:
        route: Name of the route, a key of `Loopback.routes`.
        kind: A status to answer with; something to do first; or, once the work is done, "lose" (the connection breaks
            before the answer), "truncate" (half of the answer) or "flip" (one bit of it is another).
        times: How often.
        after: How many requests go well before.
    """

    route: str
    kind: int | str | Callable[[], object]
    times: int = 1
    after: int = 0


class Refusal(Exception):
    """An error answer, as the Hub words it."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message

    def response(self) -> Response:
        headers = {"X-Error-Code": self.code} if self.code else {}
        return JSONResponse({"error": self.message}, self.status, headers | {"X-Error-Message": self.message})


class Cut(Response):
    """Announces a body and breaks the connection after `body`."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        size = str(2 * len(self.body) + 2).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"content-length", size)]})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        raise ConnectionAbortedError


class Loopback:
    """The server; `with Loopback() as hub:` runs it in a thread.

    Args:
        part_size: Objects above so many bytes go up in parts.
    """

    def __init__(self, part_size: int | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # by SHA-1 for git's blobs, by SHA-256 for large files
        self.parts: dict[str, dict[int, bytes]] = {}
        self.xet = XetStore()
        self.part_size = part_size
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.leaks: list[str] = []  # requests that carry a token to where none belongs
        api, repo = "/api/models/{owner}/{name}", "/{owner}/{name}"
        self.routes = {
            "whoami": ("GET", "/api/whoami-v2", self.whoami),
            "create": ("POST", "/api/repos/create", self.create),
            "validate": ("POST", "/api/validate-yaml", self.validate),
            "refs": ("GET", f"{api}/refs", self.refs),
            "branch": ("POST", f"{api}/branch/{{revision:path}}", self.branch),
            "tag": ("POST", f"{api}/tag/{{revision:path}}", self.tag),
            "preupload": ("POST", f"{api}/preupload/{{revision:path}}", self.preupload),
            "commit": ("POST", f"{api}/commit/{{revision:path}}", self.commit),
            "settings": ("PUT", f"{api}/settings", self.settings),
            "tree": ("GET", f"{api}/tree/{{revision}}", self.tree),
            "subtree": ("GET", f"{api}/tree/{{revision}}/{{path:path}}", self.tree),
            "info": ("GET", api, self.info),
            "revision": ("GET", f"{api}/revision/{{revision:path}}", self.info),
            "batch": ("POST", "/{owner}/{name}.git/info/lfs/objects/batch", self.batch),
            "put": ("PUT", "/objects/{oid}", self.put),
            "part": ("PUT", "/objects/{oid}/{part:int}", self.put),
            "complete": ("POST", "/objects/{oid}/complete", self.complete),
            "verify": ("POST", "/objects/{oid}/verify", self.verify),
            "get": ("GET", "/objects/{oid}", self.get),
            "resolve": ("GET", f"{repo}/resolve/{{revision}}/{{path:path}}", self.file),
            "xet-token": ("GET", f"{api}/xet-{{access}}-token/{{revision:path}}", self.xet_token),
            "xorb": ("POST", "/v1/xorbs/{prefix}/{hash}", self.xorb),
            "shard": ("POST", "/v1/shards", self.shard),
            "reconstruction": ("GET", "/v1/reconstructions/{hash}", self.reconstruction),
            "xorb-range": ("GET", "/xorbs/{hash}", self.xorb_range),
        }
        app = Starlette(
            routes=[Route(path, self._serve(name), methods=[method]) for name, (method, path, _) in self.routes.items()]
        )
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))

    def __enter__(self) -> Loopback:
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        # Large files lie on another host, as on the real Hub: the client takes a commit's id from the redirection only.
        self.url, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(5)

    def _serve(self, name: str) -> Any:
        work = self.routes[name][2]

        async def endpoint(request: Request) -> Response:
            self.requests[name] += 1
            if request.url.hostname == "localhost" and any(token in str(request.headers.raw) for token in ACCOUNTS):
                self.leaks.append(f"{name} {request.url}")
            fault = next((fault for fault in self.faults if fault.route == name), None)
            if fault is not None and fault.after:
                fault.after -= 1
                fault = None
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                if isinstance(fault.kind, int):
                    return Refusal(fault.kind, message=f"{fault.kind} on demand").response()
                if callable(fault.kind):
                    fault.kind()
            try:
                response: Response = work(request, await request.body())
            except Refusal as refusal:
                return refusal.response()
            return self._spoil(response, fault.kind) if fault is not None and not callable(fault.kind) else response

        return endpoint

    @staticmethod
    def _spoil(response: Response, kind: int | str) -> Response:
        body = bytes(response.body)
        if kind == "flip":
            middle = len(body) // 2
            response.body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            return response
        return Cut(body[: len(body) // 2] if kind == "truncate" else b"")

    # accounts and access

    def _account(self, request: Request, write: str | None = None) -> str | None:
        """Return the user; with `write`, refuse all who may not write to that owner's repositories."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in ACCOUNTS:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        user, role = ACCOUNTS.get(token, (None, None))
        if write is not None and user is None:
            raise Refusal(401, message="Invalid username or password.")
        if write is not None and (user != write or role != "write"):
            raise Refusal(403, message=f"You don't have the rights to write under the namespace {write}")
        return user

    def _repo(self, request: Request, write: bool = False, content: bool = False) -> Repo:
        owner, name = request.path_params["owner"], request.path_params["name"]
        user = self._account(request)
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and user != owner):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and user != owner:
            raise Refusal(403 if user else 401, "GatedRepo", "Access to this model is restricted")
        if write:
            self._account(request, write=owner)
        return repo

    def whoami(self, request: Request, body: bytes) -> Response:
        user = self._account(request)
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        role = ACCOUNTS[request.headers["authorization"].removeprefix("Bearer ")][1]
        return JSONResponse({"type": "user", "name": user, "auth": {"accessToken": {"role": role}}, "orgs": []})

    # repositories

    def create(self, request: Request, body: bytes) -> Response:
        wanted = json.loads(body)
        owner = wanted.get("organization") or self._account(request) or ""
        self._account(request, write=owner)
        repo_id = f"{owner}/{wanted['name']}"
        url = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            return JSONResponse({"error": "You already created this model repo", **url}, 409)
        self.repos[repo_id] = Repo(private=wanted.get("visibility") == "private")
        self.repos[repo_id].commit("main", {".gitattributes": self._blob(b"*.safetensors filter=lfs\n")})
        return JSONResponse(url)

    def validate(self, request: Request, body: bytes) -> Response:
        content = json.loads(body)["content"]
        warnings = [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"warnings": warnings, "errors": []})

    def settings(self, request: Request, body: bytes) -> Response:
        repo, wanted = self._repo(request, write=True), json.loads(body)
        repo.private = wanted.get("visibility", "private" if repo.private else "public") == "private"
        repo.gated = bool(wanted.get("gated", repo.gated))
        return JSONResponse({})

    def refs(self, request: Request, body: bytes) -> Response:
        repo = self._repo(request)
        pairs = {"branches": (repo.branches, "heads"), "tags": (repo.tags, "tags")}
        listed = {
            kind: [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for kind, (refs, folder) in pairs.items()
        }
        return JSONResponse({"converts": [], **listed})

    def branch(self, request: Request, body: bytes) -> Response:
        return self._name(
            self._repo(request, write=True),
            "branches",
            request.path_params["revision"],
            json.loads(body).get("startingPoint", "main"),
        )

    def tag(self, request: Request, body: bytes) -> Response:
        return self._name(
            self._repo(request, write=True), "tags", json.loads(body)["tag"], request.path_params["revision"]
        )

    @staticmethod
    def _name(repo: Repo, kind: str, name: str, revision: str) -> Response:
        refs = getattr(repo, kind)
        if name in refs:
            raise Refusal(409, message="Reference already exists")
        refs[name] = repo.resolve(revision)
        return JSONResponse({})

    def info(self, request: Request, body: bytes) -> Response:
        repo, repo_id = self._repo(request), f"{request.path_params['owner']}/{request.path_params['name']}"
        oid = repo.resolve(request.path_params.get("revision", "main"))
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        access = {"private": repo.private, "gated": "manual" if repo.gated else False}
        return JSONResponse({"id": repo_id, "modelId": repo_id, "sha": oid, "siblings": siblings, "tags": [], **access})

    def tree(self, request: Request, body: bytes) -> Response:
        repo = self._repo(request, content=True)
        folder = request.path_params.get("path", "")
        files = repo.commits[repo.resolve(request.path_params["revision"])]
        chosen = {path: file for path, file in files.items() if path.startswith(folder)}
        if folder and not chosen:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        return JSONResponse([self._entry(path, file) for path, file in chosen.items()])

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "oid": file.oid[:40], "size": file.size}
        if file.lfs:
            entry["lfs"] = {"oid": file.oid, "size": file.size, "pointerSize": 130}
        return entry | ({"xetHash": self.xet.files[file.oid]} if file.oid in self.xet.files else {})

    # uploads

    def _blob(self, content: bytes) -> File:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.objects[oid] = content
        return File(oid, len(content), lfs=False)

    def preupload(self, request: Request, body: bytes) -> Response:
        repo = self._repo(request, write=True)
        known = repo.commits[repo.resolve(request.path_params["revision"])]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(BINARY) else "regular",
                "shouldIgnore": False,
                "oid": known[file["path"]].oid if file["path"] in known else None,
            }
            for file in json.loads(body)["files"]
        ]
        return JSONResponse({"files": modes})

    def batch(self, request: Request, body: bytes) -> Response:
        self._repo(request, write=True)
        return JSONResponse(
            {"objects": [self._upload(item["oid"], item["size"]) for item in json.loads(body)["objects"]]}
        )

    def _upload(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.objects:
            return {"oid": oid, "size": size}
        href = f"{self.storage}/objects/{oid}"
        upload: dict[str, Any] = {"href": href}
        if self.part_size and size > self.part_size:
            numbers = range(1, -(-size // self.part_size) + 1)
            header = {str(number): f"{href}/{number}" for number in numbers}
            upload = {"href": f"{href}/complete", "header": {"chunk_size": str(self.part_size), **header}}
        verify = {"href": f"{self.url}/objects/{oid}/verify"}  # this one gets the token: it is the Hub's own host
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def put(self, request: Request, body: bytes) -> Response:
        oid, part = request.path_params["oid"], request.path_params.get("part")
        if part is None:
            self._store(oid, body)
        else:
            self.parts.setdefault(oid, {})[part] = body
        return Response(headers={"ETag": hashlib.md5(body).hexdigest()})

    def complete(self, request: Request, body: bytes) -> Response:
        oid, parts = request.path_params["oid"], self.parts[request.path_params["oid"]]
        self._store(oid, b"".join(parts[item["partNumber"]] for item in json.loads(body)["parts"]))
        return JSONResponse({})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(422, message="The content's SHA-256 is not the object's id")
        self.objects[oid] = content

    def verify(self, request: Request, body: bytes) -> Response:
        wanted = json.loads(body)
        if len(self.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, message="The object is not here")
        return JSONResponse({})

    def commit(self, request: Request, body: bytes) -> Response:
        repo, branch = self._repo(request, write=True), request.path_params["revision"]
        head = repo.resolve(branch)
        files = dict(repo.commits[head])
        for item in map(json.loads, body.splitlines()):
            kind, value = item["key"], item["value"]
            if kind == "header" and value.get("parentCommit", head) != head:
                raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
            if kind == "file":
                files[value["path"]] = self._blob(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if value["oid"] not in self.objects and value["oid"] not in self.xet.files:
                    raise Refusal(400, message=f"{value['path']}: its content was never uploaded")
                files[value["path"]] = File(value["oid"], value["size"], lfs=True)
            elif kind == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
        oid = repo.commit(branch, files)
        url = f"{self.url}/{request.path_params['owner']}/{request.path_params['name']}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # downloads

    def file(self, request: Request, body: bytes) -> Response:
        repo, path = self._repo(request, content=True), request.path_params["path"]
        commit = repo.resolve(request.path_params["revision"])
        headers = {"X-Repo-Commit": commit}
        file = repo.commits[commit].get(path)
        if file is None:
            return JSONResponse({}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{file.oid}"', "X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.oid}"'}
        if not file.lfs:
            return Response(self.objects[file.oid], headers=headers)
        if file.oid in self.xet.files:
            owner, name = request.path_params["owner"], request.path_params["name"]
            token = f"{self.url}/api/models/{owner}/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": self.xet.files[file.oid], "Link": f'<{token}>; rel="xet-auth"'}
        return Response(status_code=302, headers=headers | {"Location": f"{self.storage}/objects/{file.oid}"})

    def get(self, request: Request, body: bytes) -> Response:
        content = self.objects[request.path_params["oid"]]
        if (wanted := request.headers.get("range")) is None:
            return Response(content)
        begin = int(wanted.removeprefix("bytes=").split("-")[0])
        headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        return Response(content[begin:], 206, headers)

    # xet

    def xet_token(self, request: Request, body: bytes) -> Response:
        self._repo(request, write=request.path_params["access"] == "write", content=True)
        expires = int(time.time()) + 3600
        headers = {"Cas-Url": self.storage, "Access-Token": "xet-pass", "Token-Expiration": str(expires)}
        fields = {"casUrl": self.storage, "accessToken": "xet-pass", "exp": expires}
        return JSONResponse(fields, headers={f"X-Xet-{name}": value for name, value in headers.items()})

    def xorb(self, request: Request, body: bytes) -> Response:
        self.xet.add_xorb(request.path_params["hash"], body)
        return JSONResponse({"was_inserted": True})

    def shard(self, request: Request, body: bytes) -> Response:
        self.xet.add_shard(body)
        return JSONResponse({"result": 1})

    def reconstruction(self, request: Request, body: bytes) -> Response:
        return JSONResponse(self.xet.reconstruction(request.path_params["hash"], f"{self.storage}/xorbs"))

    def xorb_range(self, request: Request, body: bytes) -> Response:
        content = self.xet.xorbs[request.path_params["hash"]]
        begin, end = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        headers = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
        return Response(content[begin : end + 1], 206, headers)
