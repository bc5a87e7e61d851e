"""A local stand-in for the Weights & Biases server.

It implements the part of the protocol that a run needs, and stores all requests.
"""

import gzip
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

_PROJECT = {
    "id": "UHJv",
    "internalId": "UHJv",
    "name": "kd_app",
    "entity": {"id": "RW50", "name": "me"},
}

_LAST_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
_THEN = "2026-01-01T00:00:00Z"


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


@dataclass
class Server:
    """The received requests.

    operations: GraphQL operations with their variables · texts: all requests as text ·
    histories: history of each run, by id.
    """

    url: str = ""
    refuses: bool = False
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def offer(
        self,
        name: str,
        kind: str,
        manifest: dict[str, Any],
        metadata: dict[str, Any],
        files: dict[str, bytes],
    ) -> None:
        """Add an artifact that clients can download.

        manifest: as W&B writes it · files: content by the names in the manifest.
        """
        self.files |= {f"/offered/{name}/{inside}": content for inside, content in files.items()}
        self.files[f"/manifest/{name}"] = json.dumps(manifest).encode()
        self.artifacts[name] = {
            "kind": kind,
            "metadata": json.dumps(metadata),
            "names": list(files),
        }

    def list_calls(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every call of `operation`."""
        return [variables for name, variables in self.operations if name == operation]

    def respond(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Compute the response to one GraphQL operation."""
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match[1] if match else ""
        self.operations.append((name, variables))
        known: dict[str, Any] = {
            "GetDefaultEntity": {"viewer": {"id": "VXNlcg==", "entity": "me"}},
            "Viewer": {
                "viewer": {
                    "id": "VXNlcg==",
                    "entity": "me",
                    "username": "me",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            },
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "ArtifactType": {"project": {"artifact": None}},
        }
        handlers = {
            "UpsertBucket": self._bucket,
            "RunResumeStatus": self._describe_resumed,
            "CreateRunFiles": self._files,
            "CreateArtifact": _create_artifact,
            "UseArtifact": _use_artifact,
            "ArtifactByID": _artifact,
            "ProjectArtifactType": self._type,
            "ArtifactTypeArtifactCollections": self._collections,
            "ArtifactMembershipByName": self._membership,
            "FetchArtifactManifest": self._manifest,
            "GetArtifactMembershipFileUrls": self._urls,
        }
        response: dict[str, Any] = (
            handlers[name](variables) if name in handlers else known.get(name, {})
        )
        return response

    def _type(self, variables: dict[str, Any]) -> dict[str, Any]:
        about = {
            "__typename": "ArtifactType",
            "id": "VA==",
            "name": variables["type"],
            "description": None,
            "createdAt": _THEN,
        }
        return {
            "project": {"artifactType": about} if variables["project"] == _PROJECT["name"] else None
        }

    def _collections(self, variables: dict[str, Any]) -> dict[str, Any]:
        collections = [
            self._collection(name)
            for name, each in self.artifacts.items()
            if each["kind"] == variables["type"]
        ]
        page = {
            "totalCount": len(collections),
            "pageInfo": _LAST_PAGE,
            "edges": [{"node": node} for node in collections],
        }
        return {"project": {"artifactType": {"artifactCollections": page}}}

    def _collection(self, name: str) -> dict[str, Any]:
        about: dict[str, Any] = {
            "description": None,
            "createdAt": _THEN,
            "updatedAt": _THEN,
            "tags": {"edges": []},
        }
        return {
            "__typename": "ArtifactSequence",
            "id": name,
            "name": name,
            "project": _PROJECT,
            "type": {"name": self.artifacts[name]["kind"]},
            **about,
        }

    def _membership(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"].split(":")[0]
        artifact = _artifact({"id": name})["artifact"] | {
            "metadata": self.artifacts[name]["metadata"]
        }
        artifact |= {
            "artifactSequence": _sequence(name),
            "artifactType": {"name": self.artifacts[name]["kind"]},
        }
        membership = {
            "id": name,
            "artifact": artifact,
            "artifactCollection": _sequence(name),
            "versionIndex": 0,
            "createdAt": _THEN,
            "aliases": [],
        }
        return {
            "project": {
                "artifactCollectionMembership": {
                    "__typename": "ArtifactCollectionMembership",
                    **membership,
                }
            }
        }

    def _manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {
            "artifact": {
                "currentManifest": {"file": {"directUrl": f"{self.url}/manifest/{variables['id']}"}}
            }
        }

    def _urls(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["collection"]
        nodes = [
            {
                "__typename": "File",
                "name": inside,
                "directUrl": f"{self.url}/offered/{name}/{inside}",
            }
            for inside in self.artifacts[name]["names"]
        ]
        files = {"pageInfo": _LAST_PAGE, "edges": [{"node": node} for node in nodes]}
        return {
            "project": {
                "artifactCollection": {
                    "__typename": "ArtifactSequence",
                    "artifactMembership": {"files": files},
                }
            }
        }

    def _files(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": "QnVja2V0", "uploadHeaders": [], "files": files}}

    def _bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        lines = len(self.histories.setdefault(variables["name"], []))
        about = {
            "id": "QnVja2V0",
            "name": variables["name"],
            "displayName": variables.get("displayName"),
        }
        return {
            "upsertBucket": {
                "bucket": {**about, "project": _PROJECT, "historyLineCount": lines},
                "inserted": lines == 0,
            }
        }

    def _describe_resumed(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The state of a run that a client wants to resume."""
        lines = self.histories.get(variables["name"])
        if lines is None:
            return {"model": {**_PROJECT, "bucket": None}}
        empty = {
            "summaryMetrics": "{}",
            "config": "{}",
            "eventsTail": "[]",
            "tags": [],
            "notes": "",
            "wandbConfig": '{"t": 1}',
            "displayName": "",
        }
        tail = json.dumps([json.dumps(line) for line in lines[-1:]])
        counts = {
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyLineCount": len(lines),
            "historyTail": tail,
        }
        return {
            "model": {
                **_PROJECT,
                "bucket": {"id": "QnVja2V0", "name": variables["name"], **empty, **counts},
            }
        }

    def stream(self, run: str, request: dict[str, Any]) -> None:
        """Store lines of a run's history, from the offset in the request."""
        history = (request.get("files") or {}).get("wandb-history.jsonl")
        if history:
            lines = self.histories.setdefault(run, [])
            lines[history["offset"] :] = [json.loads(line) for line in history["content"]]


def _sequence(name: str) -> dict[str, Any]:
    return {"__typename": "ArtifactSequence", "id": name, "name": name, "project": _PROJECT}


def _create_artifact(variables: dict[str, Any]) -> dict[str, Any]:
    identity = {"id": f"QXJ0{variables['input']['digest']}"}
    return {
        "createArtifact": {
            "artifact": {
                **identity,
                "state": "COMMITTED",
                "artifactSequence": {"latestArtifact": identity},
            }
        }
    }


def _use_artifact(variables: dict[str, Any]) -> dict[str, Any]:
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
    settings = {"ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "aliases": []}
    sequence = {"__typename": "ArtifactSequence", "name": "teacher", "project": _PROJECT}
    return {
        "artifact": {
            **empty,
            **about,
            **settings,
            "id": variables["id"],
            "artifactSequence": sequence,
            "artifactType": {"name": "teacher"},
        }
    }


@contextmanager
def serving(*, refuses: bool = False, delay: float = 0.0) -> Iterator[Server]:
    """Run a server at ``server.url``.

    refuses: reject every key · delay: seconds before each response.
    """
    server = Server(refuses=refuses)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            server.texts.append(f"{self.path} {body.decode(errors='replace')}")
            time.sleep(delay)
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            request = json.loads(body) if self.path == "/graphql" else {}
            data: dict[str, Any] = (
                {"data": server.respond(request["query"], request.get("variables") or {})}
                if request
                else {"exitcode": None, "limits": {}}
            )
            text = server.files.get(self.path) or json.dumps(data).encode()
            self.send_response(401 if server.refuses else 200)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed."""

    with _Quiet(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield server
        listening.shutdown()
        thread.join()


@contextmanager
def surroundings(home: Path, **variables: str) -> Iterator[None]:
    """Let W&B start anew for somebody at `home` who is logged in nowhere."""
    import wandb

    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB_", "NETRC"))
    }
    wandb.teardown()
    try:
        environment = {**clean, "HOME": str(home), **variables}
        with patch.dict(os.environ, environment, clear=True):
            yield
            wandb.teardown()
    finally:
        wandb.teardown()


def log_in(server: Server) -> dict[str, str]:
    """The environment of somebody with a key for `server`."""
    return {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server.url}
