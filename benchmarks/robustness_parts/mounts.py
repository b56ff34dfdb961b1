"""A small file system in memory, to fill up for real (``mount``, as root)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType

PAGE = os.sysconf("SC_PAGE_SIZE")  # of which its size is a multiple
LARGE = 64 << 20


class SmallDisk:
    """A tmpfs of a few pages on a folder, in a ``with`` statement.

    Raises:
        SystemExit: this process may not mount.
    """

    def __init__(self, place: Path, pages: int) -> None:
        self.place, self.pages = place, pages

    def __enter__(self) -> SmallDisk:
        self.place.mkdir(exist_ok=True)
        self._mount(f"size={max(1, self.pages) * PAGE}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        while os.path.ismount(self.place):
            subprocess.run(["umount", "-l", self.place], check=True)

    def resize(self, pages: int) -> None:
        """Give it so many pages, at least one; what is in it must fit."""
        self._mount(f"remount,rw,size={max(1, pages) * PAGE}")

    def enlarge(self) -> None:
        """Give it so much space that everything fits."""
        self.resize(LARGE // PAGE)

    def protect(self) -> None:
        """Let it be read only."""
        self._mount("remount,ro")

    def cover(self) -> None:
        """Lay an empty file system that can only be read over it, as where another is mounted under way."""
        self._mount("ro,size=4096")

    def uncover(self) -> None:
        subprocess.run(["umount", "-l", self.place], check=True)

    def _mount(self, options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.place], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(
                f"a small tmpfs is needed, and mounting it was not permitted: {done.stderr.strip()}. "
                "Run this part as root, or in `unshare --mount --map-root-user`."
            )
