"""tc of this machine's own kernel, and the files that tc reads: tables of delays, BPF programs."""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
from pathlib import Path

from .batch import Batch, LocalTool
from .protocol import Refused
from .qdiscreader import OwnKernel, QdiscReader

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Where distributions put iproute2's tables. tc looks in one folder only, which must hold the user's tables as well.
_TABLES = (*Path("/usr/lib").glob("*-linux-*/tc"), Path("/usr/lib/tc"), Path("/usr/lib64/tc"), Path("/usr/share/tc"))


class LocalTc:
    """tc of this machine's kernel."""

    def __init__(self, *, tag: str, files_in: str) -> None:
        """Copy iproute2's tables into a new folder below ``files_in``; ``tag`` becomes part of its name."""
        # Not in TMPDIR: that may be /dev/shm, and a carried kernel has a /dev of its own.
        self.folder = Path(tempfile.mkdtemp(prefix=f"testbed-{tag}-", dir=files_in))
        for folder in _TABLES:
            for table in folder.glob("*.dist"):
                shutil.copy(table, self.folder)
        self.qdisc_reader = QdiscReader(OwnKernel())
        self._tool = self._in_root(None)
        self._indexes: dict[str, int] = {}

    def _in_root(self, root: Path | None) -> LocalTool:
        environment = {**os.environ, "TC_LIB_DIR": str(self.folder)}
        argv = ["tc", "-force", "-s", "-j", "-batch", "-"]
        return LocalTool(argv, root=root, environment=environment)

    def run_from(self, root: Path) -> None:
        """Run the tc of another root file system from now on."""
        self._tool.close()
        self._tool = self._in_root(root)

    def meet(self, device: str, index: int) -> None:
        """Note a device that others have named. Podman gives the name of one that is gone to the next.

        A running tc keeps the ifindex of a name that it has met (iproute2, ll_map.c); then another is started.
        """
        if self._indexes.setdefault(device, index) != index:
            self._tool.close()
            self._indexes = {device: index}

    def batch(self) -> Batch:
        """The running tool; started if necessary."""
        return self._tool.batch()

    def store(self, *, name: str, data: str) -> dict[str, str]:
        """Keep a file for tc, a table of delays or a program, until the agent ends; ``data`` in base 64."""
        if not _FILE_NAME.fullmatch(name):
            raise Refused(f"{name!r} is not a valid file name")
        path = self.folder / name
        path.write_bytes(base64.b64decode(data))
        return {"path": str(path)}

    def close(self) -> None:
        """End the tool and delete the files."""
        self._tool.close()
        shutil.rmtree(self.folder, ignore_errors=True)
