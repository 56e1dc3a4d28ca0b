"""On the machine of a carried kernel: a local lab of two services in the files of an image, through the host's netem.

Prints what a service sees of its files and of the other's, and the seconds of a connection through 30 ms each way.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from testbed import LocalLab
from tests import archives
from tests.archives import entry, layer, link

_COMPOSE = """
x-service: &service
  x-testbed: {local: {image: ./image.tar}}
  volumes: ["/usr:/usr:ro"]
services: {a: *service, b: *service}
"""
_ASKS = "start=$(date +%s%N); (echo >/dev/tcp/b/9) 2>/dev/null; echo $(($(date +%s%N) - start))"


def main() -> None:
    """Bring it up, ask, and tell."""
    links = [link(name, f"usr/{name}") for name in ("bin", "lib", "lib64") if Path(f"/{name}").exists()]
    files = layer(*links, entry("usr"), entry("etc/issue", b"of the image\n"))
    below = layer(entry("etc"), entry("gone", b""), entry("etc/issue", b"of the layer below\n"))
    above = layer(entry(".wh.gone", b""))
    layers = [below, files, above]
    config = archives.configuration(
        layers, Env=["PATH=/usr/bin"], User="7:8", Entrypoint=["/usr/bin/sleep"], Cmd=["infinity"]
    )
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "image.tar").write_bytes(archives.archive(archives.docker_files(layers, config)))
        (Path(name) / "compose.yaml").write_text(_COMPOSE)
        with LocalLab(Path(name) / "compose.yaml", netem="host") as lab:
            sees = "id -u; cat /etc/issue; ls /"
            print(lab.host("a").run(["bash", "-c", sees]).stdout.split())
            lab.host("b").put("/mine", "")
            print(lab.host("a").run(["bash", "-c", "ls /mine"]).ok)
            lab.impair("a <-> b", delay="30ms")
            print(int(lab.host("a").run(["bash", "-c", _ASKS]).stdout) / 1e9)


if __name__ == "__main__":
    main()
