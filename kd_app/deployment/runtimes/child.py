"""Process that runs one file for `kd_app.deployment.runtimes.isolated`.

``python -m kd_app.deployment.runtimes.child <descriptor of a socket>``

A native runtime may abort its process, or never return. The kernel ends this process
when a request takes longer than its limit, also if the process that asked is gone, and
before all others when memory runs out.
"""

import json
import math
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np


def serve(connection: Connection) -> None:
    """Open the file of the first request, and run it on the images of the others."""
    request = json.loads(connection.recv_bytes())
    _set_limit(request["limit"])
    from kd_app.deployment.artifact import open_artifact

    try:
        model: Any = open_artifact(Path(request["path"]), threads=request["threads"])
    except Exception as error:
        _send(connection, {"error": str(error)})
        return
    _send(connection, {})
    while True:
        _set_limit(None)
        request = json.loads(connection.recv_bytes())
        images = np.frombuffer(bytearray(connection.recv_bytes()), np.uint8).reshape(
            request["shape"]
        )
        _set_limit(request["limit"])
        try:
            start, cpu_start = time.perf_counter(), time.process_time()
            logits = np.asarray(model.run(images), dtype=np.float32)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        except Exception as error:
            _send(connection, {"error": str(error) or type(error).__name__})
            continue
        _send(
            connection,
            {"shape": logits.shape, "seconds": seconds, "cpu_seconds": cpu_seconds},
        )
        connection.send_bytes(logits.tobytes())


def _set_limit(seconds: float | None) -> None:
    signal.alarm(0 if seconds is None else max(1, math.ceil(seconds)))


def _offer_to_oom_killer() -> None:
    """Let the kernel end this process first when a file asks for all of the memory."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _offer_to_oom_killer()
    with suppress(EOFError, BrokenPipeError):  # the process that asked has ended
        serve(Connection(int(sys.argv[1])))
