"""Files of others run in a process of their own, with a time limit.

A file can't end or block the command: the process that runs it is `runtimes.child`. Its
answers are bytes of a known shape; nothing is unpickled.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kd_app.config.errors import take_first_line
from kd_app.deployment.clock import count_remote_call
from kd_app.deployment.manifest import ManifestEntry
from kd_app.deployment.runtimes.base import RuntimeFile

OPEN_SECONDS: Final = 120.0
"""Limit for opening a file, including the import of its runtime."""
CALL_SECONDS: Final = 60.0
"""Limit for one image, and the part of a batch's limit that does not grow."""
_SLOWER: Final = 20.0
"""How much longer than the first image another one may take."""


class IsolatedFile(RuntimeFile):
    """A file in a process of its own, which ends with this object.

    Raises `ValueError` if the file can't be opened, or does not classify a blank image
    within the limit.
    """

    def __init__(self, entry: ManifestEntry, *, threads: int | None) -> None:
        super().__init__(entry)
        here, there = socket.socketpair()
        with there:
            command = [sys.executable, "-m", "kd_app.deployment.runtimes.child"]
            self._process = subprocess.Popen(
                [*command, str(there.fileno())],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = Connection(here.detach())
        self._close = weakref.finalize(self, _end, self._process, self._connection, os.getpid())
        self._lock = threading.Lock()
        self._image_seconds = self._seconds = 0.0
        path = str(entry.path.absolute())
        pixels = self.pixels
        blank = np.zeros((1, pixels.channels, pixels.height, pixels.width), dtype=np.uint8)
        try:
            self._exchange({"path": path, "threads": threads, "limit": OPEN_SECONDS})
            self.run(blank)
            self._image_seconds = self._seconds
        except RuntimeError as error:
            self._close()
            message = str(error).replace(path, str(entry.path))
            if repr(str(entry.path)) in message:  # a sentence about the file
                raise ValueError(message) from None
            raise ValueError(
                f"{str(entry.path)!r} can't be opened: {take_first_line(error)}. It is damaged,"
                " or was not written by kd-export. Export the run again."
            ) from None

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        limit = CALL_SECONDS + _SLOWER * len(images) * self._image_seconds
        start = time.perf_counter()
        with self._lock:
            answer = self._exchange({"shape": images.shape, "limit": limit}, images)
            logits = np.frombuffer(bytearray(self._receive()), np.float32)
        self._seconds, cpu_seconds = float(answer["seconds"]), float(answer["cpu_seconds"])
        count_remote_call(time.perf_counter() - start, self._seconds, cpu_seconds)
        return logits.reshape(answer["shape"])

    def _exchange(self, request: dict[str, Any], *content: NDArray[np.uint8]) -> dict[str, Any]:
        """Send a request and return the answer. Raises `RuntimeError` for an error, and
        if the process has ended.
        """
        self._limit = request["limit"]
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            for each in content:
                self._connection.send_bytes(each.tobytes())
        except OSError:
            raise RuntimeError(self._explain_end()) from None
        answer: dict[str, Any] = json.loads(self._receive())
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return answer

    def _receive(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            raise RuntimeError(self._explain_end()) from None

    def _explain_end(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"it did not answer within {self._limit:.0f} seconds"
        if code < 0:
            return f"its runtime ended with {signal.Signals(-code).name}"
        return f"its runtime ended with exit code {code}"


def _end(process: "subprocess.Popen[bytes]", connection: Connection, owner: int) -> None:
    connection.close()
    if os.getpid() != owner:  # a forked worker
        return
    process.kill()
    process.wait()
