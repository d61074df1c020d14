"""Where lines of requests go: a file, or a pipe that nobody waits for."""

import array
import fcntl
import os
import stat
import termios
from contextlib import suppress
from typing import BinaryIO

from observability.families import LINES_DROPPED

# As many as anybody may ask for. The half of it is for who writes there too, and asks nobody whether there is room.
PIPE_BYTES = 1 << 20


class Sink:
    """A pipe takes a batch in one piece if there is room for it (pipe(7)), else whoever writes waits for its reader.

    So it is made wider, and once it is half full lines are dropped, and counted: requests go on, if without a log.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pipe = file.fileno() if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) else None
        self._room = 0
        if self._pipe is not None:
            with suppress(OSError):  # a user may have so much in pipes, and no more
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self._room = fcntl.fcntl(self._pipe, fcntl.F_GETPIPE_SZ) // 2

    def write(self, text: bytes, lines: int) -> None:
        if self._pipe is not None and self._unread(self._pipe) + len(text) > self._room:
            LINES_DROPPED.of().add(lines)
            return
        self._file.write(text)
        self._file.flush()

    @staticmethod
    def _unread(pipe: int) -> int:
        found = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, found)
        return found[0]
