"""Writing a report's files: whole or not at all."""

import os
import tempfile
from pathlib import Path

from secateur.errors import SecateurError


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 so that `path` holds either all of it or what it held before.

    Raises SecateurError where the folder is missing, not writable or full.
    """
    return write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content` so that `path` holds either all of it or what it held before.

    Raises SecateurError where the folder is missing, not writable or full.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes a private file; a page is shared
        Path(temporary).replace(path)
    except OSError as error:
        raise SecateurError(
            f"{path} cannot be written ({error.strerror or error}); expected a file in an existing "
            "folder with room for it; fix: name another path or free space"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
