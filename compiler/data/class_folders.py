"""Labels from class folders: files that are named class/…/file below a common root."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import PurePosixPath

import numpy as np

from svitc.data.file_stores import FileStore
from svitc.data.sources import OpenedSource, Source, without_labels
from svitc.errors import InputError
from svitc.support.types import JsonMapping

SPLITS = ("train", "test", "val", "valid", "validation")
EXAMPLES = 3  # names of folders and classes that a note shows


def label_by_folder(
    name: str,
    store: FileStore,
    files: list[str],
    source: Source,
    info: JsonMapping,
    notes: list[str],
    unlabeled: bool,
) -> OpenedSource:
    """Return a source with a label for each file, or without any where folders are no classes.

    Args:
        name: What messages call the store.
        store: Holds the files.
        files: The source's images or recordings, names in ``store``.
        source: Gives them by number.
        info: Metadata of the program, of which ``classes`` and ``num_classes`` are read.
        notes: Assumptions, for the user to read.
        unlabeled: Whether to take folders for no classes.

    Raises:
        InputError: Some files lie outside class folders, or some folders are no classes.
    """
    if unlabeled or not store.has_folders:
        return without_labels(source, len(files), info, notes)
    paths = [PurePosixPath(file) for file in files]
    root = _root_depth(name, paths)
    folders = sorted({path.parts[root] for path in paths if len(path.parts) > root + 1})
    if not folders:
        return without_labels(source, len(files), info, notes)
    loose = [path for path in paths if len(path.parts) <= root + 1]
    if loose:
        raise InputError(
            f"{name}: {source.unit} {loose[0]} is in no class folder, but others are",
            hint=f"Put it into one, or use all {source.unit}s without labels: --unlabeled.",
        )
    reason = _why_no_classes(name, folders, source.unit, info)
    if reason:
        note = f"{reason}: its {source.unit}s are used without labels"
        return without_labels(source, len(files), info, [*notes, note])
    class_of, remarks = _class_of_folder(name, folders, source.unit, info)
    labels = np.array([class_of[path.parts[root]] for path in paths], dtype=np.int64)
    return OpenedSource(source, labels, list(info.get("classes") or folders), remarks + notes)


def _root_depth(name: str, files: list[PurePosixPath]) -> int:
    """Return the number of folders, such as ``test/``, that all files share above their class folders."""
    depth = 0
    while True:
        firsts = {f.parts[depth] for f in files if len(f.parts) > depth + 1}
        splits = sorted(firsts & set(SPLITS))
        if len(firsts) > 1 and len(splits) == len(firsts):
            raise InputError(
                f"{name} holds {' and '.join(splits)}",
                hint="Give the folder of one of them, or a .zip of it; or use all without labels: --unlabeled.",
            )
        # a lone folder with folders inside is a root; with images inside it is a class
        if len(firsts) != 1 or not all(len(f.parts) > depth + 2 for f in files):
            return depth
        depth += 1


def _why_no_classes(name: str, folders: list[str], unit: str, info: JsonMapping) -> str | None:
    """Return why folders can not be classes of the model; None where they are, or some of them."""
    classes, count = info.get("classes"), info.get("num_classes")
    if classes:
        if any(folder in classes for folder in folders):
            return None
        return f"no folder of {name} ({_some(folders)}) is named like a class of the model ({_some(classes)})"
    if count is None or len(folders) == count:
        return None
    folders_text = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
    return f"{name} has {folders_text} of {unit}s, but the model's head has {count} classes"


def _some(names: list[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")


def _class_of_folder(name: str, folders: list[str], unit: str, info: JsonMapping) -> tuple[dict[str, int], list[str]]:
    """Return the class of each folder, an index into the model's head, and notes for the user."""
    classes = info.get("classes")
    if classes:
        unknown = [folder for folder in folders if folder not in classes]
        if unknown:
            close = get_close_matches(unknown[0], classes, 1)
            way_out = f"The closest is {close[0]}." if close else f"They are {', '.join(classes[:10])}."
            raise InputError(
                f"{name}: folder {unknown[0]} is none of the model's {len(classes)} classes, but others are",
                hint=f"{way_out} To use all {unit}s without labels, give --unlabeled.",
            )
        return {folder: classes.index(folder) for folder in folders}, []
    note = "class folders are taken in the order of their names, as the model does not name its classes"
    return {folder: index for index, folder in enumerate(folders)}, [note]
