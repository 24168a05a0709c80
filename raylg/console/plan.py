"""What a study will take, measured and shown before it starts: `tune --plan`, and one line of every `tune`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from raylg.config import Config
from raylg.console.terminal import table
from raylg.console.tune_input import study_path
from raylg.errors import ConfigError, OutOfMemory

if TYPE_CHECKING:
    from raylg.cluster.resources import Resources
    from raylg.cluster.session import RaySession
    from raylg.search.cost import CostModel
    from raylg.search.plan import Plan, Quantiles
    from raylg.search.space import SearchSpace
    from raylg.training.probe import Probed

FILE = "plan.json"
_PROBE_S = 15.0
_FIGURE_S = 0.1
_DISK_BYTES_S = 2e8
_LAUNCH_S = 5.0
"""Until the processes of Ray Tune run."""
_WORKER_GROUP_S = 15.0
"""Until the processes of a worker group have started and joined."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is known before a study starts."""

    cost: CostModel
    plan: Plan


def estimate(loaded: Config, space: SearchSpace, available: Resources, joined: bool) -> Estimate:
    """Measure, and play the study.

    Args:
        loaded: of the study.
        space: validated.
        available: cores and GPUs of this machine or of the cluster.
        joined: there is a session with a cluster of other machines, which is where trials run.

    Raises:
        ConfigError: the baseline does not fit the memory of a worker.
        EnvironmentUnfitError: the probe was killed.
    """
    from raylg.cluster.resources import worker_resources
    from raylg.search.plan import Capacity, make_plan

    scale = loaded.scale
    worker = worker_resources(scale, available)
    concurrent = loaded.study.max_concurrent_trials or available.capacity_for(worker * scale.num_workers)
    cost = measure(loaded, space, worker, joined)
    capacity = Capacity(concurrent=max(1, concurrent), gpus_per_trial=worker.gpus * scale.num_workers)
    return Estimate(cost=cost, plan=make_plan(loaded.study, space, loaded.run, cost, capacity))


def show(loaded: Config, space: SearchSpace, out: Console) -> None:
    """Measure and print all of the estimate; on a cluster that is joined, in a task of it. Errors as of `estimate`."""
    from raylg.cluster.resources import joins_cluster, this_machine

    if joins_cluster(loaded.scale):
        from raylg.cluster.session import RaySession

        with tempfile.TemporaryDirectory() as folder, RaySession(loaded.scale, Path(folder) / "ray.log") as session:
            found = estimate(loaded, space, session.resources, joined=True)
    else:
        found = estimate(loaded, space, this_machine(), joined=False)
    out.print(plan_table(found.plan, f"plan of {study_path(loaded)}: nothing was started"))
    for line in plan_lines(found, loaded):
        out.print(line)


def expect(loaded: Config, space: SearchSpace, session: RaySession, out: Console) -> CostModel:
    """What the trials of the study that is open cost: as measured when it began, else measured, kept and told now.

    Errors as of `estimate`.
    """
    from raylg.cluster.resources import joins_cluster

    path = study_path(loaded)
    cost = load_cost(path)
    if cost is None:
        found = estimate(loaded, space, session.resources, joined=joins_cluster(loaded.scale))
        save(found, path)
        out.print(headline(found.plan))
        cost = found.cost
    return cost


def measure(loaded: Config, space: SearchSpace, worker: Resources, joined: bool) -> CostModel:
    """Time steps and pairs of what the space spans; arguments and errors as of `estimate`."""
    from raylg.processes import apart
    from raylg.search.plan import spanned
    from raylg.training.objective import kind_of_pairs
    from raylg.training.probe import ProbeJob, cells, probe_here

    run, workers = loaded.run, loaded.scale.num_workers
    configurations = spanned(space, run)
    batches, keypoints = cells(
        [-(-each.data.batch_size // workers) for each in configurations],
        [each.data.num_keypoints for each in configurations],
    )
    job = ProbeJob(
        run=configurations[0],
        batches=batches,
        keypoints=keypoints,
        kind=kind_of_pairs(run),
        seconds=_PROBE_S,
        uses_gpu=worker.gpus > 0,
    )
    try:
        if joined:
            from raylg.cluster.probing import probe_on_worker

            probed = probe_on_worker(job, worker)
        else:
            probed = apart(probe_here, job)
    except OutOfMemory as error:
        raise ConfigError(f"search space {space.name}: {error}; search fewer data.num_keypoints") from error
    return _cost_of(probed, configurations[0])


def load_cost(study: Path) -> CostModel | None:
    """What was measured when a study began; None where it was not, or by another version."""
    from raylg.search.cost import CostModel

    try:
        return CostModel.from_mapping(json.loads((study / FILE).read_text())["cost"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def save(found: Estimate, study: Path) -> None:
    """Write ``plan.json`` of a study."""
    from raylg.data.manifest import write_text_atomically

    content = {"cost": found.cost.to_mapping(), "plan": found.plan.to_mapping()}
    write_text_atomically(study / FILE, json.dumps(content, indent=1))


def headline(plan: Plan) -> str:
    """The estimate in one line."""
    low, high = _duration(plan.total_s.p10), _duration(plan.total_s.p90)
    spread = f" (8 in 10 take {low} to {high})" if low != high else ""
    line = f"expected: {_count(plan.trials)} trials, {_count(plan.pairs)} pairs, {_duration(plan.total_s.p50)}{spread}"
    return f"{line}, {_bytes(plan.disk_bytes.p50)} of checkpoints"


def plan_table(plan: Plan, title: str) -> Table:
    """All of the estimate; columns are the tenth, the half and the ninetieth percentile."""
    result = table(title, ["", "1 in 10 below", "median", "1 in 10 above"])

    def row(name: str, values: Quantiles, shown: Any) -> None:
        result.add_row(name, *(shown(value) for value in (values.p10, values.p50, values.p90)))

    row("trials", plan.trials, _number)
    *rungs, full = plan.reached.items()
    for pairs, reached in rungs:
        row(f"  that reach {int(pairs):,} pairs", reached, _number)
    row(f"  that reach all {int(full[0]):,} pairs", full[1], _number)
    row("pairs trained", plan.pairs, _number)
    row("search", plan.search_s, _duration)
    row("confirmation", plan.confirm_s, _duration)
    row("in all", plan.total_s, _duration)
    if plan.gpu_hours.p90 > 0:
        row("GPU-hours", plan.gpu_hours, lambda value: f"{value:,.1f}")
    row("checkpoints", plan.disk_bytes, _bytes)
    return result


def plan_lines(found: Estimate, loaded: Config) -> Iterator[str]:
    """What the estimate rests on, and what else there is to know."""
    cost, plan, run = found.cost, found.plan, loaded.run
    share, keypoints = run.data.batch_size / cost.num_workers, run.data.num_keypoints
    speed = share / cost.step.seconds(share, keypoints)
    yield (
        f"step of B pairs with k keypoints on {cost.device}: {cost.step.formula}; "
        f"B = {share:g}, k = {keypoints}: {speed:.3g} pairs/s a worker"
    )
    yield f"{plan.concurrent} trial(s) at a time, {cost.num_workers} worker(s) each"
    for reason in plan.too_large:
        yield f"never sampled: {reason}"
    yield from _data_lines(loaded, plan)


def _data_lines(loaded: Config, plan: Plan) -> Iterator[str]:
    from raylg.data.manifest import MANIFEST_NAME, read_manifest
    from raylg.data.storage import Storage
    from raylg.training.features import features_location

    run = loaded.run
    storage = Storage(features_location(run), run.data.storage)
    if not storage.exists(MANIFEST_NAME):
        yield f"features: not made yet ({storage.url}); the time and the room they take come on top"
        return
    manifest = read_manifest(storage)
    size = sum(entry.bytes for entry in manifest.shards if entry.split in ("train", "val"))
    yield f"features: {_bytes(size)}, in {storage.url}"
    if storage.local is not None:
        return
    if size <= run.data.storage.cache_gb * 1e9:
        yield f"traffic: {_bytes(size)} from {storage.url} to each machine, once (data.cache_dir keeps them)"
        return
    epochs = plan.pairs.p50 / manifest.splits["train"].num_pairs
    yield (
        f"traffic: about {_bytes(size * max(1.0, epochs))} from {storage.url}, as data.storage.cache_gb = "
        f"{run.data.storage.cache_gb:g} does not hold the {_bytes(size)} of the data set; raise it"
    )


def _cost_of(probed: Probed, run: Any) -> CostModel:
    from raylg.search.cost import CostModel, fit_step_cost

    step = fit_step_cost([(each.num_pairs, each.num_keypoints, each.seconds) for each in probed.steps])
    scale, protocol = run.scale, run.evaluation
    inline = scale.num_workers == 1 and scale.executor != "ray_train"
    pose_s = probed.pose_s / min(protocol.num_threads, scale.cpus_per_worker)
    return CostModel(
        device=probed.device,
        step=step,
        num_workers=scale.num_workers,
        pair_bytes=tuple(sorted(probed.pair_bytes.items())),
        held_bytes=probed.held_bytes,
        weights_bytes=probed.weights_bytes,
        memory_bytes=probed.memory_bytes,
        score_s=probed.match_s + pose_s,
        num_scored=_num_scored(run),
        report_s=run.train.num_figures * _FIGURE_S + (probed.held_bytes + probed.weights_bytes) / _DISK_BYTES_S,
        start_s=probed.start_s + (0.0 if inline else _WORKER_GROUP_S),
        launch_s=_LAUNCH_S,
        too_large=probed.too_large,
        architecture=(run.model.matcher.num_layers, run.model.matcher.descriptor_dim),
    )


def _num_scored(run: Any) -> tuple[int, int]:
    """Pairs scored at a report before the last and at the last, in pairs of the validation.

    Pairs of a benchmark count by their keypoints, in proportion.
    """
    from raylg.data.manifest import MANIFEST_NAME, read_manifest
    from raylg.data.storage import Storage
    from raylg.training.features import features_location

    storage = Storage(features_location(run), run.data.storage)
    protocol = run.evaluation
    counts = read_manifest(storage).splits.get("val") if storage.exists(MANIFEST_NAME) else None
    most = run.data.max_pairs_per_scene if counts is None else counts.num_pairs
    groups = [(_least(most, protocol.max_pairs), protocol.rung_pairs, 1.0)]
    for name in protocol.benchmarks:
        benchmark = run.benchmarks.named(name)
        weight = benchmark.num_keypoints / protocol.num_keypoints
        groups.append((_least(1500, benchmark.max_pairs), benchmark.rung_pairs, weight))
    rung = sum(weight * _least(final, limit) for final, limit, weight in groups)
    return round(rung), round(sum(weight * final for final, _, weight in groups))


def _least(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _count(values: Quantiles) -> str:
    low, high = _number(values.p10), _number(values.p90)
    return low if low == high else f"{low} to {high}"
