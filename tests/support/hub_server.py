"""A Hub for the tests: the part of its HTTP API that huggingface_hub uses, with faults on request.

`with Hub(folder) as hub:` serves it on this machine. With the variables of `hub.environment`, the
unchanged client of a process uses it.
"""

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".npz",
    ".parquet",
)  # as a new repository's .gitattributes
CHUNK = 5_000_000  # of an upload in parts; the Hub's are larger
PAGE = 5  # files that a page of a listing holds; the Hub's hold 1000
WRITER, READER = "hf_writerwriterwriterwriter", "hf_readerreaderreaderreader"
REPO = "/{owner}/{name}"
API = "/api/{kind}" + REPO


class Refused(Exception):
    """An error as the Hub answers it: a status, the code that the client reads, and a message."""

    def __init__(self, status: int, code: str, message: str):
        self.response = JSONResponse(
            {"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message}
        )


class Hub:
    """Model repositories, their commits and branches. Uploads lie in `folder` under their SHA-256.

    Attributes:
        users: User and whether they may write, by token.
        fault: Returns a status for a method and path that shall fail, or None.
        requests: Method, path and status of all answers.
        unknown: Requests without a route.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.users = {WRITER: ("me", True), READER: ("reader", False)}
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.repos: dict[str, dict] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.unknown: list[str] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Two hosts, as the Hub has them.
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn_url = f"http://localhost:{self.port}"
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route(API, self.info),
            Route(API + "/revision/{revision}", self.info),
            Route(API + "/branch/{branch}", self.branch, methods=["POST"]),
            Route(API + "/preupload/{revision}", self.preupload, methods=["POST"]),
            Route(API + "/commit/{revision}", self.commit, methods=["POST"]),
            Route(API + "/xet-write-token/{revision}", self.xet_token),
            Route(API + "/tree/{revision}", self.tree),
            Route(API + "/tree/{revision}/{path:path}", self.tree),
            Route(API + "/paths-info/{revision}", self.paths_info, methods=["POST"]),
            Route(REPO + ".git/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]),
            Route(
                "/datasets" + REPO + ".git/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]
            ),
            Route("/lfs/{oid}/verify", self.lfs_verify, methods=["POST"]),
            Route("/lfs/{oid}", self.lfs_put, methods=["PUT"]),
            Route("/lfs/{oid}", self.lfs_complete, methods=["POST"]),
            Route("/lfs/{oid}/{part:int}", self.lfs_put, methods=["PUT"]),
            Route("/cdn/{oid}", self.cdn),
            Route("/datasets" + REPO + "/resolve/{revision}/{path:path}", self.resolve),
            Route(REPO + "/resolve/{revision}/{path:path}", self.resolve),
            Route("/{path:path}", self.nothing, methods=["GET", "POST", "PUT", "DELETE", "HEAD"]),
        ]
        self.app = Starlette(
            routes=routes, exception_handlers={Refused: lambda request, error: error.response}
        )

    # ---- serving ----

    async def answer(self, scope, receive, send):
        """ASGI: the application, with the faults that were ordered, and a record."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def record(message):
            if message["type"] == "http.response.start":
                self.requests.append((scope["method"], scope["path"], message["status"]))
            await send(message)

        if status := self.fault(scope["method"], scope["path"]):
            while (await receive()).get("more_body"):
                pass
            return await JSONResponse({"error": "ordered"}, status)(scope, receive, record)
        return await self.app(scope, receive, record)

    def start(self) -> "Hub":
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.answer, port=self.port, log_level="error", lifespan="off", interface="asgi3"
            )
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *exception) -> None:
        self.stop()

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """Variables for a process with this Hub, a cache of its own, and LFS instead of Xet."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return {**variables, "HF_TOKEN": token} if token else variables

    # ---- what is stored ----

    def store(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / oid).write_bytes(content)
        return oid

    def read(self, repo: str, path: str, revision: str = "main") -> bytes:
        return (self.folder / "blobs" / self.files(repo, revision)[path]["oid"]).read_bytes()

    def files(self, repo: str, revision: str = "main") -> dict[str, dict]:
        repository = self.repos[repo]
        return repository["commits"][repository["branches"].get(revision, revision)]["files"]

    def commits(self, repo: str, revision: str = "main") -> list[str]:
        """Messages of a branch, the newest first."""
        repository = self.repos[repo]
        messages = []
        oid = repository["branches"][revision]
        while oid:
            messages.append(repository["commits"][oid]["message"])
            oid = repository["commits"][oid]["parent"]
        return messages

    def commit_files(self, name: str, branch: str, files: dict, message: str) -> str:
        """Makes `files` (path to oid, size and lfs) what a branch holds; gives the commit."""
        repo = self.repos[name]
        parent = repo["branches"].get(branch)
        oid = hashlib.sha1(
            json.dumps([parent, message, files, len(repo["commits"])], sort_keys=True).encode()
        ).hexdigest()
        repo["commits"][oid] = {"files": files, "message": message, "parent": parent}
        repo["branches"][branch] = oid
        return oid

    def _user(self, request: Request, write: bool = False) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        user, may_write = self.users.get(token, (None, False))
        if write and user is None:
            raise Refused(401, "", "Invalid username or password.")
        if write and not may_write:
            raise Refused(403, "", "You don't have the rights to do this: the token cannot write.")
        return user

    def _repo(self, request: Request, write: bool = False) -> tuple[str, dict]:
        user = self._user(request, write)
        owner = request.path_params["owner"]
        is_dataset = request.url.path.startswith(("/datasets/", "/api/datasets/"))
        name = f"{owner}/{request.path_params['name']}"
        if is_dataset:  # as in the addresses of the Hub's pages
            name = f"datasets/{name}"
        repo = self.repos.get(name)
        if repo is None or (repo["private"] and user != owner):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise Refused(403, "", f"{user} may not write to {name}")
        return name, repo

    def _commit_of(self, repo: dict, revision: str) -> str:
        oid = repo["branches"].get(revision, revision)
        if oid not in repo["commits"]:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # ---- its answers ----

    async def nothing(self, request: Request):
        self.unknown.append(f"{request.method} {request.url.path}")
        return JSONResponse({"error": "no such route"}, 404)

    async def whoami(self, request: Request):
        if (user := self._user(request)) is None:
            raise Refused(401, "", "Invalid username or password.")
        return JSONResponse(
            {
                "type": "user",
                "name": user,
                "fullname": user,
                "orgs": [],
                "auth": {"type": "access_token"},
            }
        )

    async def validate_yaml(self, request: Request):
        content = (await request.json())["content"]
        try:
            front = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
            errors = [] if isinstance(front, dict) else [{"message": "no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def create(self, request: Request):
        user = self._user(request, write=True)
        request_body = await request.json()
        owner = request_body.get("organization") or user
        if owner != user:
            raise Refused(
                403,
                "",
                f"You don't have the rights to create a model under the namespace {owner!r}.",
            )
        name = f"{owner}/{request_body['name']}"
        reply = {"url": f"{self.url}/{name}", "name": name, "id": name}
        if request_body.get("type") == "dataset":
            name = f"datasets/{name}"
            reply["url"] = f"{self.url}/{name}"
        if name in self.repos:
            return JSONResponse({**reply, "error": "You already created this model repo"}, 409)
        private = request_body.get("visibility") == "private" or bool(request_body.get("private"))
        self.repos[name] = {"private": private, "branches": {}, "commits": {}}
        attributes = "".join(
            f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
        ).encode()
        first = {
            ".gitattributes": {"oid": self.store(attributes), "size": len(attributes), "lfs": False}
        }
        self.commit_files(name, "main", first, "initial commit")
        return JSONResponse(reply)

    async def info(self, request: Request):
        name, repo = self._repo(request)
        oid = self._commit_of(repo, request.path_params.get("revision", "main"))
        siblings = [{"rfilename": path} for path in sorted(repo["commits"][oid]["files"])]
        name = name.removeprefix("datasets/")
        return JSONResponse(
            {
                "id": name,
                "modelId": name,
                "sha": oid,
                "private": repo["private"],
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "gated": False,
                "disabled": False,
                "siblings": siblings,
            }
        )

    async def branch(self, request: Request):
        _, repo = self._repo(request, write=True)
        request_body = await request.json() if await request.body() else {}
        branch = request.path_params["branch"]
        if branch in repo["branches"]:
            raise Refused(409, "", f"Reference already exists: {branch}")
        repo["branches"][branch] = self._commit_of(
            repo, request_body.get("startingPoint") or "main"
        )
        return JSONResponse({}, 201)

    async def paths_info(self, request: Request):
        _, repo = self._repo(request)
        files = repo["commits"][self._commit_of(repo, request.path_params["revision"])]["files"]
        paths = (await request.form()).getlist("paths")
        entries = [self._entry(path, files[path]) for path in paths if path in files]
        entries += [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            for path in paths
            if path not in files and any(file.startswith(f"{path}/") for file in files)
        ]
        return JSONResponse(entries)

    @staticmethod
    def _entry(path: str, file: dict) -> dict:
        lfs = (
            {"lfs": {"oid": file["oid"], "size": file["size"], "pointerSize": 134}}
            if file["lfs"]
            else {}
        )
        return {"type": "file", "oid": file["oid"][:40], "size": file["size"], "path": path, **lfs}

    async def tree(self, request: Request):
        _, repo = self._repo(request)
        files = repo["commits"][self._commit_of(repo, request.path_params["revision"])]["files"]
        prefix = request.path_params.get("path", "")
        chosen = {
            p: f
            for p, f in sorted(files.items())
            if not prefix or p == prefix or p.startswith(prefix + "/")
        }
        if prefix and not chosen:
            raise Refused(404, "EntryNotFound", f"{prefix} does not exist")
        depth = prefix.count("/") + 1 if prefix else 0
        entries = {}
        for path, file in chosen.items():
            parts = path.split("/")
            if (
                request.query_params.get("recursive", "false").lower() != "true"
                and len(parts) > depth + 1
            ):
                folder = "/".join(parts[: depth + 1])
                entries[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
                continue
            entries[path] = self._entry(path, file)
        first, listed = int(request.query_params.get("cursor", 0)), list(entries.values())
        more = {}
        if first + PAGE < len(listed):
            more["Link"] = f'<{request.url.include_query_params(cursor=first + PAGE)}>; rel="next"'
        return JSONResponse(listed[first : first + PAGE], headers=more)

    async def preupload(self, request: Request):
        _, repo = self._repo(request, write=True)
        self._commit_of(repo, request.path_params["revision"])
        files = [
            {
                "path": f["path"],
                "shouldIgnore": False,
                "uploadMode": "lfs"
                if f["path"].endswith(LFS_SUFFIXES) or f["size"] > 10_000_000
                else "regular",
            }
            for f in (await request.json())["files"]
        ]
        return JSONResponse({"files": files})

    async def lfs_batch(self, request: Request):
        self._repo(request, write=True)
        body = await request.json()
        objects, transfers = [], body["transfers"]
        for requested in body["objects"]:
            oid, size = requested["oid"], requested["size"]
            upload = {"href": f"{self.url}/lfs/{oid}", "header": {}}
            if size > CHUNK:
                parts = {
                    str(i + 1): f"{self.url}/lfs/{oid}/{i + 1}" for i in range(-(-size // CHUNK))
                }
                upload["header"] = {"chunk_size": str(CHUNK), **parts}
            actions = {"upload": upload, "verify": {"href": f"{self.url}/lfs/{oid}/verify"}}
            is_stored = (self.folder / "blobs" / oid).is_file()
            objects.append(
                {"oid": oid, "size": size, **({} if is_stored else {"actions": actions})}
            )
        return JSONResponse(
            {"transfer": "xet" if "xet" in transfers else "basic", "objects": objects}
        )

    async def xet_token(self, request: Request):
        self._repo(request, write=True)
        raise Refused(403, "", "This Hub has no Xet storage")

    async def lfs_put(self, request: Request):
        oid, part = request.path_params["oid"], request.path_params.get("part")
        content = await request.body()
        if part:
            (self.folder / f"{oid}.{part}").write_bytes(content)
        elif hashlib.sha256(content).hexdigest() != oid:
            raise Refused(422, "", "the content does not have the promised SHA-256")
        else:
            self.store(content)
        return Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def lfs_complete(self, request: Request):
        oid = request.path_params["oid"]
        request_body = await request.json()
        parts = [
            self.folder / f"{oid}.{part['partNumber']}"
            for part in sorted(request_body["parts"], key=lambda p: p["partNumber"])
        ]
        content = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(422, "", "the parts do not have the promised SHA-256")
        self.store(content)
        return Response()

    async def lfs_verify(self, request: Request):
        self._user(request, write=True)
        blob = self.folder / "blobs" / request.path_params["oid"]
        request_body = await request.json()
        if not blob.is_file() or blob.stat().st_size != request_body["size"]:
            raise Refused(404, "", "the object was not uploaded")
        return JSONResponse({})

    async def commit(self, request: Request):
        name, repo = self._repo(request, write=True)
        branch = request.path_params["revision"]
        files = dict(repo["commits"][self._commit_of(repo, branch)]["files"])
        message = ""
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
                if (parent := value.get("parentCommit")) and parent != repo["branches"][branch]:
                    raise Refused(
                        412, "", "A commit has happened since. Please refresh and try again."
                    )
            elif operation["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = {
                    "oid": self.store(content),
                    "size": len(content),
                    "lfs": False,
                }
            elif operation["key"] == "lfsFile":
                blob = self.folder / "blobs" / value["oid"]
                if not blob.is_file():
                    raise Refused(
                        422, "", f"LFS object {value['oid']} of {value['path']} is missing"
                    )
                files[value["path"]] = {
                    "oid": value["oid"],
                    "size": blob.stat().st_size,
                    "lfs": True,
                }
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "", f"operation {operation['key']} is not known")
        oid = self.commit_files(name, branch, files, message)
        return JSONResponse(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}
        )

    async def resolve(self, request: Request):
        _, repo = self._repo(request)
        oid = self._commit_of(repo, request.path_params["revision"])
        file = repo["commits"][oid]["files"].get(request.path_params["path"])
        if file is None:
            reply = Refused(404, "EntryNotFound", "Entry not found").response
            reply.headers["X-Repo-Commit"] = oid
            return reply
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file["oid"][:40]}"'}
        if file["lfs"]:
            headers |= {"X-Linked-Etag": f'"{file["oid"]}"', "X-Linked-Size": str(file["size"])}
            return RedirectResponse(f"{self.cdn_url}/cdn/{file['oid']}", 302, headers)
        return FileResponse(self.folder / "blobs" / file["oid"], headers=headers)

    async def cdn(self, request: Request):
        oid = request.path_params["oid"]
        return FileResponse(self.folder / "blobs" / oid, headers={"ETag": f'"{oid}"'})
