"""What the system says, in a sentence: files, disks, pipes, damaged archives, text in another encoding.

A fault of the system is the user's to mend (exit 2, one line); a bug of ours still shows its traceback.
"""

from __future__ import annotations

import errno
import lzma
import zlib
from typing import Any

from typer.core import TyperGroup

from rolltree.cli.output import PIPE_CLOSED, silence
from rolltree.errors import RolltreeError

_FIXES = {
    errno.ENOENT: "Check the path.",
    errno.EACCES: "Choose another path, or change its permissions.",
    errno.EPERM: "Choose another path, or change its permissions.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.ENOTDIR: "A part of the path is a file, not a folder.",
    errno.EEXIST: "Choose another name.",
    errno.ENOSPC: "Free some space, or choose another disk.",
    errno.EDQUOT: "Free some space, or choose another disk.",
    errno.EROFS: "Choose a disk that can be written to.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
_SYSTEM = (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError)
_FOREIGN = ("zstandard", "zstd", "compression")


class SystemFaultError(RolltreeError):
    """The system refused something; the message names the file, the reason and the fix."""


class Commands(TyperGroup):
    """The commands, whose system errors are sentences. (click would take an EOFError for Ctrl-C: "Aborted!")"""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            SystemFaultError: in place of the system's own error.
            SystemExit: nobody reads the output any more.

        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            silence()
            raise SystemExit(PIPE_CLOSED) from None
        except Exception as error:  # only the system's kinds; all others go on as they are
            if not is_system(error):
                raise
            raise SystemFaultError(sentence(error)) from error


def is_system(error: BaseException) -> bool:
    """Whether the error is the system's, or that of a library that unpacks files."""
    return isinstance(error, _SYSTEM) or type(error).__module__.split(".")[0] in _FOREIGN


def sentence(error: BaseException) -> str:
    """Say what happened, to which file, and what to do about it."""
    if not isinstance(error, OSError) or error.strerror is None:
        what = f"{error}" or type(error).__name__
        return f"a file could not be read: {what}. It is damaged, cut off, or in another encoding or format."
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    fix = _FIXES.get(error.errno or 0, "")
    return f"{names + ': ' if names else ''}{error.strerror}." + (f" {fix}" if fix else "")
