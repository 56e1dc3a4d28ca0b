"""The programs of ``images/`` as one file for a host's own Python; the host needs nothing else of ours."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache

from testbed.lab.host import Host
from testbed.resources import resource

_FOLDERS = ("images/common", "images/client", "images/server")
_MAIN = """\
import runpy, sys
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@cache
def archive() -> bytes:
    """A zip archive of the programs and the modules that they share; ``python3 ARCHIVE NAME …`` runs one of them."""
    files = {"__main__.py": _MAIN.encode()}
    for folder in _FOLDERS:
        files |= {path.name: path.read_bytes() for path in sorted(resource(folder).glob("*.py"))}
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as written:
            for name, content in files.items():
                written.writestr(zipfile.ZipInfo(name), content)  # no time: equal content, equal bytes
        return file.getvalue()


def put_programs(host: Host) -> list[str]:
    """Put the archive into a host's ``/tmp``. Returns the first words of the argv that runs one of its modules."""
    path = f"/tmp/testbed-programs-{hashlib.sha256(archive()).hexdigest()[:12]}.pyz"  # noqa: S108  # in a host of the lab's; put is atomic, and whoever wrote it before wrote the same
    host.put(path, archive())
    return ["python3", path]
