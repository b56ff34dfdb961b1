"""The process that reads files of event cameras for ``camera_files.py``: ``python -m svitc.data.camera_worker``.

A request is a line of JSON, ``[path, format]``. The answer is a line of JSON, ``{"error": …}`` or ``{"width": …,
"height": …, "bytes": …}``; after the latter follow so many bytes, the events as ``numpy.save`` writes them.
"""

from __future__ import annotations

import io
import json
import os
import sys

import faery
import numpy as np

from svitc.data.camera_files import UNKNOWN_SIDE


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    for line in sys.stdin.buffer:
        path, kind = json.loads(line)
        try:
            stream = faery.events_stream_from_file(
                path, dimensions_fallback=(UNKNOWN_SIDE, UNKNOWN_SIDE), file_type=kind
            )
            width, height = stream.dimensions()
            buffer = io.BytesIO()
            np.save(buffer, stream.to_array(), allow_pickle=False)
        except BaseException as error:  # faery raises many kinds, and a panic of its Rust code is no Exception
            answers.write(json.dumps({"error": str(error)}).encode() + b"\n")
        else:
            answer = {"width": width, "height": height, "bytes": buffer.tell()}
            answers.write(json.dumps(answer).encode() + b"\n" + buffer.getvalue())
        answers.flush()


if __name__ == "__main__":
    main()
