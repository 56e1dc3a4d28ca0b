"""What a local lab reads of a Dockerfile, and what it leaves to an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.compose import dockerfile
from testbed.compose.dockerfile import Copy, Folder, Image
from testbed.images.settings import PATH, HealthCheck

OURS = """\
# comment
FROM debian:trixie-slim
RUN apt-get update \\
 && apt-get install -y --no-install-recommends python3 \\
 # in between
 && rm -rf /var/lib/apt/lists/*
ARG VERSION=2
ENV A=1 B="two words" C=$VERSION
WORKDIR /srv
WORKDIR app
COPY common/*.py server/*.py ./
COPY --chown=1:1 one.txt other.txt
STOPSIGNAL 2
USER nobody
HEALTHCHECK --interval=1m30s --retries=5 CMD ["python3", "check.py"]
ENTRYPOINT ["python3"]
CMD ["server.py"]
"""


def read(text: str, **arguments: str) -> tuple[Image, list[str]]:
    image, problems = dockerfile.read(text, arguments=arguments)
    return image, [str(problem) for problem in problems]


def good(text: str, **arguments: str) -> Image:
    image, problems = read(f"FROM debian\n{text}\n", **arguments)
    assert problems == []
    return image


def test_everything_that_matters_to_a_program_is_read() -> None:
    image, problems = read(OURS)
    assert problems == []
    assert image == Image(
        environment={"PATH": PATH, "A": "1", "B": "two words", "C": "2"},
        workdir="/srv/app",
        layers=(
            Folder(line=9, path="/srv"),
            Folder(line=10, path="/srv/app"),
            Copy(line=11, sources=("common/*.py", "server/*.py"), target="/srv/app/"),
            Copy(line=12, sources=("one.txt",), target="/srv/app/other.txt", owner="1:1"),
        ),
        entrypoint=("python3",),
        command=("server.py",),
        health_check=HealthCheck(test=("python3", "check.py"), interval_s=90.0, retries=5),
        stop_signal="SIGINT",
        user="nobody",
        python=True,
    )


@pytest.mark.parametrize(
    ("written", "value"),  # as `docker build` has them
    [
        ("'$V'", "$V"), (r'"$V x\"y"', '2 x"y'), (r"\$V", "$V"), (r"a\ b", "a b"), ("${NO:-def}", "def"), ("$$x", "x"),
        ("${V:+alt}", "alt"), ("${NO:+alt}", ""), ("${NO}", ""), ("${NO:-${V}$V}", "22"), ("a$", "a$"),
        ("'a b'", "a b"), ("/bin:$PATH", f"/bin:{PATH}"),
        ("b\\\nc", "bc"), ("${NO-x}${E-y}${E:-z}", "xz"), (r'"a\b\\c"', r"a\b\c"),
    ],
)  # fmt: skip
def test_quotes_and_variables_are_read_as_the_builder_reads_them(written: str, value: str) -> None:
    assert good(f"ARG V=1\nENV E=\nENV A={written} Z=z", V="2").environment["A"] == value


def test_the_old_form_of_env_takes_the_whole_line() -> None:
    assert good('ARG V=2\nENV OLD some "quoted"  $V rest\nENV L M=1').environment == {
        "PATH": PATH,
        "OLD": "some quoted  2 rest",
        "L": "M=1",
    }


def test_variables_of_one_env_do_not_see_each_other() -> None:
    assert good("ENV A=1\nENV A=2 B=$A").environment == {"PATH": PATH, "A": "2", "B": "1"}


def test_an_argument_before_from_is_known_after_it_where_it_is_named() -> None:
    text = "ARG V=1\nARG W=x\nARG TAG=3.12\nFROM python:$TAG AS it\nARG V\nARG X Y=2\nENV A=$V B=$W C=$X$Y\n"
    image, problems = read(text)
    assert problems == []
    assert image.environment == {"PATH": PATH, "A": "1", "B": "", "C": "2"}
    assert image.python
    assert read(text, V="9", W="8", X="7")[0].environment == {"PATH": PATH, "A": "9", "B": "", "C": "72"}
    assert read(text, TAG="3.13")[1] == []
    assert read("ARG B=nobody/none\nFROM $B\n")[1][0].startswith(
        "line 2: FROM $B: the contents of nobody/none are unkn"
    )


def test_of_a_variable_and_an_argument_of_one_name_the_later_counts() -> None:
    assert good("ARG A=1\nENV A=2\nENV B=$A", A="4").environment == {"PATH": PATH, "A": "2", "B": "2"}
    assert good("ENV A=2\nARG A=3\nENV B=$A", A="4").environment == {"PATH": PATH, "A": "2", "B": "4"}


@pytest.mark.parametrize(
    ("text", "entrypoint", "command"),
    [
        ('CMD ["c"]\nENTRYPOINT ["e"]', ("e",), ("c",)),
        ('ENTRYPOINT ["e"]\nCMD ["c"]', ("e",), ("c",)),
        ("ENTRYPOINT e $X\nCMD c", ("/bin/sh", "-c", "e $X"), ("/bin/sh", "-c", "c")),
        ('SHELL ["/bin/bash", "-ec"]\nCMD c', (), ("/bin/bash", "-ec", "c")),
        ("CMD c\nCMD []\nENTRYPOINT []", (), ()),
        ('CMD ["$V", "a\\tb"]', (), ("$V", "a\tb")),
    ],
)
def test_programs_are_kept_as_they_are_written(
    text: str, entrypoint: tuple[str, ...], command: tuple[str, ...]
) -> None:
    image = good(text)
    assert (image.entrypoint, image.command) == (entrypoint, command)


def test_an_entrypoint_resets_the_command_of_the_base_alone() -> None:
    assert read("FROM python:3\n")[0].command == ("python3",)
    assert read('FROM python:3\nENTRYPOINT ["e"]\n')[0].command == ()


def test_folders_are_made_in_their_order_by_those_who_make_them() -> None:
    image = good(
        'ENV D=/data\nRUN set -e; mkdir -p $D/a "$D/b c" && mkdir -m 700 rel\nUSER man\nWORKDIR w\n'
        'RUN ["mkdir", "--parents", "x y"]\nCOPY --chown=$D:3 --chmod=0750 --link a "b" .'
    )
    assert image.layers == (
        Folder(line=3, path="/data/a"),
        Folder(line=3, path="/data/b c"),
        Folder(line=3, path="/rel", mode=0o700),
        Folder(line=5, path="/w", owner="man"),
        Folder(line=6, path="/w/x y", owner="man"),
        Copy(line=7, sources=("a", "b"), target="/w/", owner="/data:3", mode=0o750),
    )


def test_a_number_alone_is_the_group_of_what_the_builder_makes_and_not_of_what_a_program_makes() -> None:
    image = good("USER 6\nWORKDIR /w\nRUN mkdir /m\nCOPY --chown=7 a /b\nCOPY --chown=man a /c")
    assert [layer.owner for layer in image.layers] == ["6:6", "6", "7:7", "man"]


def test_what_a_program_does_not_see_is_passed_over() -> None:
    assert good("LABEL a=b\nEXPOSE 80\nONBUILD RUN make\nRUN apt-get update > /dev/null 2>&1 && apt-get clean") == good(
        ""
    )


def test_lines_are_joined_and_comments_left_out() -> None:
    image, problems = read("# syntax=docker/dockerfile:1\n\tFROM\tdebian\nCMD a \\\n# not this\n\n  b\\ \nc\nenv X=1")
    assert problems == []
    assert image.command == ("/bin/sh", "-c", "a   bc")
    assert image.environment["X"] == "1"


def test_a_heredoc_is_refused_once_and_what_follows_is_read() -> None:
    image, problems = read('FROM debian\nRUN <<EOF\necho hi\nEOF\nCOPY <<-"A" <<B /x/\nCMD no\n\tA\nB\nCMD c\n')
    assert [problem.partition(":")[0] for problem in problems] == ["line 2", "line 5"]
    assert all("a heredoc" in problem for problem in problems)
    assert image.command == ("/bin/sh", "-c", "c")


def test_a_line_for_the_shell_is_run_by_one() -> None:
    image, _ = read("FROM debian\nCMD exec sleep 5\nHEALTHCHECK CMD test -f x\n")
    assert image.command == ("/bin/sh", "-c", "exec sleep 5")
    assert image.health_check == HealthCheck(test=("/bin/sh", "-c", "test -f x"))


def test_a_python_image_has_python_and_a_health_check_can_be_taken_off() -> None:
    image, problems = read("FROM --platform=linux/amd64 docker.io/library/python:3.12-slim\nHEALTHCHECK NONE")
    assert (image.python, image.health_check, problems) == (True, None, [])


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("RUN pip install flask", "`pip install flask` cannot be run without an engine"),
        ("RUN apt-get update && apt-get install -y curl python3 jq", "installs curl, jq"),
        ("RUN apt-get purge -y python3", "`apt-get purge -y python3` cannot be run"),
        ("RUN apt-get update || true", "cannot be run"),
        ("RUN rm -rf / ", "cannot be run"),
        ("RUN mkdir -p /a | tee x", "cannot be run"),
        ("RUN mkdir -p $HOME/a", "cannot be run"),
        ("RUN mkdir -p /a/{b,c}", "cannot be run"),
        ("RUN mkdir -p $(pwd)", "cannot be run"),
        ("RUN mkdir -p /a # words", "cannot be run"),
        ("RUN mkdir -Z /a", "cannot be run"),
        ("RUN mkdir", "cannot be run"),
        ("RUN --mount=type=cache,target=/c pip install x", "`pip install x` cannot be run"),
        ("RUN --wish=1 true", "option --wish cannot be followed"),
        ("FROM debian", "several stages"),
        ("COPY --from=build /a /b", "copies from another image"),
        ("COPY --chmod=u+x a /b", "--chmod=u+x: write the mode as 755"),
        ("COPY --parents a /b", "option --parents cannot be followed"),
        ("COPY a b /c", "'/c' must end with a slash"),
        ("ADD https://example.org/a /a", "downloads"),
        ("ADD git@github.com:a/b.git /a", "downloads"),
        ("COPY alone", "needs a source and a target"),
        ("SHELL bash", "write it as a list"),
        ("SHELL []", "write it as a list"),
        ("CMD [1]", "nothing but strings"),
        ("VOLUME /data", "keeps no volumes"),
        ("STOPSIGNAL SIGFOO", "'SIGFOO' is no signal"),
        ("STOPSIGNAL 99", "'99' is no signal"),
        ("HEALTHCHECK --often=1s CMD a", "option --often cannot be followed"),
        ("HEALTHCHECK --interval=often CMD a", "'often' is not a duration"),
        ("HEALTHCHECK --start-interval=often CMD a", "'often' is not a duration"),
        ("HEALTHCHECK --retries=-1 CMD a", "--retries=-1: must be a whole number"),
        ("HEALTHCHECK CMD", "write HEALTHCHECK"),
        ("ENV A=${B:?needed}", "variable B is not set: needed"),
        ("ENV A='x", "a ' without its second"),
        ('ENV A="x', 'a " without its second'),
        ("ENV A=${B", "write ${NAME}"),
        ("ENV A=${B:-c", "without its closing brace"),
        ("ENV A", "write ENV NAME=value"),
        ("ENV A=1 B", "'B' is not of the form NAME=value"),
        ("ARG TARGETARCH", "the builder sets TARGETARCH"),
        ("WORKDIR", "needs an argument"),
        ("COPPY a b", "is no instruction of a Dockerfile"),
    ],
)
def test_what_cannot_be_followed_is_told_with_its_line(line: str, part: str) -> None:
    _, problems = read(f"FROM debian\n\n{line}\n")
    (problem,) = problems
    assert problem.startswith("line 3: ")
    assert part in problem


def test_every_problem_is_told() -> None:
    _, problems = read("FROM nobody/none\nRUN make && mkdir /a && apt-get install curl; x\nVOLUME a\n")
    assert [problem.partition(":")[0] for problem in problems] == ["line 1", "line 2", "line 2", "line 2", "line 3"]
    assert read("CMD a")[1] == ["line 1: no FROM"]
    assert read("ENV A=1\nFROM debian")[1] == ["line 1: ENV A=1: comes before FROM"]
    assert "only the escape character" in read("# escape=`\nFROM debian")[1][0]
    assert read("FROM debian\n# escape=`\n")[1] == []


@pytest.mark.parametrize(
    ("text", "duration_s"), [("0", 0), ("1s", 1), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("2us", 2e-6)]
)
def test_a_duration_is_read_as_go_writes_it(text: str, duration_s: float) -> None:
    assert dockerfile.duration_s(text) == pytest.approx(duration_s)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "1d", "-1s", "1s2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        dockerfile.duration_s(text)


@given(st.text(alphabet="FROMUNCPYADENV debian:/\\\n\"'[]#$={}.-a&;|"))
def test_no_text_is_too_odd_to_be_judged(text: str) -> None:
    image, problems = read(text)
    assert isinstance(image, Image)
    assert all(problem.startswith("line ") for problem in problems)
