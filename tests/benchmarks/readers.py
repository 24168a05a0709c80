"""Readers of `from_bucket.py`.

Each takes a bucket, a folder for its cache, a rank and the number of ranks, and gives the number of pairs in each batch
of one epoch. Importing and connecting come before the iterator is handed out, and are not measured.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

BATCH = 32
REQUESTS = 4
"""At a time, for every reader that can be told."""


def raw(bucket: str, cache: Path, rank: int, ranks: int) -> Iterator[int]:
    """GET of every shard of raylg, thrown away: what the server and a plain client can do."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=REQUESTS, s3={"addressing_style": "path"}))
    pages = client.list_objects_v2(Bucket=bucket, Prefix="raylg/shard")["Contents"]
    keys = [page["Key"] for page in pages][rank::ranks]

    def get(key: str) -> int:
        return len(client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def batches() -> Iterator[int]:
        with ThreadPoolExecutor(REQUESTS) as threads:
            assert all(threads.map(get, keys))
        yield 0

    return batches()


def raylg(bucket: str, cache: Path, rank: int, ranks: int) -> Iterator[int]:
    """Verified, shuffled over 8 open shards, through the node's cache, which the ranks share."""
    from raylg.data.config import DataConfig, StorageConfig
    from raylg.data.dataset import PairDataset
    from raylg.data.reader import ShardReader
    from raylg.data.stream import stream_batches

    url = f"s3://{bucket}/raylg"
    config = DataConfig(
        source="shards",
        path=(url,),
        cache_dir=str(cache),
        batch_size=BATCH * ranks,
        storage=StorageConfig(parallel_reads=REQUESTS),
    )
    reader = ShardReader.open(url, config)
    dataset = PairDataset(reader, "train", num_pairs_and_keypoints()[1], config.open_shards)

    def batches() -> Iterator[int]:
        stream = stream_batches(dataset, config, 0, rank, ranks, start_pairs=0)
        for batch in itertools.islice(stream, dataset.num_pairs // config.batch_size):
            assert batch.view0.descriptors.dtype == torch.float32
            yield len(batch)
        stream.close()

    return batches()


def webdataset(bucket: str, cache: Path, rank: int, ranks: int) -> Iterator[int]:
    """Tar files over signed URLs with curl, its shuffle buffer, its cache of files, two worker processes."""
    import boto3
    import webdataset as wds
    from webdataset.cache import FileCache
    from webdataset.filters import pipelinefilter
    from webdataset.tariterators import group_by_keys, tar_file_expander

    client = boto3.client("s3")
    pages = client.list_objects_v2(Bucket=bucket, Prefix="tar/")["Contents"]
    urls = [client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": p["Key"]}) for p in pages]
    names = [(page["Key"], f"{k:05d}.tar") for k, page in enumerate(pages)]

    def cached_as(url: str) -> str:  # signed URLs differ between processes; wds.WebDataset passes no such name on
        return next(name for key, name in names if key in url)

    dataset = wds.DataPipeline(
        wds.SimpleShardList([f"pipe:curl -s -f '{url}'" for url in urls[rank::ranks]]),
        wds.shuffle(len(urls), seed=0),
        wds.split_by_worker,
        FileCache(cache_dir=str(cache), url_to_name=cached_as),
        pipelinefilter(tar_file_expander)(),
        pipelinefilter(group_by_keys)(),
        wds.shuffle(8 * 32, seed=0),
        wds.decode(),
        wds.map(without_suffix),
        wds.batched(BATCH, collation_fn=collate, partial=True),
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=2)
    return (len(batch["keypoints0"]) for batch in loader)


def mosaicml(bucket: str, cache: Path, rank: int, ranks: int) -> Iterator[int]:
    """MDS shards with SHA-256 checked, its shuffle over blocks, its local copies, one worker process."""
    from streaming import StreamingDataset

    os.environ |= {"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29533",
        "S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
    }
    dataset = StreamingDataset(
        remote=f"s3://{bucket}/mds", local=str(cache), shuffle=True, batch_size=BATCH, validate_hash="sha256"
    )
    # With two workers its check of a shard that the other was downloading failed in most runs.
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=collate)
    return (len(batch["keypoints0"]) for batch in loader)


def objects(bucket: str, cache: Path, rank: int, ranks: int) -> Iterator[int]:
    """One .npz per image, shuffled, read by threads."""
    import io

    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=REQUESTS))
    order = np.random.default_rng(0).permutation(num_pairs_and_keypoints()[0])[rank::ranks]

    def image(index: int) -> dict[str, np.ndarray]:
        body = client.get_object(Bucket=bucket, Key=f"objects/{index:06d}.npz")["Body"].read()
        with np.load(io.BytesIO(body)) as file:
            return dict(file)

    def pair(index: int) -> dict[str, np.ndarray]:
        sides = [image(2 * index), image(2 * index + 1)]
        return {f"{key}{side}": array for side in (0, 1) for key, array in sides[side].items()}

    def batches() -> Iterator[int]:
        with ThreadPoolExecutor(REQUESTS) as threads:
            for chunk in itertools.batched(order.tolist(), BATCH) if hasattr(itertools, "batched") else chunks(order):
                yield len(collate(list(threads.map(pair, chunk)))["keypoints0"])

    return batches()


def chunks(order: np.ndarray) -> Iterable[list[int]]:
    """Successive runs of `BATCH`."""
    return (order[start : start + BATCH].tolist() for start in range(0, len(order), BATCH))


def without_suffix(record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Column names as the other readers have them."""
    return {key.removesuffix(".npy"): array for key, array in record.items() if key.endswith(".npy")}


def collate(pairs: list[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack to tensors; descriptors to float32, as the matcher takes them."""
    stacked = {key: torch.from_numpy(np.stack([pair[key] for pair in pairs])) for key in pairs[0] if key[0] != "_"}
    return {key: tensor.float() if "descriptors" in key else tensor for key, tensor in stacked.items()}


def num_pairs_and_keypoints() -> tuple[int, int]:
    """What `samples.upload` wrote."""
    return int(os.environ["RAYLG_BENCHMARK_PAIRS"]), int(os.environ["RAYLG_BENCHMARK_KEYPOINTS"])
