"""Weights that others wrote, loaded strictly; and ours, exported.

Files are read with `weights_only=True`, so that a downloaded file cannot run code. Nothing is ever loaded in part: a
matcher whose weights silently stayed random is the most expensive mistake of all.
"""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raylg.errors import CheckpointError
from raylg.models.adaptive import confidence_threshold
from raylg.models.config import ExtractorConfig
from raylg.models.lightglue import LightGlue
from raylg.models.published import resolve_superpoint
from raylg.models.superpoint import SuperPoint

SHOWN_KEYS = 4
"""Tensors named per kind of mismatch."""


def load_superpoint(config: ExtractorConfig) -> SuperPoint:
    """SuperPoint with the weights that the configuration names, in the layout that the file has.

    Raises:
        ConfigError: no weights named, no such file, or a download that is not the published file.
        EnvironmentUnfitError: the download failed.
        CheckpointError: the file fits neither layout.
    """
    path = resolve_superpoint(config)
    state = read_state_dict(path)
    model = SuperPoint(config, "magicleap" if "conv1a.weight" in state else "open")
    advice = "SuperPoint takes files in the layout of rpautrat/SuperPoint (PyTorch) or of Magic Leap's superpoint_v1"
    load_strictly(model.network, state, path, advice)
    return model


def load_lightglue_weights(model: LightGlue, path: Path) -> None:
    """Fill a matcher from a file of cvg/LightGlue, kornia, glue-factory (also its `.tar` checkpoints) or `export`.

    Raises:
        CheckpointError: unreadable, or for another architecture; the message says which configuration fits.
    """
    state = official_names(read_state_dict(path))
    load_strictly(model, state, path, _fitting_configuration(state))


def official_state_dict(model: LightGlue) -> dict[str, Tensor]:
    """Copies of the weights on the CPU, in the official names and complete: what `export_lightglue` writes."""
    num_layers = model.config.num_layers
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    # A buffer of theirs that follows from the number of layers; here it is computed.
    state["confidence_thresholds"] = torch.tensor([confidence_threshold(i, num_layers) for i in range(num_layers)])
    return state


def export_lightglue(model: LightGlue, path: Path) -> None:
    """Write the weights in the official names, so that cvg/LightGlue, glue-factory and kornia load them strictly."""
    state = official_state_dict(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        torch.save(state, file)
    os.replace(file.name, path)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of any published LightGlue file to today's official names.

    Pipelines of glue-factory hold an extractor beside the matcher, which is left out; the released files precede the
    grouping of blocks into layers.
    """
    prefix = "matcher."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    grouped = {re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", name): name for name in state}
    return {new: state[old] for new, old in grouped.items() if new != "confidence_thresholds"}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a file written by `torch.save`; of a training checkpoint its `model`.

    Raises:
        CheckpointError: no such file, not such a file, or a pickle that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; give the path of a .pth or .tar file")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: cannot be read as weights ({reason}); if you trust the file, load it with "
            "torch.load(..., weights_only=False) and save its state dict alone with torch.save"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (tensors by name), but {type(content).__name__}")
    return content


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, advice: str) -> None:
    """Load all tensors or none.

    Args:
        module: what is filled.
        state: tensors by name.
        path: where they come from, for the message.
        advice: what to do about a mismatch.

    Raises:
        CheckpointError: names or shapes differ; the message lists the first of each kind.
    """
    expected = module.state_dict()
    both = [name for name in expected if name in state]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if state[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        lines = [f"  {len(found)} {kind}: {_first(found)}" for kind, found in problems.items() if found]
        summary = f"{path}: does not fit {type(module).__name__} of {len(expected)} tensors"
        raise CheckpointError("\n".join([summary, *lines, f"  {advice}"]))
    module.load_state_dict(dict(state))


def _numpy_scalars() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """What pickled NumPy numbers are made of; training checkpoints hold metrics beside the weights."""
    scalar = np.float64(0).__reduce__()[0]
    assert callable(scalar)
    old_name = "numpy.core.multiarray.scalar"  # before NumPy 2
    dtypes = (np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType)
    return [scalar, (scalar, old_name), np.dtype, *dtypes]


def _first(names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more


def _fitting_configuration(state: Mapping[str, Tensor]) -> str:
    """What to set so that a LightGlue file fits, read off its shapes."""
    try:
        dim = state["transformers.0.self_attn.out_proj.weight"].shape[0]
        frequencies, coordinates = state["posenc.Wr.weight"].shape
    except (KeyError, ValueError):
        return "this is no LightGlue file: it has no transformers.0.self_attn.out_proj.weight or posenc.Wr.weight"
    num_layers = len({name.split(".")[1] for name in state if name.startswith("transformers.")})
    input_proj = state.get("input_proj.weight")
    input_dim = dim if input_proj is None else input_proj.shape[1]
    return (
        f"the file fits model.matcher.descriptor_dim={dim} model.matcher.num_layers={num_layers} "
        f"model.matcher.num_heads={dim // (2 * frequencies)}, an extractor with descriptors of size {input_dim} "
        f"{'with' if coordinates == 4 else 'without'} scale and orientation"
    )
