"""Scalars, files of variables and refusals: testbed reads them as Compose does.

Compose is the judge where it is installed; what it was seen to say (2.40.3) stands here too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from testbed.compose import composefile, dotenv
from testbed.compose.command import Composer
from testbed.compose.variables import interpolate
from testbed.errors import InvalidComposeError
from testbed.reading import yamltree


def environments(config: dict[str, Any]) -> dict[str, dict[str, str | None]]:
    return {name: body.get("environment") or {} for name, body in config["services"].items()}


# --- scalars -----------------------------------------------------------------------------------------

SCALARS = {
    "yes": "yes", "on": "on", "no": "no", "Off": "Off", "y": "y", "true": "true", "True": "true", "FALSE": "false",
    "12:30": "12:30", "2222:22": "2222:22", "1e3": "1000", "1E-7": "1e-07", "1.10": "1.1", "3.0": "3", ".5": "0.5",
    "1.": "1", "1e21": "1e+21", "1e20": "1e+20", "1234567890.5": "1.2345678905e+09", "999999.5": "999999.5",
    "1000000.0": "1e+06", "123456.0": "123456", "0.0001": "0.0001", "0.00001": "1e-05", "-0.0": "-0", "0.0": "0",
    "0777": "511", "0o17": "15", "-0o17": "-15", "0x1F": "31", "-0x1F": "-31", "0b11": "3", "089": "89", "0o9": "0o9",
    "1_000": "1000", "1_0.5": "10.5", "_1": "_1", "+5": "5", "1e1000": "1e1000", "=": "=", "<<": "<<", "~": None,
    "null": None, "Null": None, '"5"': "5", "'yes'": "yes", "!!str 5": "5", '!!int "5"': "5",
    "18446744073709551615": "18446744073709551615", "123456789012345678901": "1.2345678901234568e+20",
}  # fmt: skip
_SCALARS_FILE = "services:\n  s:\n    image: x\n    environment:\n" + "".join(
    f"      V{number}: {text}\n" for number, text in enumerate(SCALARS)
)


def test_scalars_are_resolved_as_compose_does(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(_SCALARS_FILE, encoding="utf-8")
    seen = composefile.read(path, environment={}).config["services"]["s"]["environment"]
    assert dict(zip(SCALARS, seen.values(), strict=True)) == SCALARS


def test_compose_resolves_scalars_so(tmp_path: Path, compose: None) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(_SCALARS_FILE, encoding="utf-8")
    theirs = environments(Composer([path], project="x").config())["s"]
    assert {text: theirs[f"V{number}"] for number, text in enumerate(SCALARS)} == SCALARS


def test_ports_and_names_that_look_like_yaml_1_1_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        "services: {s: {image: x, ports: [2222:22], command: [echo, yes, 1:30], hostname: on}}\n", encoding="utf-8"
    )
    body = composefile.read(path, environment={}).config["services"]["s"]
    assert (body["ports"][0]["published"], body["ports"][0]["target"]) == ("2222", 22)
    assert (body["command"], body["hostname"]) == (["echo", "yes", "1:30"], "on")


def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        "services:\n  a:\n    image: x\n    init: true\n    image: y\n  b: {image: z}\n  a: {image: q}\n",
        encoding="utf-8",
    )
    file = composefile.read(path, environment={})
    with pytest.raises(InvalidComposeError) as refused:
        file.problems.raise_if_any()
    assert [problem.partition("compose.yaml:")[2] for problem in refused.value.problems] == [
        "5: 'image' is here a second time; line 3 has it already",
        "7: 'a' is here a second time; line 2 has it already",
    ]


def test_a_key_beside_a_merge_that_has_it_too_goes_before_it() -> None:
    document = yamltree.parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: *a, y: 4}\n")
    assert document.value["b"] == {"x": 1, "y": 3}
    assert document.value["c"] == {"x": 1, "y": 4}
    assert document.problems == []


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a, b: 1}", "a: " + "[" * 3000, "\x00", "a: 'b", "a: !foo b"]
)
def test_no_yaml_ends_in_a_traceback(text: str) -> None:
    yamltree.parse(text)


def test_aliases_of_aliases_end() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = yamltree.parse("\n".join(rows)).problems
    assert problem == ((), 5, "more than 100000 keys and values, aliases multiplied out")


# --- files of variables ------------------------------------------------------------------------------

_DOTENV = r"""
# words
BASE=b
DERIVED=${BASE}-x
C="l1\nl2 ${BASE}"
D='l1\nl2 ${BASE}'
E=a # b
F=a#b
G=only
H: yaml
export I=exp
J="a\"b"
K='a\'b'
L=
M="multi
line"
N=$$BASE
O="\$BASE"
P=\$BASE
Q="a\tb\\c\d"
R=${NOPE:-def}
S = spaced
T="x" # comment
U=${OUTSIDE}
OUTSIDE=mine
V=a"b"
W=$OUTSIDE
X.Y=dot
ZZ-Z=dash
QQ="\0101"
RR="\0\012"
TAIL='a' 
INHERITED
LONE=5 $ a
A[0]=1
1A=2
""".lstrip()  # noqa: W291  # the blank behind a value is what is looked at
_NAMES = [*re.findall(r"^(?:export )?([\w.\[\]-]+) ?[=:]", _DOTENV, re.MULTILINE), "INHERITED", "NOSUCH"]
_OUTSIDE = {"OUTSIDE": "shell", "INHERITED": "inherited"}
_ENV_FILE = 'B=${BASE}\nB2=${B}\nG=$G\nOUTSIDE=efile\nO2=$OUTSIDE\nINHERITED\nC="x\\ty"\n'
_DOTENV_FILE = (
    "services:\n  a: {image: x, env_file: e.env, environment: [G, NOSUCH]}\n  b:\n    image: x\n    environment:\n"
    + "".join(f"      {name}:\n" if name != "1A" else "      '1A':\n" for name in _NAMES)
)


def test_variables_of_files_are_read_as_compose_does(
    tmp_path: Path, compose: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(_DOTENV, encoding="utf-8")
    (tmp_path / "e.env").write_text(_ENV_FILE, encoding="utf-8")
    path = tmp_path / "compose.yaml"
    path.write_text(_DOTENV_FILE, encoding="utf-8")
    for name, value in _OUTSIDE.items():
        monkeypatch.setenv(name, value)
    theirs = composefile.of_compose(path, Composer([path], project="x").config(), [path], environment={}).config
    ours = composefile.read(path, environment=_OUTSIDE)
    ours.problems.raise_if_any()
    for service, environment in environments(theirs).items():
        assert environments(ours.config)[service] == environment


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("BASE=b\nDERIVED=${BASE}-x\n", {"BASE": "b", "DERIVED": "b-x"}),
        ('C="l1\\nl2"\n', {"C": "l1\nl2"}),
        ("C='l1\\nl2 $X'\n", {"C": "l1\\nl2 $X"}),
        ("A=$OUTSIDE\nOUTSIDE=mine\nB=$OUTSIDE", {"A": "shell", "OUTSIDE": "mine", "B": "shell"}),
        ('A="x" B=2\n', {"A": "x", "B": "2"}),
        ("INHERITED\nNOSUCH\n", {"INHERITED": "inherited"}),
        ("A=a\r\nB=b\r\n", {"A": "a", "B": "b"}),
    ],
)
def test_a_file_of_variables(text: str, variables: dict[str, str]) -> None:
    assert dotenv.parse(text, _OUTSIDE, expand=interpolate) == (variables, [])


BAD_DOTENV = {
    "A=1\nA B=1\n": (2, "has no blanks"),
    'A="x\n\n': (1, "without its closing quote"),
    "\nA=${X\n": (2, "without its closing brace"),
    "A/B=1": (1, "'/' may not stand"),
    "A=${X:?no}": (1, "variable X is not set: no"),
    'A="a" "b"': (1, "may not stand"),
}


@pytest.mark.parametrize("text", BAD_DOTENV)
def test_what_compose_refuses_in_a_file_of_variables_is_told_with_its_line(
    text: str, tmp_path: Path, compose: None
) -> None:
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    path = tmp_path / "compose.yaml"
    path.write_text("services: {a: {image: x}}\n", encoding="utf-8")
    with pytest.raises(InvalidComposeError):
        Composer([path], project="x").config()
    line, part = BAD_DOTENV[text]
    with pytest.raises(InvalidComposeError) as refused:
        composefile.read(path, environment={}).problems.raise_if_any()
    (problem,) = refused.value.problems
    assert problem.startswith(f"{tmp_path}/.env:{line}: ")
    assert part in problem
