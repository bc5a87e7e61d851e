"""A server on this machine that says as much of Weights & Biases' protocol as a run
needs, and keeps all that was sent to it.
"""

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
    """What was sent: GraphQL operations with their variables, everything as text, and
    the history of each run, by its id.
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
        """Have an artifact that can be fetched; `manifest` as W&B writes it, `files` by
        their names in it.
        """
        self.files |= {f"/offered/{name}/{inside}": content for inside, content in files.items()}
        self.files[f"/manifest/{name}"] = json.dumps(manifest).encode()
        self.artifacts[name] = {
            "kind": kind,
            "metadata": json.dumps(metadata),
            "names": list(files),
        }

    def said(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every call of `operation`."""
        return [variables for name, variables in self.operations if name == operation]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL operation."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
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
        answers = {
            "UpsertBucket": self._bucket,
            "RunResumeStatus": self._resumed,
            "CreateRunFiles": self._files,
            "CreateArtifact": _created,
            "UseArtifact": _used,
            "ArtifactByID": _artifact,
            "ProjectArtifactType": self._type,
            "ArtifactTypeArtifactCollections": self._collections,
            "ArtifactMembershipByName": self._membership,
            "FetchArtifactManifest": self._manifest,
            "GetArtifactMembershipFileUrls": self._urls,
        }
        answer: dict[str, Any] = (
            answers[name](variables) if name in answers else known.get(name, {})
        )
        return answer

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
        found = [
            self._collection(name)
            for name, each in self.artifacts.items()
            if each["kind"] == variables["type"]
        ]
        page = {
            "totalCount": len(found),
            "pageInfo": _LAST_PAGE,
            "edges": [{"node": node} for node in found],
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
        made = _artifact({"id": name})["artifact"] | {"metadata": self.artifacts[name]["metadata"]}
        made |= {
            "artifactSequence": _sequence(name),
            "artifactType": {"name": self.artifacts[name]["kind"]},
        }
        found = {
            "id": name,
            "artifact": made,
            "artifactCollection": _sequence(name),
            "versionIndex": 0,
            "createdAt": _THEN,
            "aliases": [],
        }
        return {
            "project": {
                "artifactCollectionMembership": {
                    "__typename": "ArtifactCollectionMembership",
                    **found,
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

    def _resumed(self, variables: dict[str, Any]) -> dict[str, Any]:
        """What is known of a run that somebody wants to go on with."""
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

    def stream(self, run: str, said: dict[str, Any]) -> None:
        """Take lines of a run's history, from the line on that is said."""
        history = (said.get("files") or {}).get("wandb-history.jsonl")
        if history:
            lines = self.histories.setdefault(run, [])
            lines[history["offset"] :] = [json.loads(line) for line in history["content"]]


def _sequence(name: str) -> dict[str, Any]:
    return {"__typename": "ArtifactSequence", "id": name, "name": name, "project": _PROJECT}


def _created(variables: dict[str, Any]) -> dict[str, Any]:
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
    return {
        "artifact": {
            **empty,
            **about,
            **kept,
            "id": variables["id"],
            "artifactSequence": sequence,
            "artifactType": {"name": "teacher"},
        }
    }


@contextmanager
def serving(*, refuses: bool = False, delay: float = 0.0) -> Iterator[Server]:
    """A server at ``server.url`` for a while; with `refuses` it knows no key; it
    answers every request after `delay` seconds.
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
            said = json.loads(body) if self.path == "/graphql" else {}
            data: dict[str, Any] = (
                {"data": server.answer(said["query"], said.get("variables") or {})}
                if said
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
