"""Downloading records of runs from a stand-in for W&B's server.

The server has the artifacts that the tracker logs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kd_app.reporting.results import Results, read, write
from kd_app.reporting.runs import load_run, load_runs
from kd_app.tracking import lineage
from kd_app.tracking.weights_and_biases import _build_artifact
from tests.reporting.run_folders import build_results
from tests.tracking.wandb_server import Server, serving


def write_run(folder: Path, sha256: str) -> Results:
    """Write the folder of a run whose student has these weights."""
    results = build_results()
    results.models["student"].sha256 = sha256
    folder.mkdir(parents=True)
    write(folder / "results.json", results)
    (folder / "metrics.csv").write_text("stage,epoch,step\nstudent,0,9\n", encoding="utf-8")
    return read(folder / "results.json")


def offer_run(server: Server, folder: Path, sha256: str) -> Results:
    """Put the record of a run on the server, as the tracker logs it."""
    results = write_run(folder, sha256)
    (record,) = lineage.list_artifacts(
        folder.name,
        results.model_dump(mode="json"),
        {path.name: path for path in folder.iterdir()},
        [],
    )
    artifact: Any = _build_artifact(record, folder)[0]
    content = {
        inside: Path(entry.local_path).read_bytes()
        for inside, entry in artifact.manifest.entries.items()
    }
    server.offer(
        record.name, record.kind, artifact.manifest.to_manifest_json(), artifact.metadata, content
    )
    return results


def test_missing_records_are_downloaded_and_load_as_runs(
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "trained" / "here", "aa")
    code = f"""
from kd_app.config import RequestError
from kd_app.tracking.fetched import fetch_runs
print(*(path.name for path in fetch_runs("me/kd_app", {str(runs)!r})))
print(*(path.name for path in fetch_runs("me/kd_app", {str(runs)!r})))
for project, folder in (("me/nothing", {str(runs)!r}), ("me/kd_app", {str(tmp_path / "empty")!r})):
    try:
        fetch_runs(project, folder)
    except RequestError as error:
        print(error)
"""
    with serving() as server:
        offer_run(server, tmp_path / "first", "aa")
        second = offer_run(server, tmp_path / "second", "bb")
        outside = {"digest": "x", "size": 4, "birthArtifactID": "x"}
        manifest = json.loads(server.files["/manifest/run-first"])
        server.files["/manifest/run-first"] = json.dumps(
            {**manifest, "contents": {**manifest["contents"], "../../evil": outside}}
        ).encode()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        online = {
            "HOME": str(tmp_path),
            "WANDB_API_KEY": "k" * 40,
            "WANDB_BASE_URL": server.url,
            "WANDB_ERROR_REPORTING": "false",
        }
        arguments = [sys.executable, "-c", code]
        process = subprocess.run(
            arguments,
            env={**clean, **online},
            cwd=Path.cwd(),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert (process.returncode, process.stderr) == (0, "")
    fetched, again, refused, escaping = process.stdout.splitlines()
    assert fetched == "run-second"  # the folder has the first one under another name
    assert again == ""
    assert refused.startswith(
        "The runs of 'me/nothing' could not be fetched from Weights & Biases: "
    )
    assert "'../../evil', which would be written outside its folder" in escaping
    assert not list(tmp_path.rglob("evil"))
    assert load_run(runs / "run-second").results == second
    assert list(load_run(runs / "run-second").curves["step"]) == [9]
    assert len(load_runs(runs)) == 2
    assert not list(runs.glob(".*"))
