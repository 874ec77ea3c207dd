"""The rows of a public data set, from the hub or from local files."""

from collections.abc import Iterable
from typing import Any

from judgelit.errors import UserError, first_line
from judgelit.records.files import looks_like_file, read_rows
from judgelit.records.public_sources.public_set import PublicSet
from judgelit.records.sources import FileSource

Rows = Iterable[tuple[str, dict[str, Any]]]


def rows_of(public: PublicSet, path: str | None, split: str | None, broken: bool) -> Rows:
    """The rows of a public data set, each with its place.

    Args:
        public: The data set.
        path: Files, or another data set of the hub; None: the data set on the hub.
        split: Split; None: the data set's own on the hub, and all rows of files.
        broken: Yield a BrokenRow in place of a line that is not a row.

    Raises:
        UserError: There are no such files, the hub does not have them, or the split is unknown.
    """
    if path is not None and looks_like_file(path):
        if split is not None and public.split_column is None:
            raise UserError(f"{path}: found split {split!r} for files, expected it only for a data set of the hub")
        rows: Rows = read_rows(path, broken)
    else:
        split = split or public.split
        rows = _hub_rows(public, split, broken) if path is None else FileSource(path, split, skip_invalid=broken).rows()
    column = public.split_column
    return rows if split is None or column is None else (one for one in rows if one[1].get(column, split) == split)


def _hub_rows(public: PublicSet, split: str, broken: bool) -> Rows:
    if not public.hub:
        raise UserError(
            f"source {public.name}: the hub has no such data set with answers; give files with --pairs, of rows with "
            f"{public.form}"
        )
    try:
        yield from _loaded(public, split, broken)
    except UserError as error:
        raise UserError(f"source {public.name}: {error}; --pairs reads its files from another place") from error


def _loaded(public: PublicSet, split: str, broken: bool) -> Rows:
    if not public.files:
        return FileSource(public.hub, split, public.config, skip_invalid=broken).rows()
    if split not in public.files:
        raise UserError(f"split: found {split!r}, expected {' or '.join(public.files)}")
    file = public.files[split]
    local = _download(public.hub, file)
    # Places and ids must not name the cache.
    return ((f"{public.hub}/{file}{at.removeprefix(local)}", row) for at, row in read_rows(local, broken))


def _download(repository: str, file: str) -> str:
    """Path of a file of a data set on the hub, in the cache.

    Raises:
        UserError: It cannot be downloaded.
    """
    import huggingface_hub

    try:
        return huggingface_hub.hf_hub_download(repository, file, repo_type="dataset")
    except Exception as error:
        # The hub's client raises exceptions of several libraries.
        raise UserError(f"{repository}: downloading {file} from the hub failed: {first_line(error)}") from error
