"""A server on this machine that says as much of Weights & Biases' protocol as a run needs, and keeps all that was sent to it."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PROJECT = {"id": "UHJv", "internalId": "UHJv", "name": "kd_app", "entity": {"id": "RW50", "name": "me"}}


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


@dataclass
class Server:
    """What was sent: GraphQL operations with their variables, and everything as text."""

    url: str = ""
    refuses: bool = False
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def said(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every call of `operation`."""
        return [variables for name, variables in self.operations if name == operation]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL operation."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        self.operations.append((name, variables))
        known: dict[str, Any] = {
            "Viewer": {"viewer": {"id": "VXNlcg==", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "ArtifactType": {"project": {"artifact": None}},
        }
        answers = {
            "UpsertBucket": _bucket,
            "CreateRunFiles": self._files,
            "CreateArtifact": _created,
            "UseArtifact": _used,
            "ArtifactByID": _artifact,
        }
        answer: dict[str, Any] = answers[name](variables) if name in answers else known.get(name, {})
        return answer

    def _files(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "QnVja2V0", "uploadHeaders": [], "files": files}}


def _bucket(variables: dict[str, Any]) -> dict[str, Any]:
    bucket = {"id": "QnVja2V0", "name": variables["name"], "displayName": variables.get("displayName"), "project": _PROJECT, "historyLineCount": 0}
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}


def _created(variables: dict[str, Any]) -> dict[str, Any]:
    identity = {"id": f"QXJ0{variables['input']['digest']}"}
    return {"createArtifact": {"artifact": {**identity, "state": "COMMITTED", "artifactSequence": {"latestArtifact": identity}}}}


def _used(variables: dict[str, Any]) -> dict[str, Any]:
    return {"useArtifact": {"artifact": {"id": variables["input"]["artifactID"]}}}


def _artifact(variables: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(("description", "metadata", "historyStep", "updatedAt"))
    about = {
        "versionIndex": 0,
        "state": "COMMITTED",
        "size": 1,
        "digest": "x",
        "commitHash": "x",
        "fileCount": 1,
        "createdAt": "2026-01-01T00:00:00Z",
    }
    kept = {"ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "aliases": []}
    sequence = {"__typename": "ArtifactSequence", "name": "teacher", "project": _PROJECT}
    return {"artifact": {**empty, **about, **kept, "id": variables["id"], "artifactSequence": sequence, "artifactType": {"name": "teacher"}}}


@contextmanager
def serving(*, refuses: bool = False) -> Iterator[Server]:
    """A server at ``server.url`` for a while; with `refuses` it knows no key."""
    server = Server(refuses=refuses)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            server.texts.append(f"{self.path} {body.decode(errors='replace')}")
            said = json.loads(body) if self.path == "/graphql" else {}
            data: dict[str, Any] = {"data": server.answer(said["query"], said.get("variables") or {})} if said else {"exitcode": None, "limits": {}}
            text = json.dumps(data).encode()
            self.send_response(401 if server.refuses else 200)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = _serve  # noqa: N815 (names that http.server asks for)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed."""

    with _Quiet(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield server
        listening.shutdown()
        thread.join()
