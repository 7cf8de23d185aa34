"""The pictures of a source that captions are written for, whether they have some or none."""

from __future__ import annotations

from dopsd.data.sources.caption_files import read_caption_file
from dopsd.data.sources.fields import check_captions
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import Source, SourceRow
from dopsd.data.sources.settings import ReadSettings
from dopsd.errors import DataError, StorageError, message_line
from dopsd.files import storage

_LACKING = ("missing caption", "empty caption")
"""What is wrong with the pictures that captions are for."""


def list_pictures(path: str, settings: ReadSettings) -> Source:
    """The samples of a folder or list; each has its captions so far, or a ``problem``.

    Raises DataError as ``read_source`` does, and where pictures stand in tables or tars: a list of
    paths cannot name those.
    """
    listed = read_source(path, settings)
    packed = [group.where for group in listed.groups]
    packed += [row.where for row in listed.rows if row.image and row.image.stop is not None]
    if packed:
        raise DataError(
            f"SOURCE: {path}: pictures stand inside {packed[0]}, allowed: pictures in files, in a "
            "folder or named by a list"
        )
    for row in listed.rows:
        if row.problem is not None and row.problem.startswith(_LACKING) and row.image is not None:
            row.problem, row.captions = None, {}
    if all(row.problem for row in listed.rows):
        first = listed.rows[0]
        raise DataError(
            f"SOURCE: {path}: none of {len(listed.rows)} samples has a picture that can be read: "
            f"{first.where}: {first.problem}"
        )
    return listed


def read_captions(row: SourceRow, settings: ReadSettings) -> None:
    """Read what stands beside the picture into ``row.captions``; what cannot be read is a
    ``problem``, as it is to preparing. Raises StorageError when a remote storage fails."""
    if row.problem is not None or row.caption_file is None:
        return
    try:
        row.captions, _ = read_caption_file(row.caption_file, settings)
        check_captions(row.captions)
    except (FileNotFoundError, ValueError, StorageError) as error:
        if isinstance(error, StorageError) and storage.is_remote(row.caption_file):
            raise
        row.problem = f"caption: {message_line(error).removeprefix('caption ')}"
