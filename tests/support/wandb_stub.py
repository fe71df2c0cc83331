"""A W&B server on 127.0.0.1 for tests, in memory, that misbehaves on demand.

It speaks the operations that the wandb client sends, and refuses every other one, so that a new version of the client
cannot pass unnoticed. It tests our side only: that the real server agrees is not shown by it.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

KEY = "0123456789" * 4
ENTITY = "tester"
Fault = Callable[[str, str], int | str | None]  # (operation, run or path) -> HTTP status | "hang" | "drop" | None


class Stub:
    """The server's state. Use as a context manager; `fault` may be set and taken away while it runs."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.lock = threading.RLock()
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.views: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """From now on the port refuses connections."""
        self._server.dead = True
        self._server.shutdown()
        self._server.server_close()

    def tables(self, run: str) -> dict[str, dict[str, Any]]:
        """Committed tables of a run by key, as uploaded."""
        found = {}
        for artifact in self.artifacts.values():
            if artifact["run"] == run and artifact["state"] == "COMMITTED":
                (name,) = [name for name in artifact["files"] if name.endswith(".table.json")]
                content = json.loads(self.files[f"/artifact/{artifact['id']}/{name}"])
                found[artifact["name"].removeprefix(f"run-{run}-")] = content
        return found

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to an operation. Raises KeyError on one that it does not know."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name = named.group(1) if named else request["query"][:60]
        self.asked[name] += 1
        return {"data": _ANSWERS[name](self, request.get("variables") or {}, request["query"])}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """The file stream of a run: history, summary, uploaded files."""
        kept = self.runs[run]
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                del kept["history"][part.get("offset", 0) :]
                kept["history"] += [json.loads(line) for line in part["content"]]
            elif name == "wandb-summary.json":
                kept["summary"] = json.loads(part["content"][-1])
        kept["uploaded"] |= set(sent.get("uploaded") or ())
        kept["complete"] = sent.get("complete", kept["complete"])


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    dead = False
    stub: Stub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        stub = self.server.stub
        stub.bodies.append(body)
        stream = re.fullmatch(r"/files/[^/]*/?[^/]+/([^/]+)/file_stream", self.path)
        named = re.search(rb"(?:query|mutation)\s+(\w+)", body)
        if self._misbehaves("file_stream" if stream else named.group(1).decode() if named else self.path, self.path):
            return
        if self.headers.get("authorization") != "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode():
            self._reply({"errors": [{"message": "invalid API key"}]}, 401)
            return
        with stub.lock:
            try:
                if stream:
                    stub.stream(stream.group(1), json.loads(body))
                    answer: dict[str, Any] = {"exitcode": None, "limits": {}}
                else:
                    answer = stub.graphql(json.loads(body))
            except KeyError as error:
                stub.unknown.append(f"{self.path} {error}")
                self._reply({"errors": [{"message": f"the stub does not know {error}"}]}, 400)
                return
        self._reply(answer)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self._misbehaves("PUT", self.path):
            with self.server.stub.lock:
                self.server.stub.files[self.path] = body
            self._reply({})

    def do_GET(self) -> None:
        self.server.stub.unknown.append(f"GET {self.path}")
        self._reply({}, 404)

    def _misbehaves(self, operation: str, path: str) -> bool:
        stub = self.server.stub
        how = "drop" if self.server.dead else stub.fault(operation, path) if stub.fault else None
        if how == "hang":
            while stub.fault and not self.server.dead:
                time.sleep(0.05)
        if how in ("hang", "drop"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif how:
            self._reply({"errors": [{"message": "planted"}]}, int(how))
        return how is not None

    def _reply(self, answer: object, code: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _viewer(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}


def _resume(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    run = stub.runs.get(given["name"])
    bucket = run and {
        "id": f"b-{given['name']}",
        "name": given["name"],
        "displayName": given["name"],
        "summaryMetrics": json.dumps(run["summary"]),
        "config": json.dumps(run["config"]),
        "historyLineCount": len(run["history"]),
        "eventsLineCount": 0,
        "logLineCount": 0,
        "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]),
        "eventsTail": "[]",
        "tags": [],
        "wandbConfig": json.dumps({"t": 1}),
    }
    return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}


def _upsert(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    new = {"config": {}, "summary": {}, "history": [], "uploaded": set(), "complete": None, "group": None, "job": None}
    inserted = given["name"] not in stub.runs
    run = stub.runs.setdefault(given["name"], new)
    run["group"], run["job"] = given.get("groupName") or run["group"], given.get("jobType") or run["job"]
    run["config"] |= json.loads(given.get("config") or "{}")
    run["summary"] |= json.loads(given.get("summaryMetrics") or "{}")
    project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}}
    bucket = {"id": f"b-{given['name']}", "name": given["name"], "displayName": given["name"], "project": project}
    bucket |= {"description": "", "config": json.dumps(run["config"]), "sweepName": None}
    bucket |= {"historyLineCount": len(run["history"])}
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _run_files(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    files = [{"name": f, "uploadUrl": f"{stub.url}/run/{given['run']}/{f}"} for f in given["files"]]
    return {"createRunFiles": {"runID": f"b-{given['run']}", "uploadHeaders": [], "files": files}}


def _artifact(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    about = given["input"]
    name = about.get("artifactCollectionName") or about["artifactCollectionNames"][0]
    id = f"{name}-{about['digest']}"
    new = {
        "id": id,
        "name": name,
        "run": about["runName"],
        "state": "PENDING",
        "files": set(),
        "digest": about["digest"],
    }
    state = stub.artifacts.setdefault(id, new)["state"]
    sequence = {"id": f"s-{name}", "latestArtifact": None}
    return {"createArtifact": {"artifact": {"id": id, "state": state, "artifactSequence": sequence}}}


def _manifest(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    id = (given.get("input") or given)["artifactID"]
    url = f"{stub.url}/artifact/{id}/wandb_manifest.json"
    file = {"id": f"f-{id}", "name": "wandb_manifest.json", "displayName": "", "uploadUrl": url, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": f"m-{id}", "file": file}}}


def _artifact_files(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    edges = []
    for file in (given.get("input") or given)["artifactFiles"]:
        id, name = file["artifactID"], file["name"]
        stub.artifacts[id]["files"].add(name)
        node = {"id": f"f-{id}-{name}", "name": name, "displayName": name, "uploadHeaders": [], "artifact": {"id": id}}
        node |= {"uploadUrl": f"{stub.url}/artifact/{id}/{name}", "storagePath": name, "uploadMultipartUrls": None}
        edges.append({"node": node})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    artifact = stub.artifacts[(given.get("input") or given)["artifactID"]]
    artifact["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}


def _default_entity(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    return {"viewer": {"id": "u", "entity": ENTITY}}


def _run(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    """A run as wandb.Api reads it."""
    held = stub.runs.get(given["name"])
    if held is None:
        return {"project": {"run": None}}
    values = dict.fromkeys(("sweepName", "commit", "heartbeatAt", "description", "notes", "user"))
    values |= {"user": {"name": ENTITY, "username": ENTITY}}
    values |= {"id": f"b-{given['name']}", "tags": [], "name": given["name"], "displayName": given["name"]}
    values |= {"state": "finished", "group": held["group"], "jobType": held["job"], "readOnly": False}
    values |= {"config": json.dumps(held["config"]), "summaryMetrics": json.dumps(held["summary"]), "historyKeys": None}
    values |= {"systemMetrics": "{}", "createdAt": "2026-01-01T00:00:00Z", "historyLineCount": len(held["history"])}
    return {"project": {"run": {**values, "projectId": "1"}}}


def _output_artifacts(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    project = {"id": "p", "internalId": "1", "name": given["project"], "entity": {"name": ENTITY}}
    edges = []
    for one in [artifact for artifact in stub.artifacts.values() if artifact["run"] == given["run"]]:
        sequence = {"__typename": "ArtifactSequence", "name": one["name"], "project": project}
        node = {"__typename": "Artifact", "id": one["id"], "artifactSequence": sequence, "versionIndex": 0}
        node |= {"artifactType": {"name": "run_table"}, "description": None, "metadata": None, "tags": []}
        node |= {"ttlDurationSeconds": -1, "ttlIsInherited": True, "historyStep": None, "state": one["state"]}
        node |= {"size": 1, "digest": one["digest"], "commitHash": None, "fileCount": 1, "aliases": []}
        edges.append({"node": {**node, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None}})
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    found = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
    return {"project": {"run": {"artifacts": found}}}


def _upsert_view(stub: Stub, given: dict[str, Any], query: str) -> dict[str, Any]:
    stub.views.append(given)
    return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}


_ANSWERS: dict[str, Callable[[Stub, dict[str, Any], str], dict[str, Any]]] = {
    "Viewer": _viewer,
    "ServerFeaturesQuery": lambda stub, given, query: {"serverInfo": {"features": []}},
    "RunResumeStatus": _resume,
    "UpsertBucket": _upsert,
    "CreateRunFiles": _run_files,
    "CreateArtifact": _artifact,
    "CreateArtifactManifest": _manifest,
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": _commit,
    "GetDefaultEntity": _default_entity,
    "Run": _run,
    "RunOutputArtifacts": _output_artifacts,
    "UpsertView2": _upsert_view,
}
