"""What decides the scores of a study beside its configuration, as hashes that it records."""

from __future__ import annotations

from raylg.data.stream import PairData, evaluation_indices
from raylg.evaluation.benchmarks import check_pixels, protocol_hash, rung_indices
from raylg.evaluation.config import EvaluationConfig
from raylg.training.benchmarks import benchmark_protocol, open_benchmark
from raylg.training.config import RunConfig
from raylg.training.features import open_split
from raylg.training.start import start_hash


def protocol_hashes(config: RunConfig) -> dict[str, str]:
    """What decides the scores of a study beside its configuration.

    Returns:
        ``data``, ``protocol``, and one per benchmark; where reports before the last score fewer pairs also ``rungs``
            and ``<benchmark> rungs``, because these are scores of another protocol; ``start`` where the run starts
            from weights in a file.

    Raises:
        ConfigError: the pairs cannot be scored, see `open_split`, `open_benchmark` and `check_pixels`.
        ShardError: no shards there.
    """

    def hashed(dataset: PairData, evaluation: EvaluationConfig, name: str, rungs: str) -> dict[str, str]:
        scored = evaluation_indices(dataset, evaluation.max_pairs)
        indices = {name: scored}
        if evaluation.rung_pairs is not None:
            indices[rungs] = rung_indices(scored, evaluation.rung_pairs)
        return {
            key: protocol_hash(
                evaluation,
                data_hash=dataset.data_hash,
                indices=pairs,
                matcher=config.model.matcher,
                num_keypoints=evaluation.num_keypoints,
            )
            for key, pairs in indices.items()
        }

    validation = open_split(config, "val")
    check_pixels(validation, config.evaluation)
    hashes = {"data": validation.data_hash, **hashed(validation, config.evaluation, "protocol", "rungs")}
    for name in config.evaluation.benchmarks:
        hashes |= hashed(open_benchmark(config, name), benchmark_protocol(config, name), name, f"{name} rungs")
    start = start_hash(config)
    return hashes if start is None else {**hashes, "start": start[:12]}
