"""Verdicts of claims, how they are stored, and their pages, on made-up experiments; no lab."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest

from testbed.errors import ImpairmentNotAppliedError, InvalidValueError, LabError
from testbed.evidence.verdict import Verdict
from testbed.lab.lab import Lab
from testbed.lab.ledger import Ledger
from testbed.paper import CLAIMS, Claim, chosen, examine, inputs, keep, kept, write_report
from testbed.paper.claimpages import ClaimPage, chart, claim_page, index_page
from testbed.paper.context import ExperimentContext
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless
from testbed.report.page import Bars, Curves

GIVEN = {"quick": True, "lab": "compose", "netem": "auto", "kernel": "6.1", "experiments": "0123"}


def row(held: bool | None, condition: str = "here") -> Condition:
    return Condition(name=condition, held=held, values={"seen": "1"})


class NoLab:
    """What `examine` needs of a lab, and no more."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    @property
    def lifecycle(self) -> NoLab:
        """Its tests."""
        return self

    def begin(self, seeds_from: str | None) -> None:
        self.began = seeds_from

    def end(self) -> None:
        self.ended = True


def claim(experiment: Callable[[ExperimentContext], ClaimOutcome]) -> Claim:
    return Claim(id="C99", name="made up", text="it is so", section="nowhere", experiment=experiment)


def examined(
    experiment: Callable[[ExperimentContext], ClaimOutcome], folder: Path, lab: NoLab | None = None
) -> ClaimOutcome:
    return examine(claim(experiment), cast(Lab, lab or NoLab()), folder)


# --- verdicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "finding"),
    [
        ([True, True], Verdict.HOLDS),
        ([True, False], Verdict.HOLDS_WITHIN),
        ([False, False], Verdict.FAILS),
        ([True, None], Verdict.HOLDS),
        ([None, None], Verdict.INVALID),
        ([], Verdict.INVALID),
    ],
)
def test_one_condition_that_does_not_hold_is_enough_and_context_counts_for_nothing(
    held: list[bool | None], finding: Verdict
) -> None:
    assert finding_of(map(row, held)) is finding


def test_a_sentence_that_presumes_that_it_held_is_not_told_where_it_did_not() -> None:
    assert unless([row(True), row(None)], "All well.") == "All well."
    assert unless([row(True), row(False, "rain"), row(False, "snow")], "All well.") == (
        "It did not hold under: rain; snow."
    )


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), StopIteration(), AssertionError("so"), KeyError("x"), LabError("gone")]
)
def test_a_crash_is_invalid_and_never_holds(error: Exception, tmp_path: Path) -> None:
    def crashes(_: ExperimentContext) -> ClaimOutcome:
        raise error

    lab = NoLab()
    outcome = examined(crashes, tmp_path, lab)
    assert outcome.finding is Verdict.INVALID
    assert type(error).__name__ in outcome.sentence or str(error) in outcome.sentence
    assert lab.ended


def test_conditions_that_were_not_in_force_are_invalid_and_say_so(tmp_path: Path) -> None:
    def unimpaired(_: ExperimentContext) -> ClaimOutcome:
        raise ImpairmentNotAppliedError("asked loss 2 %, the kernel reports 0 %")

    outcome = examined(unimpaired, tmp_path)
    assert outcome.finding is Verdict.INVALID
    assert "asked loss 2 %, the kernel reports 0 %" in outcome.sentence


def test_a_lab_that_cannot_be_healed_makes_what_was_found_invalid(tmp_path: Path) -> None:
    class Stuck(NoLab):
        def end(self) -> None:
            raise LabError("still impaired")

    outcome = examined(lambda _: ClaimOutcome(finding=Verdict.HOLDS, sentence="fine"), tmp_path, Stuck())
    assert outcome.finding is Verdict.INVALID


def test_seeds_come_from_the_claim_alone(tmp_path: Path) -> None:
    lab = NoLab()
    examined(lambda _: ClaimOutcome(finding=Verdict.HOLDS, sentence="fine"), tmp_path, lab)
    assert lab.began == "paper C99"


# --- which ---------------------------------------------------------------------------------------------


def test_claims_are_chosen_in_their_own_order_whatever_the_case() -> None:
    assert [claim_.id for claim_ in chosen(["c6", " C2 "])] == ["C2", "C6"]
    assert len(chosen([""])) == len(CLAIMS)


def test_every_unknown_claim_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidValueError) as caught:
        chosen(["C2", "C13", "D4"])
    assert len(caught.value.problems) == 2
    assert "C13" in caught.value.problems[0]


def test_each_claim_says_what_its_experiment_does() -> None:
    assert [claim.id for claim in CLAIMS.values()] == [f"C{number}" for number in range(1, 13)]
    assert all(claim.how for claim in CLAIMS.values())


# --- what is kept --------------------------------------------------------------------------------------


def outcome_of(finding: Verdict = Verdict.HOLDS, evidence: tuple[str, ...] = ()) -> ClaimOutcome:
    picture = Plot(title="t", x="time, s", y="kB", series={"a": [(0.0, 1.0)]}, dashed=frozenset({"a"}))
    return ClaimOutcome(
        finding=finding,
        sentence="so it is",
        rows=[row(True)],
        plots=[picture],
        mechanism={"lost": 1},
        evidence=evidence,
    )


def test_what_is_kept_comes_back_the_same(tmp_path: Path) -> None:
    keep(tmp_path, {"C1": outcome_of()}, GIVEN)
    back = kept(tmp_path, GIVEN)["C1"]
    assert json.dumps(back.as_json()) == json.dumps(outcome_of().as_json())
    assert back.plots[0].series["a"] == [(0.0, 1.0)]


@pytest.mark.parametrize("change", [{"quick": False}, {"experiments": "4567"}, {"lab": "local"}])
def test_an_outcome_of_other_inputs_is_not_taken_up(tmp_path: Path, change: dict[str, object]) -> None:
    keep(tmp_path, {"C1": outcome_of()}, GIVEN)
    assert kept(tmp_path, {**GIVEN, **change}) == {}


def test_what_was_not_decided_and_what_lost_its_evidence_is_sought_again(tmp_path: Path) -> None:
    outcomes = {
        "C1": outcome_of(Verdict.INVALID),
        "C2": outcome_of(evidence=("gone.pcapng",)),
        "C3": outcome_of(),
    }
    keep(tmp_path, outcomes, GIVEN)
    assert list(kept(tmp_path, GIVEN)) == ["C3"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"version": 4, "inputs": GIVEN, "claims": {"C1": 3}}'])
def test_a_file_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    text = text.replace("GIVEN", json.dumps(GIVEN))
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(InvalidValueError, match=r"claims\.json"):
        kept(tmp_path, GIVEN)
    assert (tmp_path / "claims.json").read_text() == text


def test_the_file_of_another_version_is_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text('{"version": 1, "quick": true, "claims": {}}')
    assert kept(tmp_path, GIVEN) == {}


def test_inputs_change_with_what_was_asked_for() -> None:
    assert inputs("compose", netem="auto", quick=True) != inputs("compose", netem="auto", quick=False)
    assert inputs("compose", netem="auto", quick=True) == inputs("compose", netem="auto", quick=True)


# --- pages ---------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The targets of a page, and whether every element that needs it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [
            value for name, value in attrs if name == "href" and value and not value.startswith(("#", "data:"))
        ]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Links:
    links = Links()
    links.feed(text)
    assert links.open == []
    return links


def test_the_report_has_a_page_a_claim_and_every_link_leads_to_a_file(tmp_path: Path) -> None:
    outcomes = {name: outcome_of(evidence=(f"{name}.txt",)) for name in CLAIMS}
    for name in CLAIMS:
        (tmp_path / f"{name}.txt").write_text("seen")
    write_report(tmp_path, outcomes, GIVEN)
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) == len(CLAIMS) + 1
    for page in pages:
        assert all((tmp_path / target).exists() for target in read(page.read_text()).targets), page


def page(outcome: ClaimOutcome) -> ClaimPage:
    return ClaimPage(id="C1", name="session", text="a <claim>", section="protocol", how="by doing", outcome=outcome)


def test_a_page_shows_every_condition_and_escapes_what_programs_said() -> None:
    rows = [Condition(name="<b>", held=False, values={"told": "<script>evil"}), row(None, "context")]
    outcome = ClaimOutcome(finding=Verdict.FAILS, sentence="x < y", rows=rows, conditions=["2% & more"])
    text = claim_page(page(outcome))
    read(text)
    assert "<script>evil" not in text
    assert "&lt;script&gt;evil" in text
    assert "x &lt; y" in text
    assert "2% &amp; more" in text
    assert text.count("✗") == 1


def test_the_index_counts_the_verdicts() -> None:
    text = index_page([page(outcome_of()), page(outcome_of(Verdict.FAILS))], {"lab": "compose"})
    assert "1 HOLDS" in text
    assert "1 BREAKS" in text
    assert "0 INVALID" not in text


def test_a_plot_of_lines_has_every_point_and_one_of_names_a_bar_each() -> None:
    lines = Plot(title="<t>", x="x & y", y="ms", series={"a": [(0.0, 1.0)], "b": []}, dashed=frozenset({"b"}))
    drawn = chart(lines)
    assert isinstance(drawn, Curves)
    assert (drawn.curves, drawn.dashed, drawn.logarithmic_x) == (lines.series, ["b"], False)
    named = Plot(title="t", x="profile", y="s", series={"a": [(0.0, 1.0), (1.0, 2.0)]}, categories=("p", "q"))
    assert chart(named) == Bars(title="t", y="s", names=("p", "q"), series={"a": {"p": 1.0, "q": 2.0}})
    assert chart(Plot(title="t", x="x", y="y", series={"a": []})) is None
    text = claim_page(page(ClaimOutcome(finding=Verdict.HOLDS, sentence="So.", plots=[lines, named])))
    read(text)
    assert "<t>" not in text


def test_a_number_is_not_parted_from_its_unit() -> None:
    rows = [Condition(name="a", held=True, values={"seen": "54 in 7.85 s, 3 sent"})]
    text = claim_page(page(ClaimOutcome(finding=Verdict.HOLDS, sentence="So.", rows=rows)))
    assert ">54 in 7.85\N{NO-BREAK SPACE}s, 3 sent</td>" in text


def test_a_page_begins_with_the_first_sentence_alone() -> None:
    text = claim_page(page(ClaimOutcome(finding=Verdict.HOLDS, sentence="It holds at 0.5 s (RFC 1, 2.3). It is so.")))
    assert '<p class="lead">It holds at 0.5 s (RFC 1, 2.3).</p>' in text
    assert '<p class="note">It is so.</p>' in text


def test_outcomes_are_json_all_the_way_down() -> None:
    assert json.loads(json.dumps(outcome_of().as_json()))["finding"] == "HOLDS"
