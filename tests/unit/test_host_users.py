"""Users and groups of a host, by its own /etc/passwd and /etc/group, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.agent import users
from testbed.agent.protocol import Refused

_USERS = """root:x:0:0:root:/root:/bin/sh
# no entry
bad:x:uid:0::/:
short:x
worker:x:77:78::/srv:/bin/sh
bare:x:5:6
"""
_GROUP = "root:x:0:\nstaff:x:50:worker,root\nbroken:x:gid:worker\nmore:x:79:bare,worker\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("_PASSWD", _USERS), ("_GROUP", _GROUP)):
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setattr(users, name, str(path))


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("worker", (77, 78), "/srv"),
        ("77", (77, 78), "/srv"),
        ("worker:staff", (77, 50), "/srv"),
        ("worker:9", (77, 9), "/srv"),
        ("1234", (1234, 0), "/"),
        ("1234:5", (1234, 5), "/"),
        ("", (0, 0), "/root"),
        (":staff", (0, 50), "/root"),
        ("bare", (5, 6), "/"),
    ],
)
def test_a_user_is_found_by_name_or_number(user: str, ids: tuple[int, int], home: str) -> None:
    assert (users.identity(user), users.home(user)) == (ids, home)


@pytest.mark.parametrize("user", ["nobody", "bad", "short", "worker:none", "worker:broken"])
def test_one_that_the_files_do_not_have_is_refused(user: str) -> None:
    with pytest.raises(Refused, match="is not in the host's"):
        users.identity(user)


def test_a_user_has_the_groups_that_list_him(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(users, name, calls.append)
    users.become("77")
    users.become("worker:staff")
    assert calls == [[50, 79], 78, 77, [], 50, 77]


def test_an_image_without_such_files_has_root_alone_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_PASSWD", "/nowhere/passwd")
    assert users.identity("0:0") == (0, 0)
    assert users.home("0") == "/"
