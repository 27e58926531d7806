"""A version is promoted where it passes, by one person at a time, and every move of an alias is written down."""

import json
import shutil
import threading
from dataclasses import replace
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import check_race, make_version, predictions

from ift.errors import IftError
from ift.evaluate.forgetting import questions
from ift.tracking import guard, promotion
from ift.tracking.client import mlflow_client
from ift.tracking.promotion import Move
from ift.tracking.registry import Registry


def decided(uri: str, which: str = "1", **options: Any) -> promotion.Decision:
    registry = Registry(uri)
    holder = registry.aliases("reviews").get("champion")
    champion = registry.version("reviews", str(holder)) if holder else None
    return promotion.decide(registry, registry.version("reviews", which), champion, **options)


def verdicts(decision: promotion.Decision) -> dict[str, str]:
    return {line["check"]: line["verdict"] for line in decision.lines}


def promoted(uri: str, which: str, **options: Any) -> Move:
    registry, decision = Registry(uri), decided(uri, which)
    return promotion.promote(registry, decision.version, "champion", decision, by="ada", **options)


# ── the decision ──


def test_a_good_version_passes_on_every_line_and_gets_the_alias(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    decision = decided(uri)
    assert verdicts(decision) == {
        "task reviews (accuracy)": "pass",
        "probe words (accuracy)": "pass",
        "leaks": "pass",
        "export": "pass",
        "licence of reviews": "pass",
    }
    move = promoted(uri, "1")
    registry = Registry(uri)
    version = registry.version("reviews", "@champion")
    assert version.number == 1
    assert promotion.history(registry, "reviews", "champion") == [move]
    assert version.tags["ift.alias.champion"].startswith("promoted by ada, ")
    assert "pass: leaks" in version.tags["ift.decision.champion"]


@pytest.mark.parametrize(
    ("change", "check", "verdict", "words"),
    [
        ({"data": {"decontaminate": 0}}, "leaks", "fail", "training rows were not searched for test items"),
        (
            {"data": {"decontaminate": None}},
            "leaks",
            "unclear",
            "it is not known whether training rows hold test items",
        ),
        (
            {"licenses": {"reviews": "CC BY-NC-SA 4.0"}},
            "licence of reviews",
            "fail",
            "does not permit every use",
        ),
        ({"licenses": {"reviews": "unstated"}}, "licence of reviews", "unclear", "its terms are not known"),
        (
            {"files": {"config.json": 23, "gone.safetensors": 9}},
            "export",
            "fail",
            "not in MLflow any more: gone",
        ),
        ({"files": {"config.json": 24}}, "export", "fail", "config.json has 23 bytes, 24 were written"),
        ({"train": {"reload_error": 0.5}}, "export", "fail", "reloaded with other logits"),
    ],
)
def test_what_stands_in_the_way_is_named(
    uri: str, tmp_path: Path, change: dict[str, Any], check: str, verdict: str, words: str
) -> None:
    make_version(uri, tmp_path / "a", "reviews", summary=change)
    [line] = [line for line in decided(uri).lines if line["check"] == check]
    assert line["verdict"] == verdict
    assert words in line["detail"]
    with pytest.raises(
        IftError, match=f"version 1 of reviews is not promoted to champion: {check}: {verdict}"
    ):
        promoted(uri, "1")
    assert "champion" not in Registry(uri).aliases("reviews")


def test_terms_that_somebody_has_read_are_accepted(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews", summary={"licenses": {"a": "unstated", "b": "MIT"}})
    assert not decided(uri).passed
    assert decided(uri, accepted=["unstated"]).passed


def test_a_gain_and_a_drop_are_held_against_what_is_asked(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews", tuned=(0.7, 0.7))
    assert verdicts(decided(uri))["probe words (accuracy)"] == "fail"
    assert verdicts(decided(uri, max_drop=0.2))["probe words (accuracy)"] == "pass"
    strict = decided(uri, max_drop=0.2, min_gain=0.3)
    assert verdicts(strict)["task reviews (accuracy)"] == "fail"
    assert "no better than the base model by more than 0.3" in strict.failed[0]["detail"]


def test_a_version_without_evaluations_is_not_promoted(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    client = mlflow_client(uri)
    version = client.get_model_version("reviews", "1")
    location = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://"))
    (location / "model" / "ift.json").unlink()
    with pytest.raises(IftError, match="evaluations: unclear"):
        promoted(uri, "1")
    shutil.rmtree(location)
    with pytest.raises(IftError, match="evaluations: unclear"):
        promoted(uri, "1")
    with pytest.raises(IftError, match="the files of reviews/1 are not in MLflow"):
        Registry(uri).pull(Registry(uri).version("reviews", "1"), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_version_that_serves_other_files_than_its_run_measured_is_not_promoted(
    uri: str, tmp_path: Path
) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    make_version(uri, tmp_path / "b", "reviews", tuned=(0.5, 0.1))
    client, registry = mlflow_client(uri), Registry(uri)
    good, bad = (registry.version("reviews", which) for which in ("1", "2"))
    assert good.run_id
    stored = client.get_run(good.run_id).info.artifact_uri
    (tmp_path / "weights").mkdir()
    sources = [bad.source, str(tmp_path / "weights"), f"{stored}/other", "models:/reviews/2"]
    for source in sources:
        client.create_model_version("reviews", source=source, run_id=good.run_id)
        version = registry.versions("reviews")[0]
        export = next(line for line in decided(uri, str(version.number)).lines if line["of"] == "export")
        assert export["verdict"] == "fail"
        assert "what was measured is the model of its run" in export["detail"]
        assert registry.files(version) == {}
        with pytest.raises(IftError, match="which is not the model of its run"):
            registry.pull(version, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    for source in (f"{stored}/model", f"{stored}/model/", "models:/reviews/1"):  # a copy among them
        client.create_model_version("reviews", source=source, run_id=good.run_id)
        number = registry.versions("reviews")[0].number
        assert decided(uri, str(number)).passed, source
    registry.pull(registry.version("reviews", str(number)), tmp_path / "pulled")
    assert (tmp_path / "pulled" / "config.json").is_file()


def test_the_champion_is_compared_on_the_same_items_only(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews", tuned=(0.9, 0.8))
    make_version(uri, tmp_path / "b", "reviews", tuned=(0.75, 0.8))
    make_version(uri, tmp_path / "c", "reviews", tuned=(0.95, 0.8), items="other")
    promoted(uri, "1")
    worse = decided(uri, "2")
    assert verdicts(worse)["task reviews (accuracy) against version 1"] == "fail"
    assert verdicts(worse)["probe words (accuracy) against version 1"] == "pass"
    other = decided(uri, "3")
    assert verdicts(other)["against version 1"] == "unclear"
    assert "asked other items (240 of 240 differ)" in other.failed[0]["detail"]
    again = predictions(0.9, 0.8, items="other")  # what version 1 would answer to them
    assert decided(uri, "3", asked=again).passed


def test_the_run_that_is_easier_on_itself_sets_no_terms_against_the_champion(
    uri: str, tmp_path: Path
) -> None:
    make_version(uri, tmp_path / "a", "reviews", tuned=(0.9, 0.8))
    make_version(
        uri,
        tmp_path / "b",
        "reviews",
        tuned=(0.9, 0.65),
        summary={"gate": {"max_drop": 0.9, "verdict": "pass"}},
    )
    promoted(uri, "1")
    check = "probe words (accuracy) against version 1"
    assert verdicts(decided(uri, "2"))["probe words (accuracy)"] == "pass"
    assert verdicts(decided(uri, "2"))[check] == "fail"
    assert verdicts(decided(uri, "2", max_drop=0.9))[check] == "pass"


def test_a_probe_that_only_the_champion_was_asked_is_unclear(uri: str, tmp_path: Path) -> None:
    more = [{"name": "words", "drop": {"value": 0.0}}, {"name": "sums", "drop": {"value": 0.0}}]
    make_version(uri, tmp_path / "a", "reviews", summary={"probes": more})
    make_version(uri, tmp_path / "b", "reviews")
    promoted(uri, "1")
    asked = predictions(0.9, 0.8)  # with `--ask` it answers the new one's items, and no others
    [line] = decided(uri, "2", asked=asked).failed
    assert (line["check"], line["verdict"]) == ("probe sums against version 1", "unclear")


ROW = predictions(1.0, 1.0)[0]


@given(
    st.sampled_from(["kind", "metric", "prompt", "label", "shots", "asked"]),
    st.sampled_from(["another", ["another"], 3]),
)
def test_items_are_the_same_where_all_that_makes_them_is(key: str, value: Any) -> None:
    row = {**ROW, "asked": "4f1c"}
    one, same, other = questions([row], [{**row, "score": 0.0, "output": "no"}], [{**row, key: value}])
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"decontaminate": 21}}, "only 21 words in a row count as a leak"),
    ],
)
def test_a_search_for_leaks_claims_no_more_than_was_searched(change: dict[str, Any], words: str) -> None:
    line = promotion.leaks({"data": {"decontaminate": 20}, "probes": [{"name": "words"}], **change})
    assert (line["verdict"], words in line["detail"]) == ("unclear", True)
    passed = promotion.leaks({"data": {"decontaminate": 20}, "probes": [{"name": "w", "metric": "accuracy"}]})
    assert passed["verdict"] == "pass"
    assert "or 20 words in a row of one that ten other rows do not share" in passed["detail"]
    harness = promotion.leaks(
        {"data": {"decontaminate": 20}, "probes": [{"name": "arc_easy", "metric": "acc_norm"}]}
    )
    assert harness["verdict"] == "pass"
    assert harness["detail"].endswith("; the harness's items were not searched for (arc_easy)")


TERMS = {
    "fail": [
        "CC BY-NC 4.0",
        "CC BY-NC_4.0",
        "cc-by-nc-sa-4.0",
        "CC-BY-NC-ND-4.0",
        "CC BY-ND 4.0",
        "cc-by-nd-4.0",
        "CC_BY_ND",
        "ccbync4",
        "Attribution-NoDerivatives",
        "Attribution-NonCommercial-NoDerivs 4.0",
        "no derivatives",
        "No_Derivative works",
        "Non\u2011commercial",
        "not for commercial use",
        "commercial use is prohibited",
        "for non-commercial research and education only",
        "unstated (for non-commercial use, by its collector's word)",
        "research purposes only",
        "other (qwen-research)",
        "tongyi-qianwen-research",
        "mrl",
        "other (mnpl)",
        "Mistral AI Research License",
        "Mistral AI Non-Production License",
        "Microsoft Research License",
        "MSR-LA",
        "apple-amlr",
        "Apple Machine Learning Research Model License for research only",
        "personal use only",
        "for evaluation only",
        "academic only",
        "educational use only",
        "for non-profit use only",
    ],
    "unclear": [
        "",
        "unstated",
        "other",
        "Other (its own)",
        "proprietary",
        "All rights reserved",
        "\u00a9 2020 Someone. All-Rights-Reserved.",
        "n/a",
        "N.A.",
        "None",
        "no license",
        "cc",
        "Creative Commons",
        "other (acme-weights-1)",
        "Amazon's terms for its corpus of reviews (research)",
        "Microsoft Research Shared Source licence",
    ],
    "pass": [
        "MIT",
        "MIT (2nd edition)",
        "Apache-2.0",
        "CC BY 4.0",
        "CC-BY-SA-3.0 and GFDL",
        "CC0-1.0",
        "OANC licence; the fiction part CC BY 3.0, CC BY-SA 3.0 and other free terms",
        "free for any purpose; Google asks to be named as the source",
        "Open Data Commons Attribution License",
        "Academic Free License 3.0",
        "Educational Community License 2.0",
        "llama3.1",
        "other (llama4)",
        "other (modified-mit)",
        "our own",
    ],
}


@pytest.mark.parametrize(
    ("verdict", "text"), [(verdict, text) for verdict, texts in TERMS.items() for text in texts]
)
def test_terms_are_known_in_all_spellings(verdict: str, text: str) -> None:
    for spelled in (text, text.upper(), text.lower(), text.replace("-", "_"), text.replace(" ", "-")):
        assert [line["verdict"] for line in promotion.licences({"a": spelled}, [])] == [verdict], spelled


# ── the moves ──


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9), st.text(max_size=6000), st.sampled_from(["promoted", promotion.NOT_PASSED])
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_history_keeps_its_newest_moves_however_long_their_reasons(
    steps: list[tuple[int, str, str]],
) -> None:
    moves = [
        Move(number, version, how, "ada", 1.7e9, promotion.short(reason))
        for number, (version, reason, how) in enumerate(steps, 1)
    ]
    kept = moves[:0]
    for move in moves:  # as one comes after the other
        text = promotion._as_text([*kept, move])
        assert len(text) <= 5000
        kept = [Move(**entry) for entry in json.loads(text)]
        assert kept[-1] == move
        assert [m for m in moves if m in kept] == kept
    assert all(len(move.reason) <= promotion.REASON_LENGTH for move in kept)


def test_a_long_reason_erases_neither_the_history_nor_the_page(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    make_version(uri, tmp_path / "b", "reviews", tuned=(0.9, 0.5))
    promoted(uri, "1")
    long = "because " * 1000
    move = promoted(uri, "2", override=long)
    registry = Registry(uri)
    first, second = promotion.history(registry, "reviews", "champion")
    assert (first.version, second) == (1, move)
    assert second.reason.endswith(" …")
    assert registry.version("reviews", "2").tags["ift.override.champion"].startswith(long[:4000])
    version = registry.version("reviews", "2")
    guard._warn(registry, version, "champion", long)
    assert version.description[:2000] in registry.version("reviews", "2").description


def test_an_override_is_recorded_with_its_reason(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews", tuned=(0.9, 0.6))
    move = promoted(uri, "1", override="the probe is wrong")
    registry = Registry(uri)
    assert (move.how, move.by, move.reason) == ("overridden", "ada", "the probe is wrong")
    tags = registry.version("reviews", "1").tags
    assert tags["ift.override.champion"].startswith("the probe is wrong (ada, ")
    assert "fail: probe words" in tags["ift.decision.champion"]


@pytest.mark.parametrize(
    ("alias", "words"),
    [
        ("candidate", "`candidate` is set by `ift run`"),
        ("latest", "`latest` cannot be an alias"),
        ("v3", "`v3` cannot be an alias"),
        ("the best", "`the best` cannot be an alias"),
    ],
)
def test_a_reserved_alias_is_refused(alias: str, words: str) -> None:
    with pytest.raises(IftError, match=words):
        promotion.check_alias(alias)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(uri: str, tmp_path: Path) -> None:
    check_race(uri, tmp_path)


def test_a_promotion_that_was_decided_on_another_champion_is_told(uri: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_version(uri, tmp_path / name, "reviews")
    late = decided(uri, "2")
    promoted(uri, "3")
    with pytest.raises(IftError, match="version 3 holds it now, and nobody held it before"):
        promotion.promote(Registry(uri), late.version, "champion", late, by="somebody")


def test_a_claim_whose_promotion_never_ended_does_not_block_for_ever(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    monkeypatch.setattr(promotion, "_set", lambda *_: None)  # killed behind its claim
    promoted(uri, "1")
    monkeypatch.undo()
    with pytest.raises(IftError, match="somebody else has just moved `champion`: version 1 promoted by ada"):
        promoted(uri, "1")
    monkeypatch.setattr(promotion, "_FRESH_S", 0.0)
    assert promoted(uri, "1").number == 2


def test_a_rollback_goes_back_one_version_after_the_other(uri: str, tmp_path: Path) -> None:
    for name, share in (("a", 0.8), ("b", 0.85), ("c", 0.9)):
        make_version(uri, tmp_path / name, "reviews", tuned=(share, 0.8))
        promoted(uri, str(len(list(tmp_path.glob("?")))))
    registry = Registry(uri)
    held = []
    for _ in range(2):
        held.append(promotion.rollback(registry, "reviews", "champion", by="ada")[0].number)
    assert held == [2, 1]
    with pytest.raises(IftError, match="no version held `champion` of reviews before version 1"):
        promotion.rollback(registry, "reviews", "champion", by="ada")
    moves = promotion.history(registry, "reviews", "champion")
    assert [(m.number, m.version, m.how) for m in moves[3:]] == [(4, 2, "rolled back"), (5, 1, "rolled back")]
    client = mlflow_client(uri)
    client.delete_model_version("reviews", "2")
    promoted(uri, "3")
    assert promotion.rollback(registry, "reviews", "champion", by="ada")[0].number == 1


MOVES = st.lists(st.tuples(st.sampled_from(["promoted", "set in MLflow", "rolled back"]), st.integers(1, 5)))


@given(MOVES, st.data())
def test_a_version_that_did_not_pass_was_never_one_to_go_back_to(
    steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    moves = [Move(number, version, how, "ada", 0.0) for number, (how, version) in enumerate(steps, 1)]
    place = data.draw(st.integers(0, len(moves)))
    marked = Move(0, 6, promotion.NOT_PASSED, "somebody in MLflow", 0.0)
    for held in (None, 6, *range(1, 6)):
        assert promotion.before([*moves[:place], marked, *moves[place:]], held) == promotion.before(
            moves, held
        )


def test_neither_a_rollback_nor_the_guard_goes_back_to_a_version_that_did_not_pass(
    uri: str, tmp_path: Path
) -> None:
    for name, tuned in (("a", (0.9, 0.8)), ("b", (0.9, 0.5)), ("c", (0.95, 0.8)), ("d", (0.9, 0.4))):
        make_version(uri, tmp_path / name, "reviews", tuned=tuned)
    client, registry = mlflow_client(uri), Registry(uri)
    promoted(uri, "1")
    for which in ("2", "4"):  # one after the other, and the guard only marks
        client.set_registered_model_alias("reviews", "champion", which)
        guard.look(registry, ["champion"], enforce=False, complain=pytest.fail)
    [seen] = guard.look(registry, ["champion"], enforce=True, complain=pytest.fail)
    assert (seen.version, seen.returned_to) == (4, 1)
    client.set_registered_model_alias("reviews", "champion", "2")
    guard.look(registry, ["champion"], enforce=False, complain=pytest.fail)
    assert promotion.rollback(registry, "reviews", "champion", by="ada")[0].number == 1


def test_a_rollback_beside_another_move_is_told(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        make_version(uri, tmp_path / name, "reviews")
    promoted(uri, "1")
    promoted(uri, "2")
    claim = promotion._claim

    def late(*arguments: Any, **options: Any) -> Move:
        move = claim(*arguments, **options)
        mlflow_client(uri).set_registered_model_alias("reviews", "champion", "3")
        return move

    monkeypatch.setattr(promotion, "_claim", late)
    with pytest.raises(promotion.Moved, match="version 3 holds it now, and version 2 held it before"):
        promotion.rollback(Registry(uri), "reviews", "champion", by="ada")
    assert Registry(uri).aliases("reviews")["champion"] == 3


@given(MOVES)
def test_what_held_an_alias_before_is_a_stack(steps: list[tuple[str, int]]) -> None:
    moves: list[Move] = []
    stack: list[int] = []
    for how, version in steps:
        if how == "rolled back":
            if len(stack) < 2:
                continue
            stack.pop()
            version = stack[-1]
        elif not stack or stack[-1] != version:
            stack.append(version)
        moves.append(Move(len(moves) + 1, version, how, "ada", 0.0))
    if len(set(stack)) == len(
        stack
    ):  # going back to a version that held it twice is going back to the last time
        assert promotion.before(moves, stack[-1] if stack else None) == stack[:-1][::-1]


# ── the guard ──


def test_the_guard_says_nothing_of_what_ift_has_promoted(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    promoted(uri, "1")
    assert guard.look(Registry(uri), ["champion"], enforce=True, complain=pytest.fail) == []


def test_an_alias_set_in_mlflow_on_a_good_version_is_noted(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    mlflow_client(uri).set_registered_model_alias("reviews", "champion", "1")
    [seen] = guard.look(Registry(uri), ["champion"], enforce=True, complain=pytest.fail)
    assert (seen.decision.passed, seen.taken) == (True, False)
    registry = Registry(uri)
    [move] = promotion.history(registry, "reviews", "champion")
    assert (move.version, move.how, move.by) == (1, "set in MLflow", "somebody in MLflow")
    assert registry.version("reviews", "1").tags["ift.guard.champion"].startswith("passed, ")
    assert guard.look(registry, ["champion"], enforce=True, complain=pytest.fail) == []


def test_a_version_that_did_not_pass_is_marked_once_and_keeps_the_alias(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    make_version(uri, tmp_path / "b", "reviews", tuned=(0.9, 0.5))
    promoted(uri, "1")
    mlflow_client(uri).set_registered_model_alias("reviews", "champion", "2")
    registry = Registry(uri)
    [seen] = guard.look(registry, ["champion"], enforce=False, complain=pytest.fail)
    assert (seen.version, seen.taken) == (2, False)
    version = registry.version("reviews", "@champion")
    assert version.number == 2
    assert version.tags["ift.guard.champion"].startswith("did not pass, ")
    first, _, rest = version.description.partition("\n\n")
    assert first.startswith("> ⚠ **`champion` was set here in MLflow, and this version** did not pass, ")
    assert rest.startswith("# reviews")
    assert guard.look(registry, ["champion"], enforce=False, complain=pytest.fail) == []
    [seen] = guard.look(
        registry, ["champion"], enforce=True, complain=pytest.fail
    )  # the guard was started again, stricter
    assert (seen.taken, seen.returned_to) == (True, 1)
    assert registry.version("reviews", "2").description.count("⚠") == 1


def test_with_enforce_the_alias_goes_back_each_time(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    make_version(uri, tmp_path / "b", "reviews", tuned=(0.9, 0.5))
    client, registry = mlflow_client(uri), Registry(uri)
    for _ in range(2):  # there is no champion: it is taken away
        client.set_registered_model_alias("reviews", "champion", "2")
        [seen] = guard.look(registry, ["champion"], enforce=True, complain=pytest.fail)
        assert (seen.taken, seen.returned_to) == (True, None)
        assert "champion" not in registry.aliases("reviews")
    promoted(uri, "1")
    client.set_registered_model_alias("reviews", "champion", "2")
    [seen] = guard.look(registry, ["champion"], enforce=True, complain=pytest.fail)
    assert seen.returned_to == 1
    assert registry.aliases("reviews")["champion"] == 1
    last = promotion.history(registry, "reviews", "champion")[-1]
    assert (last.version, last.how, last.by) == (1, "returned by the guard", "ift guard")
    assert last.reason.startswith("version 2 did not pass")
    assert guard.look(registry, ["champion"], enforce=True, complain=pytest.fail) == []


def test_the_guard_leaves_alone_what_is_being_promoted(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(uri, tmp_path / "a", "reviews", tuned=(0.9, 0.5))
    monkeypatch.setattr(
        promotion, "_remember", lambda *_: None
    )  # the alias is set, the move not yet written down
    promoted(uri, "1", override="because")
    monkeypatch.undo()
    assert guard.look(Registry(uri), ["champion"], enforce=True, complain=pytest.fail) == []
    assert Registry(uri).aliases("reviews")["champion"] == 1
    assert "ift.guard.champion" not in Registry(uri).version("reviews", "1").tags


@pytest.mark.parametrize("when", ["_check", "record"])
def test_a_promotion_that_ended_while_the_guard_decided_stands(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    make_version(uri, tmp_path / "b", "reviews", tuned=(0.9, 0.5))
    mlflow_client(uri).set_registered_model_alias("reviews", "champion", "2")
    registry = Registry(uri)
    decide, warn = promotion.decide, guard._warn

    def ada_promotes() -> None:
        monkeypatch.undo()
        monkeypatch.setattr(promotion, "_FRESH_S", 0.0)
        good = promotion.decide(registry, registry.version("reviews", "1"), registry.version("reviews", "2"))
        promotion.promote(registry, good.version, "champion", good, by="ada")

    def deciding(*arguments: Any, **options: Any) -> promotion.Decision:
        decision = decide(*arguments, **options)
        ada_promotes()
        return decision

    def warning(*arguments: Any) -> None:
        warn(*arguments)
        ada_promotes()

    if when == "_check":
        monkeypatch.setattr(promotion, "decide", deciding)
    else:
        monkeypatch.setattr(guard, "_warn", warning)
    seen = guard.look(registry, ["champion"], enforce=True, complain=pytest.fail)
    assert [one.taken for one in seen] == ([] if when == "_check" else [False])
    assert registry.aliases("reviews")["champion"] == 1
    assert promotion.history(registry, "reviews", "champion")[-1].by == "ada"
    assert guard.look(registry, ["champion"], enforce=True, complain=pytest.fail) == []


def artifacts(uri: str, which: str) -> Path:
    client = mlflow_client(uri)
    run_id = client.get_model_version("reviews", which).run_id
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def test_the_guard_goes_back_to_a_version_whose_files_are_there(uri: str, tmp_path: Path) -> None:
    for name, tuned in (("a", (0.9, 0.8)), ("b", (0.9, 0.8)), ("c", (0.9, 0.5))):
        make_version(uri, tmp_path / name, "reviews", tuned=tuned)
    promoted(uri, "1")
    promoted(uri, "2")
    shutil.rmtree(artifacts(uri, "2") / "model")
    mlflow_client(uri).set_registered_model_alias("reviews", "champion", "3")
    [seen] = guard.look(Registry(uri), ["champion"], enforce=True, complain=pytest.fail)
    assert seen.returned_to == 1


def test_a_version_whose_run_was_purged_has_no_files(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    registry = Registry(uri)
    purged = replace(registry.version("reviews", "1"), run_id="0" * 32)
    assert registry.files(purged) == {}
    assert registry.summary(purged) is None


BROKEN = {
    "no gate": ("model/ift.json", b'{"task": [{"name": "reviews"}], "probes": []}'),
    "no object": ("model/ift.json", b"[1]"),
    "half a file": ("model/ift.json", b'{"task": '),
    "no text": ("model/ift.json", b"\xff\xfe"),
    "half a table": ("evaluate/predictions.parquet", b"PAR1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_unclear_and_keeps_no_other_model_from_being_checked(
    uri: str, tmp_path: Path, name: str
) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    make_version(uri, tmp_path / "b", "reviews")
    promoted(uri, "1")
    path, data = BROKEN[name]
    (artifacts(uri, "2") / path).write_bytes(data)
    failed = decided(uri, "2").failed
    assert [line["verdict"] for line in failed] == ["unclear"]
    assert "cannot be read" in failed[0]["detail"] or "not as `ift run` writes them" in failed[0]["detail"]
    mlflow_client(uri).set_registered_model_alias("reviews", "champion", "2")
    [seen] = guard.look(Registry(uri), ["champion"], enforce=True, complain=pytest.fail)
    assert (seen.decision.verdict, seen.returned_to) == ("unclear", 1)


def test_a_fault_of_one_model_is_told_and_the_others_are_checked(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(uri, tmp_path / "a", "reviews", tuned=(0.9, 0.5))
    client, registry = mlflow_client(uri), Registry(uri)
    client.set_registered_model_alias("reviews", "champion", "1")
    client.create_registered_model("another", tags={"ift.history.champion": "{"})
    client.create_model_version("another", "somewhere")
    client.set_registered_model_alias("another", "champion", "1")
    wrong: list[str] = []
    [seen] = guard.look(registry, ["champion"], enforce=True, complain=wrong.append)
    assert (seen.name, seen.taken) == ("reviews", True)
    assert [what.partition(":")[0] for what in wrong] == ["another"]

    told: list[str] = []
    stop, rounds = threading.Event(), iter([False, False, True])

    def looked(*_: Any, complain: Any, **__: Any) -> list[guard.Seen]:
        complain("another: broken")
        if next(rounds):
            stop.set()
        return []

    monkeypatch.setattr(guard, "look", looked)
    guard.watch(
        registry,
        ["champion"],
        enforce=True,
        every=0.01,
        tell=pytest.fail,
        complain=told.append,
        wake=threading.Event(),
        stop=stop,
    )
    assert told == ["another: broken"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-MLflow-Signature": "v1,\xe9"}, 403),
        ({"Content-Length": "ten"}, 400),
        ({"Content-Length": "-1"}, 400),
        ({"X-MLflow-Signature": guard.signature("secret", "", "", b"")}, 204),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(headers: dict[str, str], status: int) -> None:
    wake = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), guard._listener("secret", wake))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        connection.request("POST", "/", headers={"Content-Length": "0"} | headers)
        assert connection.getresponse().status == status
        assert wake.is_set() == (status == 204)
    finally:
        server.shutdown()
        server.server_close()


# ── reading ──


def test_versions_are_found_by_number_and_alias_and_a_wrong_one_names_those_there_are(
    uri: str, tmp_path: Path
) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    registry = Registry(uri)
    assert {
        registry.named(text).number for text in ("reviews/1", "reviews@candidate", "models:/reviews/1")
    } == {1}
    with pytest.raises(
        IftError, match="`reviews` has no version `7`\n  wanted: one of 1; or an alias: candidate"
    ):
        registry.version("reviews", "7")
    with pytest.raises(IftError, match=r"there is no model `review` in MLflow(.|\n)*did you mean `reviews`"):
        registry.version("review", "1")
    with pytest.raises(IftError, match="`reviews` names no version of a model"):
        registry.named("reviews")


def test_a_model_is_pulled_whole_into_a_fresh_folder(uri: str, tmp_path: Path) -> None:
    make_version(uri, tmp_path / "a", "reviews")
    registry = Registry(uri)
    registry.pull(registry.named("reviews@candidate"), tmp_path / "out" / "model")
    names = {path.name for path in (tmp_path / "out" / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "ift.json"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    with pytest.raises(IftError, match="model is not empty"):
        registry.pull(registry.named("reviews@candidate"), tmp_path / "out" / "model")
