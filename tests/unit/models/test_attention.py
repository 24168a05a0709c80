"""Attention with padding: the kernel stays fused, whatever is masked, and no switch of the process is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raylg.models.attention import Context, LearnableFourierPositionalEncoding, TransformerLayer, attention, key_mask

LENGTHS = [[7, 3, 5], [7, 7, 7], [7, 0, 2], [0, 0, 0]]


def inputs(dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Queries [3, 2, 5, 16], keys and values [3, 2, 7, 16]."""
    generator = torch.Generator().manual_seed(0)

    def made(num: int) -> Tensor:
        return torch.randn(3, 2, num, 16, generator=generator).to(device, dtype).requires_grad_()

    return made(5), made(7), made(7)


def masked(lengths: list[int], device: str = "cpu") -> Tensor:
    return (torch.arange(7) < torch.tensor(lengths)[:, None]).to(device)


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The formula, for one pair after the other; zero where there is no key."""
    rows = []
    for b in range(len(q)):
        keys, values = k[b, :, mask[b]], v[b, :, mask[b]]
        rows.append((q[b] @ keys.mT / 16**0.5).softmax(-1) @ values)
    return torch.stack(rows)


def run_fused(backend: SDPBackend, lengths: list[int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Messages and gradients; fails where this kernel would not be taken."""
    q, k, v = inputs(dtype, device)
    with sdpa_kernel(backend):
        messages = attention(q, k, v, key_mask(masked(lengths, device)))
        messages.square().sum().backward()
    return [messages, *(x.grad for x in (q, k, v) if x.grad is not None)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_masks_keep_the_fused_kernel(lengths: list[int]) -> None:
    found = run_fused(SDPBackend.FLASH_ATTENTION, lengths, torch.float32, "cpu")
    q, k, v = inputs(torch.float32)
    messages = explicit(q, k, v, masked(lengths))
    messages.square().sum().backward()
    for result, expected in zip(found, [messages, q.grad, k.grad, v.grad], strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_masks_keep_the_fused_kernel_in_bfloat16() -> None:
    found = run_fused(SDPBackend.FLASH_ATTENTION, LENGTHS[2], torch.bfloat16, "cpu")
    expected = run_fused(SDPBackend.FLASH_ATTENTION, LENGTHS[2], torch.float32, "cpu")
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("lengths", "flash"), [(LENGTHS[0], False), (LENGTHS[1], True), (LENGTHS[2], False)])
def test_kernels_on_a_gpu_are_fused(lengths: list[int], flash: bool) -> None:
    backend = SDPBackend.FLASH_ATTENTION if flash else SDPBackend.EFFICIENT_ATTENTION
    found = run_fused(backend, lengths, torch.bfloat16, "cuda")
    for result, expected in zip(found, run_fused(backend, lengths, torch.float32, "cpu"), strict=True):
        torch.testing.assert_close(result.float().cpu(), expected, atol=0.05, rtol=0.05)


def test_full_views_have_no_mask() -> None:
    assert key_mask(masked([7, 7, 7])) is None
    keys = key_mask(masked([7, 6, 0]))
    assert keys is not None
    assert keys.allowed.shape == (3, 1, 1, 7) and keys.allowed[2].all()
    assert keys.present.flatten().tolist() == [True, True, False]


def test_no_global_switch_is_touched() -> None:
    def switches() -> list[bool]:
        cuda = torch.backends.cuda
        enabled = (
            cuda.flash_sdp_enabled,
            cuda.mem_efficient_sdp_enabled,
            cuda.math_sdp_enabled,
            cuda.cudnn_sdp_enabled,
        )
        matmul = torch.get_float32_matmul_precision() == "highest"
        return [*(ask() for ask in enabled), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, matmul]

    before = switches()
    layer, encoder = TransformerLayer(32, 2), LearnableFourierPositionalEncoding(2, 16)
    x = torch.randn(3, 7, 32)
    encoding, keys = encoder(torch.rand(3, 7, 2)), key_mask(masked(LENGTHS[0]))
    layer(x, x, Context(encoding, encoding, keys, keys))[0].sum().backward()
    assert switches() == before
