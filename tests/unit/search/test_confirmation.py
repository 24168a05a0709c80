"""Runs are made by hand here: scores of pairs are written where a trainer would, then the ends are reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raylg.errors import ConfigError
from raylg.evaluation.measures import HOMOGRAPHY, POSE
from raylg.evaluation.pair_scores import PairScores
from raylg.search.books import Books, Proposal, TrialEvent
from raylg.search.chosen import write_chosen
from raylg.search.config import ConfirmConfig
from raylg.search.confirmation import Confirmation
from raylg.search.finalists import fresh_seed, near_best, thresholds_of
from raylg.search.ledger import Ledger
from raylg.search.meter import Meter
from raylg.search.study import StudyDirectory, StudySetup
from raylg.search.verdict import ConfirmationResult, Contender, choose, confidence_of_look, leaving, outcome_of

Make = Callable[..., StudySetup]
Scores = Mapping[float, float]

NUM_PAIRS = 120
FILE = "confirmation.json"


def save_pairs(workdir: Path, level: float, seed: int, seed_noise: float, name: str = "pairs.npz") -> None:
    """Scores at 5 degrees around `level`, on pairs that share images; the noise of pairs is the same for all."""
    rng = np.random.default_rng(7)
    first = rng.integers(60, size=NUM_PAIRS)
    second = (first + rng.integers(1, 60, size=NUM_PAIRS)) % 60
    hardness = rng.uniform(-0.1, 0.1, size=NUM_PAIRS)
    own = np.random.default_rng((seed, int(1e6 * level)))
    ripple = own.permutation(np.tile([0.05, -0.05], NUM_PAIRS // 2))  # which leaves the mean alone
    values = np.clip(level + hardness + own.normal() * seed_noise + ripple, 0, 1)
    counts = np.zeros(NUM_PAIRS, dtype=np.int64)
    errors = (1 - values) * 5.0
    workdir.mkdir(parents=True, exist_ok=True)
    PairScores(
        kind="pose",
        indices=np.stack([counts, np.arange(NUM_PAIRS)], axis=1),
        scenes=np.array(["scene"] * NUM_PAIRS, dtype=np.str_),
        names0=first.astype(np.str_),
        names1=second.astype(np.str_),
        rotation_error=errors,
        translation_error=errors,
        corner_error=np.full(NUM_PAIRS, np.nan),
        num_matches=counts,
        num_inliers=counts,
        num_keypoints0=counts,
        num_keypoints1=counts,
        precision=np.zeros(NUM_PAIRS),
        overlap=np.zeros(NUM_PAIRS),
        precision_threshold=3.0,
    ).save(workdir / name)


def train(books: Books, proposal: Proposal, level: float, *, seed_noise: float = 0.002, speed: float = 10.0) -> None:
    seed = int(proposal.values.get("seed", 0) or 0)
    save_pairs(proposal.workdir, level, seed, seed_noise)
    score = PairScores.load(proposal.workdir / "pairs.npz").metrics("val")["val/auc@5"]
    for pairs_seen in (50, 90):
        report = {"pairs_seen": pairs_seen, "val/auc@5": score, "pairs_per_second": speed}
        if books.report(proposal.number, report).stop:
            break
    books.finish(proposal.number)


class Game:
    """A study whose trials have known levels, in the order in which they are tried; 0 is the baseline."""

    def __init__(self, make: Make, levels: list[float], *, confirm: dict[str, Any] | None = None, noise: float = 0.002):
        options = {"budget": f"{len(levels)}trials", "scheduler": {"name": "none"}}
        self.setup = make(study={**options, "confirm": {"min_seeds": 2, "max_seeds": 4, **(confirm or {})}})
        self.noise = noise
        self.levels = dict(enumerate(levels))
        self.speeds: dict[int, float] = {}
        self.events: list[TrialEvent] = []
        self.directory = StudyDirectory(self.setup)
        ledger = Ledger(self.directory, self.events.append)
        while ledger.num_remaining:
            proposal = take(ledger)
            train(ledger, proposal, levels[proposal.number], seed_noise=0.0005, speed=self.speed(proposal.number))
        self.events.clear()

    def speed(self, number: int) -> float:
        return self.speeds.get(number, 10.0)

    def open(self, meter: Meter | None = None) -> Confirmation:
        return Confirmation(self.directory, self.events.append, meter)

    def run(self, confirmation: Confirmation, most: int = 1000) -> list[Proposal]:
        made: list[Proposal] = []
        while confirmation.num_remaining and len(made) < most:
            proposal = take(confirmation)
            made.append(proposal)
            trial = proposal.number % 10_000
            train(confirmation, proposal, self.levels[trial], seed_noise=self.noise, speed=self.speed(trial))
        return made

    def finish(self) -> ConfirmationResult:
        confirmation = self.open()
        self.run(confirmation)
        assert confirmation.result is not None and confirmation.result.finished
        return confirmation.result

    @property
    def stored(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.directory.path / "confirm" / FILE).read_text())
        return content


def take(books: Books) -> Proposal:
    proposal = books.next_trial()
    assert proposal is not None
    return proposal


def test_a_clear_winner_is_better_after_few_seeds(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.2, 0.6, 0.3])
    result = game.finish()
    assert (result.outcome, result.chosen) == ("better", 2)
    (winner,) = result.finalists
    assert winner.low is not None and winner.high is not None and winner.difference is not None
    assert 0.1 < winner.low < 0.2 < winner.high < 0.3
    assert winner.difference == pytest.approx(0.2, abs=0.02)
    assert len(result.seeds) == len(winner.per_seed) >= 2
    assert result.sentence == (
        f"trial 2 is better: {100 * winner.difference:+.1f} [{100 * winner.low:+.1f}, {100 * winner.high:+.1f}] AUC@5 "
        f"over the baseline ({len(result.seeds)} fresh seeds, 120 validation pairs)"
    )
    assert ConfirmationResult.load(game.directory.path / "confirm" / FILE) == result


def test_fresh_seeds_are_new_shared_and_in_the_configuration(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    confirmation = game.open()
    made = game.run(confirmation)
    seeds = {proposal.values["seed"] for proposal in made}
    assert 0 not in seeds
    assert len({seed for seed in seeds}) * 2 == len(made)
    assert {p.workdir.name for p in made[:4]} == {"0000-seed-1", "0001-seed-1", "0000-seed-2", "0001-seed-2"}
    for proposal in made:
        assert yaml.safe_load((proposal.workdir / "config.yaml").read_text())["seed"] == proposal.values["seed"]
    assert game.stored["plan"]["seeds"] == [
        fresh_seed(k, sampler_seed=0, run_seed=0, used=frozenset({0})) for k in (1, 2, 3, 4)
    ]
    assert [event.seed_number for event in game.events if event.kind == "finished"][:4] == [1, 1, 2, 2]
    assert {event.kind for event in game.events} == {"started", "reported", "finished"}


def test_nothing_better_is_said_and_the_baseline_stays(make_setup: Make) -> None:
    game = Game(make_setup, [0.5, 0.501, 0.499], noise=0.03)
    result = game.finish()
    assert (result.outcome, result.chosen) == ("no difference", 0)
    assert result.sentence.startswith("no difference: at best ")
    assert result.sentence.endswith("the baseline stays")
    assert result.baseline is not None and result.baseline.score is not None


def test_a_tie_goes_to_whoever_trains_clearly_faster(make_setup: Make) -> None:
    game = Game(make_setup, [0.5, 0.501, 0.5005], noise=0.03, confirm={"max_seeds": 2, "budget_share": 0.9})
    game.speeds = {0: 10.0, 1: 10.5, 2: 20.0}
    result = game.finish()
    assert {each.number for each in result.finalists} == {1, 2}
    assert (result.outcome, result.chosen) == ("no difference", 2)
    assert "trial 2 is chosen, because it trains faster" in result.sentence


def test_the_best_trial_may_turn_out_worse(make_setup: Make) -> None:
    game = Game(make_setup, [0.5, 0.6])
    game.levels[1] = 0.4  # it was luck
    result = game.finish()
    assert (result.outcome, result.chosen) == ("worse", 0)
    assert result.finalists[0].reason.startswith("worse than the baseline after 2 seeds")


def test_who_is_clearly_behind_leaves(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6, 0.6005, 0.6, 0.2], confirm={"budget_share": 0.9, "min_seeds": 3})
    game.levels[2] = 0.401  # no better than the baseline
    confirmation = game.open()
    made = game.run(confirmation)
    assert confirmation.result is not None
    behind = next(each for each in confirmation.result.finalists if each.number == 2)
    assert "worse than trial" in behind.reason
    assert "0002-seed-4" not in {proposal.workdir.name for proposal in made}
    assert confirmation.result.chosen in (1, 3)


def test_killed_confirmation_goes_on_and_ends_alike(make_setup: Make) -> None:
    whole = Game(make_setup, [0.4, 0.45, 0.6])
    expected = whole.finish()
    runs = whole.stored["runs"]
    whole.directory.close()
    (whole.directory.path / "confirm" / FILE).unlink()
    for _ in range(60):  # a session that ends after each run, in the middle of the next
        directory = StudyDirectory(whole.setup)
        whole.directory = directory
        confirmation = whole.open()
        whole.run(confirmation, most=1)
        if confirmation.num_remaining:
            proposal = take(confirmation)
            confirmation.report(proposal.number, {"pairs_seen": 50, "val/auc@5": 0.1})
        directory.close()
        if not confirmation.num_remaining:
            break
    assert confirmation.result == expected
    assert whole.stored["runs"] == runs
    assert [event.kind for event in whole.events].count("resumed") >= 2


def test_run_whose_process_never_began_is_handed_out_again(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    confirmation = game.open()
    first = take(confirmation)
    confirmation.put_back(first.number, "its process was killed before it began")
    assert take(confirmation) == first
    assert game.stored["runs"][first.workdir.name]["num_failures"] == 1
    assert [event.kind for event in game.events] == ["started", "retried", "resumed"]


def test_finished_confirmation_is_not_repeated(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    result = game.finish()
    before = game.stored
    game.events.clear()
    again = game.open()
    assert again.num_remaining == 0
    assert again.next_trial() is None
    assert again.result == result
    assert game.stored == before
    assert not game.events


def test_search_that_went_on_is_confirmed_anew_and_keeps_its_runs(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    game.finish()
    before = game.stored
    setup = make_setup(
        study={"budget": "3trials", "scheduler": {"name": "none"}, "confirm": {"min_seeds": 2, "max_seeds": 4}}
    )
    game.directory.close()
    game.directory, game.levels[2] = StudyDirectory(setup), 0.7
    ledger = Ledger(game.directory, game.events.append)
    train(ledger, take(ledger), 0.7)
    confirmation = game.open()
    made = game.run(confirmation)
    assert confirmation.result is not None and confirmation.result.chosen == 2
    assert not {proposal.workdir.name for proposal in made} & before["runs"].keys()
    assert game.stored["plan"]["seeds"] == before["plan"]["seeds"]


@pytest.mark.parametrize("end", ["infeasible", "failed", "short", "unscored", "nan"])
def test_finalist_that_cannot_be_trained_leaves(make_setup: Make, end: str) -> None:
    game = Game(make_setup, [0.4, 0.6, 0.6002], confirm={"max_finalists": 2, "budget_share": 0.9})
    confirmation = game.open()
    failed = 0
    while confirmation.num_remaining:
        proposal = take(confirmation)
        trial = proposal.number % 10_000
        if trial != 1:
            train(confirmation, proposal, game.levels[trial])
            continue
        failed += 1
        if end == "infeasible":
            confirmation.infeasible(proposal.number, "out_of_memory: batch of 16")
        elif end == "failed":
            confirmation.retried(proposal.number, "its process was killed")
            confirmation.fail(proposal.number, "its process was killed")
        elif end == "nan":
            assert confirmation.report(proposal.number, {"pairs_seen": 50, "val/auc@5": float("nan")}).stop
            confirmation.finish(proposal.number)
        else:
            confirmation.report(proposal.number, {"pairs_seen": 90 if end == "unscored" else 50, "val/auc@5": 0.5})
            confirmation.finish(proposal.number)
    assert failed == 1
    result = confirmation.result
    assert result is not None and (result.outcome, result.chosen) == ("better", 2)
    (left,) = (each for each in result.finalists if each.number == 1)
    assert left.difference is None
    expected = {"infeasible": "out_of_memory", "failed": "killed", "short": "ended after 50 of 90 pairs"}
    assert expected.get(end, "pairs.npz" if end == "unscored" else "diverged") in left.reason
    assert result.finalists[-1] == left


def test_without_a_baseline_there_is_no_verdict(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    confirmation = game.open()
    first = [take(confirmation), take(confirmation)]
    (baseline,) = (p for p in first if p.number % 10_000 == 0)
    (other,) = (p for p in first if p.number % 10_000 == 1)
    confirmation.infeasible(baseline.number, "out_of_memory: batch of 16")
    assert confirmation.num_remaining == 0
    assert confirmation.report(other.number, {"pairs_seen": 50, "val/auc@5": 0.5}).stop
    confirmation.finish(other.number)
    result = confirmation.result
    assert result is not None and (result.outcome, result.chosen) == ("no verdict", None)
    assert result.sentence == "no verdict: the baseline could not be trained (seed 1: out_of_memory: batch of 16)"
    assert game.stored["runs"]["0001-seed-1"]["state"] == "stopped"
    best = write_chosen(game.directory, result)
    assert best is not None and yaml.safe_load(best.read_text())["seed"] == 0


def test_runs_that_need_not_go_on_after_a_kill_are_ended(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6, 0.6002], confirm={"max_finalists": 2, "budget_share": 0.9})
    confirmation = game.open()
    runs = {proposal.workdir.name: proposal.number for proposal in (take(confirmation) for _ in range(6))}
    confirmation.infeasible(runs["0001-seed-1"], "out_of_memory: batch of 16")
    again = game.open()  # before anybody could stop the second run of trial 1
    game.run(again)
    assert again.result is not None and again.result.finished
    stopped = game.stored["runs"]["0001-seed-2"]
    assert (stopped["state"], stopped["reason"]) == ("stopped", "seed 1: out_of_memory: batch of 16")
    assert {run["state"] for run in game.stored["runs"].values()} == {"complete", "infeasible", "stopped"}


def test_without_finalists_nothing_is_trained(make_setup: Make) -> None:
    game = Game(make_setup, [0.6, 0.3])
    confirmation = game.open()
    assert confirmation.num_remaining == 0
    result = confirmation.result
    assert result is not None and (result.outcome, result.chosen) == ("no difference", 0)
    assert "the baseline stays" in result.sentence


def test_all_finalists_fail(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    confirmation = game.open()
    while confirmation.num_remaining:
        proposal = take(confirmation)
        if proposal.number % 10_000:
            confirmation.fail(proposal.number, "a bug")
        else:
            train(confirmation, proposal, 0.4)
    assert confirmation.result is not None
    assert confirmation.result.sentence == "no verdict: trial 1, seed 1: a bug"
    assert confirmation.result.chosen == 0
    best = write_chosen(game.directory, confirmation.result)
    assert best is not None
    config = yaml.safe_load(best.read_text())
    assert (config["seed"], config["optim"]["lr"]) == (0, 1e-3)
    assert ", confirmed" not in best.read_text()


def test_budget_of_trials_limits_pairs_and_finalists(make_setup: Make) -> None:
    levels = [0.4, 0.6, 0.6001, 0.6002, 0.6003]
    game = Game(make_setup, levels, noise=0.0001)
    result = game.finish()
    # The search has trained 5 x 90 pairs and the confirmation may take as many: two configurations with two seeds.
    (finalist,) = result.finalists
    assert {finalist.number, *result.left_out} == {1, 2, 3, 4}
    assert result.reason == "after 2 seeds, the budget leaves no room for another"
    assert game.stored["looks"][0]["confidence"] == pytest.approx(0.95)


def test_budget_of_time_begins_no_further_seed(make_setup: Make, tmp_path: Path) -> None:
    game = Game(make_setup, [0.5, 0.5001], noise=0.05)
    now = [0.0]
    meter = Meter(tmp_path / "spent.json", make_setup(study={"budget": "100s"}).study.limits, clock=lambda: now[0])
    confirmation = game.open(meter)
    first, second = take(confirmation), take(confirmation)
    now[0] = 101.0
    train(confirmation, first, 0.5)
    assert confirmation.next_trial() is None
    train(confirmation, second, 0.5)
    assert confirmation.num_remaining == 0
    assert confirmation.result is not None
    assert confirmation.result.sentence == (
        "no verdict: budget 100s used up after one fresh seed, which does not tell how seeds vary"
    )


def test_best_yaml_is_the_chosen_configuration(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    before = game.directory.write_best()
    assert before is not None
    unconfirmed = before.read_text()
    result = game.finish()
    path = write_chosen(game.directory, result)
    assert path == before
    text = path.read_text()
    config = yaml.safe_load(text)
    trial = yaml.safe_load((game.directory.path / "confirm" / "0001-seed-1" / "config.yaml").read_text())
    assert config == trial
    assert config["seed"] == result.seeds[0]
    run = PairScores.load(game.directory.path / "confirm" / "0001-seed-1" / "pairs.npz")
    assert f"val/auc@5 = {run.metrics('val')['val/auc@5']:.4f}" in text
    assert result.sentence in text
    assert "protocol p" in text
    assert "not confirmed on fresh seeds" in unconfirmed
    assert "not confirmed" not in text


def test_finalists_are_those_the_pairs_cannot_tell_from_the_best(make_setup: Make) -> None:
    game = Game(make_setup, [0.3, 0.6, 0.6003, 0.55, 0.6006])
    ranked = [record.number for record in game.directory.table()]
    assert near_best(game.directory) == ranked[:3]
    assert set(ranked[:3]) == {1, 2, 4}
    (game.directory.trial_dir(2) / "pairs.npz").unlink()
    with pytest.raises(ConfigError, match=r"0002/pairs\.npz"):
        near_best(game.directory)


def test_broken_record_is_refused(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    game.finish()
    path = game.directory.path / "confirm" / FILE
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a confirmation"):
        game.open()
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        game.open()


def test_thresholds_of_objectives() -> None:
    assert thresholds_of("val/auc@5", POSE) == (5.0,)
    assert thresholds_of("val/corner_auc@3", HOMOGRAPHY) == (3.0,)
    assert thresholds_of("val/mean_auc", HOMOGRAPHY) == (1.0, 3.0, 5.0)


def test_fresh_seeds_avoid_used_ones() -> None:
    seed = fresh_seed(1, sampler_seed=0, run_seed=0, used=frozenset())
    other = fresh_seed(1, sampler_seed=0, run_seed=0, used=frozenset({seed}))
    assert other != seed
    assert fresh_seed(2, sampler_seed=0, run_seed=0, used=frozenset()) != seed
    assert fresh_seed(1, sampler_seed=1, run_seed=0, used=frozenset()) != seed


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
def test_error_of_all_looks_adds_up(looks: int) -> None:
    options = ConfirmConfig(min_seeds=2, max_seeds=1 + looks, confidence=0.95)
    early = [confidence_of_look(options, before, is_last=False) for before in range(looks - 1)]
    last = confidence_of_look(options, looks - 1, is_last=True)
    assert sum(1 - each for each in early) + 1 - last == pytest.approx(0.05)
    assert last < 0.98


def contender(number: int, low: float, high: float, seconds: float | None = 1.0) -> Contender:
    return Contender(
        number=number,
        values={},
        per_seed=(0.5, 0.5),
        seconds=seconds,
        difference=(low + high) / 2,
        low=low,
        high=high,
        verdict="better" if low > 0 else "worse" if high < 0 else "no difference",
    )


def test_choice() -> None:
    baseline = Contender(number=0, values={}, per_seed=(0.5,), seconds=1.0)
    assert choose(baseline, [contender(1, 0.01, 0.03), contender(2, 0.02, 0.08), contender(3, -0.1, 0.5)]) == 2
    assert choose(baseline, [contender(1, -0.1, 0.1, 0.95), contender(2, -0.9, -0.1, 0.1)]) == 0
    assert choose(baseline, [contender(1, -0.1, 0.1, 0.8), contender(2, -0.1, 0.1, 0.7)]) == 2
    assert choose(baseline, [contender(1, -0.1, 0.1, None)]) == 0
    assert outcome_of([contender(1, -0.2, -0.1), contender(2, -0.1, 0.1)]) == "no difference"
    assert outcome_of([contender(1, -0.2, -0.1), contender(2, -0.3, -0.1)]) == "worse"
    assert leaving([contender(1, 0.1, 0.2), contender(2, -0.1, 0.05), contender(3, 0.0, 0.15)]).keys() == {2}


def with_budget(game: Game, make: Make, *words: str) -> None:
    """Close the study and open it with another budget."""
    game.directory.close()
    options = {"budget": words, "scheduler": {"name": "none"}, "confirm": {"min_seeds": 2, "max_seeds": 4}}
    game.directory = StudyDirectory(make(study=options))


def test_budget_that_grew_continues_an_undecided_confirmation(make_setup: Make) -> None:
    game = Game(make_setup, [0.5, 0.501], noise=0.05)
    now = [0.0]

    def open_confirmation() -> Confirmation:
        limits = game.directory.setup.study.limits
        return game.open(Meter(game.directory.path / "spent.json", limits, clock=lambda: now[0]))

    (game.directory.path / "spent.json").unlink()
    with_budget(game, make_setup, "2trials", "100s")
    confirmation = open_confirmation()
    first = take(confirmation)
    now[0] = 101.0
    train(confirmation, first, 0.5)
    game.run(confirmation)
    assert confirmation.result is not None and confirmation.result.outcome == "no verdict"
    confirmation.close()
    assert open_confirmation().result == confirmation.result, "the same budget"
    with_budget(game, make_setup, "2trials", "50s")
    assert open_confirmation().result == confirmation.result, "a smaller one"
    with_budget(game, make_setup, "2trials", "1000s")
    confirmation = open_confirmation()
    made = game.run(confirmation)
    assert confirmation.result is not None and confirmation.result.finished
    assert confirmation.result.outcome == "no difference"
    assert {proposal.workdir.name for proposal in made}.isdisjoint({"0000-seed-1", "0001-seed-1"})
    assert len(confirmation.result.seeds) == 4
    with_budget(game, make_setup, "2trials", "2000s")
    assert open_confirmation().result == confirmation.result, "all seeds have been used"


def test_decided_confirmation_is_not_repeated_with_more_budget(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    result = game.finish()
    assert result.outcome == "better" and len(result.seeds) < 4
    with_budget(game, make_setup, "2trials", "10h")
    assert game.open().result == result


def test_pairs_of_earlier_seeds_do_not_shrink_a_grown_budget(make_setup: Make) -> None:
    game = Game(make_setup, [0.5, 0.501, 0.502], noise=0.05)
    (game.directory.path / "spent.json").write_text('{"seconds": 100, "gpu_hours": 0}')
    with_budget(game, make_setup, "3trials", "110s")  # 270 pairs in 100 s, so 27 more
    first = game.open()
    assert game_plan(first) == pytest.approx(27, rel=0.2)
    run = take(first)
    train(first, run, 0.5)  # 90 pairs all the same
    first.close()
    (game.directory.path / "spent.json").write_text('{"seconds": 120, "gpu_hours": 0}')
    with_budget(game, make_setup, "3trials", "240s")
    first = Confirmation(game.directory, game.events.append)
    game.run(first)
    first.close()
    path = game.directory.path / "confirm" / FILE
    stored = json.loads(path.read_text())
    stored["plan"]["considered"] = [0]  # the search has gone on since
    pairs = sum(each["pairs_seen"] for each in stored["runs"].values())
    path.write_text(json.dumps(stored))
    (game.directory.path / "spent.json").write_text('{"seconds": 200, "gpu_hours": 0}')
    with_budget(game, make_setup, "3trials", "400s")
    assert game_plan(game.open()) == pytest.approx(pairs + 270 + pairs, rel=0.2)  # as long again, and what there is


def game_plan(confirmation: Confirmation) -> float:
    return confirmation._plan.max_pairs


def test_no_seed_begins_when_the_search_has_used_up_the_budget(make_setup: Make) -> None:
    game = Game(make_setup, [0.4, 0.6])
    (game.directory.path / "spent.json").write_text('{"seconds": 120, "gpu_hours": 0}')
    with_budget(game, make_setup, "2trials", "100s")
    confirmation = game.open()
    assert confirmation.num_remaining == 0
    assert confirmation.next_trial() is None
    assert confirmation.result is not None
    assert confirmation.result.sentence == "no verdict: budget 100s used up before the first fresh seed"
    best = write_chosen(game.directory, confirmation.result)
    assert best is not None and "not confirmed" in best.read_text()


def test_who_left_behind_another_is_not_chosen() -> None:
    baseline = Contender(number=0, values={}, per_seed=(0.5,), seconds=1.0)
    left = replace(contender(1, 0.04, 0.06), reason="worse than trial 2 after 3 seeds")  # trial 2 has sunk since
    assert choose(baseline, [left, contender(2, 0.03, 0.05)]) == 2
    assert choose(baseline, [left]) == 1
