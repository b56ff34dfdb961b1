"""A headless Chromium that takes DevTools commands: JSON messages, each ended by a zero byte, in two pipes."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def pipes(limit_s: float) -> Iterator[tuple[io.BufferedWriter, io.BufferedReader]]:
    """Start the browser, and yield the pipe to it and the one from it; it is ended after ``limit_s`` at the latest."""
    assert BROWSER is not None
    (commands, send), (receive, answers) = os.pipe(), os.pipe()

    def connect() -> None:
        """Give the browser its pipes as numbers 3 and 4, where it expects them."""
        for place, end in ((3, fcntl.fcntl(commands, fcntl.F_DUPFD, 10)), (4, fcntl.fcntl(answers, fcntl.F_DUPFD, 10))):
            os.dup2(end, place)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=connect)
        os.close(commands)
        os.close(answers)
        limit = threading.Timer(limit_s, process.kill)
        limit.start()
        try:
            with os.fdopen(send, "wb") as to, os.fdopen(receive, "rb") as back:
                yield to, back
        finally:
            limit.cancel()
            process.terminate()
            process.wait()
