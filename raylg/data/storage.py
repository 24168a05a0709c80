"""One folder of files, on a disk or in a bucket of an S3-compatible store; the only way data sets are read and written.

Names are relative to the folder, with `/` between parts. A file is there as a whole or not at all: a local one is
written under a temporary name and renamed, and a bucket shows a file when its last byte has arrived.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path
from typing import Protocol

from raylg.data.config import StorageConfig
from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
S3_URL = re.compile(r"s3://([^/]*)/?(.*)")


class _Files(Protocol):
    """What a kind of storage does; `key` is a whole path or key."""

    def read(self, key: str, size: int | None) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def size(self, key: str) -> int | None: ...

    def sizes(self, prefix: str) -> dict[str, int]: ...

    def delete(self, key: str) -> None: ...


class Storage:
    """A folder of files. May be used from several threads, pickled and taken through a fork.

    Attributes:
        url: as shown to people; never holds credentials.
        local: the folder on this machine, None for a bucket.
    """

    def __init__(self, url: str | Path, config: StorageConfig | None = None) -> None:
        """Nothing is read or connected before the first use.

        Args:
            url: a path, `file:///path` or `s3://bucket/folder`.
            config: endpoint, timeouts and number of requests of a bucket.

        Raises:
            ConfigError: another scheme, or file:// without a path from the root, s3:// without a bucket or with
                credentials.
        """
        self.config = config or StorageConfig()
        text = str(url)
        scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
        self.local: Path | None = None
        self._root = ""
        """What keys begin with."""
        if scheme == "s3":
            match = S3_URL.fullmatch(text)
            bucket, prefix = match.groups() if match else ("", "")
            if "@" in bucket:
                raise ConfigError("an s3:// URL holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
            if not bucket:
                raise ConfigError(f"{text}: no bucket; write s3://bucket/folder")
            self._root = "/".join([bucket, *(part for part in prefix.split("/") if part)])
            self.url = f"s3://{self._root}"
        elif scheme == "file" and not rest.startswith("/"):
            raise ConfigError(f"{text}: file:// takes a path from the root, file:///folder; or give the path alone")
        elif scheme in ("", "file"):
            self.local = Path(rest).expanduser()
            self.url = self._root = str(self.local)
        else:
            raise ConfigError(f"{text}: {scheme}:// is not supported; give a folder or s3://bucket/folder")
        self._files: _Files | None = None
        self._pid = 0

    def __reduce__(self) -> tuple[type[Storage], tuple[str, StorageConfig]]:
        return Storage, (self.url, self.config)  # connections and credentials stay in their process

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def describe(self, name: str) -> str:
        """Where a file is, for messages."""
        return str(self.local / name) if self.local is not None else f"{self.url}/{name}"

    def join(self, child: str) -> Storage:
        """A folder within this one."""
        joined = Storage(self._key(child) if self.local is not None else f"s3://{self._key(child)}", self.config)
        joined._files, joined._pid = self._files, self._pid
        return joined

    def read(self, name: str, size: int | None = None) -> bytes:
        """A whole file; a large one in a bucket is read in several ranges at a time.

        Args:
            name: relative to the folder.
            size: in bytes, where it is known.

        Raises:
            ShardError: no such file, or it has another size than `size`.
            EnvironmentUnfitError: the storage refuses, or does not deliver before the deadline.
        """
        return self._backend().read(self._key(name), size)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, over an older one of this name.

        Raises:
            EnvironmentUnfitError: the storage refuses, is full, or does not take it before the deadline.
        """
        self._backend().write(self._key(name), data)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every file in this folder and below whose name starts with `prefix`; empty where nothing is.

        Raises:
            EnvironmentUnfitError: the storage refuses, or does not answer before the deadline.
        """
        root = self._key("")
        found = self._backend().sizes(root + prefix)
        return {key.removeprefix(root): size for key, size in sorted(found.items())}

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none; errors as of `sizes`."""
        return self._backend().size(self._key(name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file; errors as of `sizes`."""
        return self.size(name) is not None

    def delete(self, name: str) -> None:
        """Delete a file if there is one; errors as of `write`."""
        self._backend().delete(self._key(name))

    def _key(self, name: str) -> str:
        if ".." in name.split("/") or (self.local is not None and name.startswith("/")):
            raise ShardError(f"{self.url}: {name!r} is not a name within this folder; give the file another name")
        return f"{self._root}/{name}"  # letter by letter: in a bucket, a//b and ./a are names like any other

    def _backend(self) -> _Files:
        if self._files is None or self._pid != os.getpid():  # a connection does not survive a fork
            if self.local is not None:
                self._files = _LocalFiles()
            else:
                from raylg.data.bucket import BucketFiles  # takes a second to load: only those who need it wait

                self._files = BucketFiles(self.config)
            self._pid = os.getpid()
        return self._files


class _LocalFiles:
    """Files on this machine or on a mounted network folder."""

    def read(self, key: str, size: int | None) -> bytes:
        try:
            data = Path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ShardError(f"{key}: no such file; copy it there again") from error
        except OSError as error:
            raise EnvironmentUnfitError(f"{key}: cannot be read ({error.strerror}); check the disk") from error
        if size is not None and len(data) != size:
            raise ShardError(f"{key}: {len(data)} bytes, but {size} were expected; copy it there again")
        return data

    def write(self, key: str, data: bytes) -> None:
        path = Path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError as error:
            what = "the disk is full: free some space" if error.errno in NO_SPACE else "check the folder's permissions"
            raise EnvironmentUnfitError(f"{key}: cannot be written ({error.strerror}); {what}") from error

    def size(self, key: str) -> int | None:
        path = Path(key)
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise EnvironmentUnfitError(f"{key}: cannot be read ({error.strerror}); check the disk") from error

    def sizes(self, prefix: str) -> dict[str, int]:
        try:
            return self._sizes(prefix)
        except OSError as error:
            raise EnvironmentUnfitError(
                f"{error.filename}: cannot be listed ({error.strerror}); check the disk and the permissions"
            ) from error

    def _sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        visited = set()
        for folder, below, names in os.walk(os.path.dirname(prefix), onerror=_unless_gone, followlinks=True):
            place = os.stat(folder)
            if (place.st_dev, place.st_ino) in visited:  # a link to a folder above, or a second one to this folder
                below.clear()
                continue
            visited.add((place.st_dev, place.st_ino))
            below.sort()  # so that of two links to a folder the same one counts on every machine
            for name in names:
                path = os.path.join(folder, name)
                if path.startswith(prefix) and not is_temporary(name):
                    try:
                        found[path] = os.stat(path).st_size
                    except FileNotFoundError as error:
                        _refuse_link(path, error)
        return found

    def delete(self, key: str) -> None:
        try:
            Path(key).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise EnvironmentUnfitError(f"{key}: cannot be deleted ({error.strerror}); check permissions") from error


def _unless_gone(error: OSError) -> None:
    """Raise what keeps a folder from being listed, unless there is none, or no longer."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _refuse_link(path: str, error: FileNotFoundError) -> None:
    """Tell a link to nothing, which is a file that is missing, from a file that another process has deleted."""
    if os.path.islink(path):
        raise EnvironmentUnfitError(
            f"{path}: a link to {os.readlink(path)}, which is not there; bring that back, or remove the link"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, flush to disk, rename; the folder must exist.

    Raises:
        OSError: of the file system; nothing is left behind.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """Name beside `path` that nobody else uses and that no reader takes for a file of the data set."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` made this file name."""
    return name.startswith(".") and name.endswith(".tmp")
