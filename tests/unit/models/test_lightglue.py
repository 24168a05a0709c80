"""LightGlue: padding, empty views, adaptive inference, starts, precision."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from raylg.batch import LayerPrediction, View
from raylg.geometry.camera import Camera
from raylg.models import lightglue as module
from raylg.models.adaptive import PRUNING_MIN_KEYPOINTS
from raylg.models.attention import attention, key_mask
from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import (
    IDENTITY_TEMPERATURE,
    LightGlue,
    filter_matches,
    log_assignment,
)
from raylg.models.nearest_neighbor import NearestNeighbor

SMALL = LightGlueConfig(descriptor_dim=32, num_layers=3, num_heads=2, filter_threshold=0.0)


def random_view(batch: int, num: int, dim: int = 32, *, seed: int = 0, real: list[int] | None = None) -> View:
    """A view of random unit descriptors; `real` keypoints of each pair, the others are padding of zeros."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    mask = torch.arange(num) < torch.tensor(real or [num] * batch)[:, None]
    image_size = torch.tensor([640.0, 480.0]).expand(batch, 2)
    return View(
        keypoints=uniform(batch, num, 2) * image_size[:, None] * mask[..., None],
        descriptors=F.normalize(uniform(batch, num, dim) - 0.5, dim=-1) * mask[..., None],
        mask=mask,
        image_size=image_size,
        camera=Camera(torch.full((batch, 2), 500.0), image_size / 2),
        depth_keypoints=torch.full((batch, num), torch.nan),
        scales=uniform(batch, num) * 5 * mask,
        oris=(uniform(batch, num) - 0.5) * 6 * mask,
    )


def unpadded(view: View, pair: int) -> View:
    row = view[pair : pair + 1]
    num = int(row.mask.sum())
    return replace(
        row,
        keypoints=row.keypoints[:, :num],
        descriptors=row.descriptors[:, :num],
        mask=row.mask[:, :num],
        scales=None if row.scales is None else row.scales[:, :num],
        oris=None if row.oris is None else row.oris[:, :num],
    )


def build(config: LightGlueConfig = SMALL, **options: bool) -> LightGlue:
    torch.manual_seed(0)
    return LightGlue(config, input_dim=32, add_scale_ori=options.get("add_scale_ori", False))


@pytest.mark.parametrize(
    ("input_dim", "add_scale_ori", "num_parameters"),
    [(256, False, 11_851_601), (128, False, 11_884_625), (128, True, 11_884_689)],
)
def test_size_is_the_official_one(input_dim: int, add_scale_ori: bool, num_parameters: int) -> None:
    model = LightGlue(LightGlueConfig(), input_dim=input_dim, add_scale_ori=add_scale_ori)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    # The official files hold one tensor more, the derived buffer of confidence thresholds.
    assert len(model.state_dict()) == (251 if input_dim == 256 else 253)
    assert not list(model.buffers())


@pytest.mark.parametrize("add_scale_ori", [False, True])
def test_padding_takes_no_part(add_scale_ori: bool) -> None:
    model = build(add_scale_ori=add_scale_ori)
    view0, view1 = random_view(3, 9, real=[9, 4, 7]), random_view(3, 11, seed=1, real=[6, 11, 3])
    batched = model(view0, view1)
    matches = model.match(view0, view1)
    for pair in range(3):
        alone0, alone1 = unpadded(view0, pair), unpadded(view1, pair)
        num0, num1 = alone0.mask.shape[1], alone1.mask.shape[1]
        for padded, single in zip(batched, model(alone0, alone1), strict=True):
            expected = log_assignment(single, alone0.mask, alone1.mask)[0]
            scores = log_assignment(padded, view0.mask, view1.mask)[pair]
            real = torch.cat([scores[:num0], scores[-1:]])
            torch.testing.assert_close(torch.cat([real[:, :num1], real[:, -1:]], dim=1), expected, atol=1e-5, rtol=1e-5)
            assert (scores[num0:-1] == -torch.inf).all() and (scores[:, num1:-1] == -torch.inf).all()
        alone = model.match(alone0, alone1)
        assert torch.equal(matches.matches0[pair, :num0], alone.matches0[0])
        assert torch.equal(matches.matches1[pair, :num1], alone.matches1[0])
        torch.testing.assert_close(matches.matching_scores0[pair, :num0], alone.matching_scores0[0])
        assert (matches.matches0[pair, num0:] == -1).all() and (matches.matching_scores0[pair, num0:] == 0).all()
        assert (matches.matches1[pair, num1:] == -1).all() and (matches.matching_scores1[pair, num1:] == 0).all()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_a_padded_batch_are_the_sum_of_its_pairs(checkpointed: bool) -> None:
    def gradients(views: list[tuple[View, View]]) -> dict[str, torch.Tensor]:
        model = build()
        model.checkpointed = checkpointed
        for view0, view1 in views:
            total = torch.zeros(())
            for layer in model(view0, view1):
                scores = log_assignment(layer, view0.mask, view1.mask)
                total = total - scores[scores.isfinite()].sum()
                if layer.confidence0 is not None:
                    total = total + (layer.confidence0 * view0.mask).sum()
            total.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    # The last pair has no keypoint at all in view 0.
    view0, view1 = random_view(3, 8, real=[8, 5, 0]), random_view(3, 6, seed=1, real=[4, 6, 3])
    padded = gradients([(view0, view1)])
    single = gradients([(unpadded(view0, pair), unpadded(view1, pair)) for pair in range(3)])
    assert set(padded) == set(single) == {name for name, _ in build().named_parameters()}
    for name, gradient in padded.items():
        torch.testing.assert_close(gradient, single[name], atol=2e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("num0", "num1"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_views_without_keypoints(num0: int, num1: int, adaptive: bool) -> None:
    config = replace(SMALL, depth_confidence=0.95, width_confidence=0.99) if adaptive else SMALL
    model = build(config)
    view0, view1 = random_view(2, num0), random_view(2, num1, seed=1)
    layers = model(view0, view1)
    assert layers[0].projected0.shape == (2, num0, 32) and layers[0].matchability1.shape == (2, num1)
    scores = log_assignment(layers[-1], view0.mask, view1.mask)
    assert scores.shape == (2, num0 + 1, num1 + 1) and scores.isfinite().all()
    scores.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    matches = model.match(view0, view1)
    assert matches.matches0.tolist() == [[-1] * num0] * 2 and matches.matches1.tolist() == [[-1] * num1] * 2
    assert matches.matching_scores0.tolist() == [[0.0] * num0] * 2
    assert matches.matching_scores1.tolist() == [[0.0] * num1] * 2
    assert matches.num_layers_used.tolist() == [0, 0]


def test_no_message_comes_from_a_view_of_padding() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    q, k, v = (torch.randn(2, 2, n, 4, requires_grad=True) for n in (5, 3, 3))
    context = attention(q, k, v, key_mask(mask))
    expected = F.scaled_dot_product_attention(q[:1], k[:1, :, :2], v[:1, :, :2])
    torch.testing.assert_close(context[:1], expected)
    assert (context[1] == 0).all()
    context.sum().backward()
    for x in (q, k, v):
        assert x.grad is not None and x.grad.isfinite().all() and (x.grad[1] == 0).all()
    assert k.grad is not None and (k.grad[0, :, 2] == 0).all()


def test_what_stands_in_padding_does_not_matter() -> None:
    model = build()
    view0, view1 = random_view(2, 4), random_view(2, 7, seed=1, real=[0, 5])
    noise = torch.randn(2, 7, 32) * ~view1.mask[..., None]
    clean, noisy = model(view0, view1)[-1], model(view0, replace(view1, descriptors=view1.descriptors + noise))[-1]
    torch.testing.assert_close(clean.projected0, noisy.projected0)
    torch.testing.assert_close(clean.projected1[1, :5], noisy.projected1[1, :5])


def test_filter_matches_by_hand() -> None:
    probability = torch.tensor([[[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 1.0]]])
    matches0, matches1, scores0, scores1 = filter_matches(probability.log(), 0.5)
    assert matches0.tolist() == [[0, -1]] and matches1.tolist() == [[0, -1]]
    torch.testing.assert_close(scores0, torch.tensor([[0.7, 0.0]]))
    # Column 1 prefers row 1, which prefers column 0: no mutual candidate, so no score.
    torch.testing.assert_close(scores1, torch.tensor([[0.7, 0.0]]))
    # Mutual but too weak: the score stays, the match goes. The threshold itself is excluded.
    matches0, _, scores0, _ = filter_matches(probability.log(), float(probability.log().exp()[0, 0, 0]))
    assert matches0.tolist() == [[-1, -1]] and scores0[0, 0] > 0


def test_log_assignment_by_hand() -> None:
    similarity = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    z0, z1 = torch.tensor([[0.3, -0.7]]).double(), torch.tensor([[1.5, 0.1]]).double()
    prediction = LayerPrediction(
        projected0=similarity[None],
        projected1=torch.eye(2, dtype=torch.float64)[None],
        matchability0=z0,
        matchability1=z1,
        confidence0=None,
        confidence1=None,
    )
    mask = torch.ones(1, 2, dtype=torch.bool)
    probability = similarity.softmax(0) * similarity.softmax(1) * z0.sigmoid().T * z1.sigmoid()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[:2, :2] = probability.log()
    expected[:2, 2], expected[2, :2] = (1 - z0.sigmoid()).log(), (1 - z1.sigmoid()).log()
    torch.testing.assert_close(log_assignment(prediction, mask, mask)[0], expected)


def test_confidence_does_not_train_the_descriptors() -> None:
    model = build()
    layers = model(random_view(1, 6), random_view(1, 5, seed=1))
    assert layers[-1].confidence0 is None and layers[-1].confidence1 is None
    sum(layer.confidence0.sum() for layer in layers[:-1]).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"token_confidence.{i}.token.0.{kind}" for i in range(2) for kind in ("weight", "bias")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_logits_in_float32(dtype: torch.dtype) -> None:
    model = LightGlue(replace(SMALL, descriptor_dim=64), input_dim=32, add_scale_ori=True)
    view0, view1 = random_view(2, 20, real=[20, 0]), random_view(2, 16, seed=1)
    exact = model(view0, view1)[-1]
    with torch.autocast("cpu", dtype=dtype):
        layer = model(view0, view1)[-1]
    assert layer.projected0.dtype == layer.matchability0.dtype == torch.float32
    torch.testing.assert_close(layer.projected0, exact.projected0, atol=0.03, rtol=0.03)
    assert not torch.equal(layer.projected0, exact.projected0)


def test_early_exit_and_its_layer_count() -> None:
    model = build(replace(SMALL, depth_confidence=0.5))
    view0, view1 = random_view(2, 6), random_view(2, 7, seed=1, real=[7, 0])
    for head in model.token_confidence:
        torch.nn.init.constant_(head.token[0].bias, -20.0)
    assert model.match(view0, view1).num_layers_used.tolist() == [3, 0]
    torch.nn.init.constant_(model.token_confidence[1].token[0].bias, 20.0)
    matches = model.match(view0, view1)
    assert matches.num_layers_used.tolist() == [2, 0]
    expected = filter_matches(log_assignment(model(view0, view1)[1], view0.mask, view1.mask), 0.0)
    assert torch.equal(matches.matches0, expected[0])


def test_pruned_points_have_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(replace(SMALL, width_confidence=0.5))
    view0, view1 = random_view(1, 10), random_view(1, 12, seed=1)
    with torch.no_grad():
        layer = model(view0, view1)[0]
        # About half of the points fall below the bound of 0.5.
        model.log_assignment[0].matchability.bias -= torch.cat([layer.matchability0, layer.matchability1], 1).median()
        layer = model(view0, view1)[0]
    matches = model.match(view0, view1)
    pruned = layer.matchability0.sigmoid() <= 0.5
    assert pruned.any() and (matches.matches0[pruned] == -1).all() and (matches.matching_scores0[pruned] == 0).all()
    matched = (matches.matches0[0] >= 0).nonzero()[:, 0]
    assert len(matched) > 0 and torch.equal(matches.matches1[0, matches.matches0[0, matched]], matched)
    # Where pruning would not pay it does not run.
    monkeypatch.setitem(PRUNING_MIN_KEYPOINTS, "cpu", 1000)
    assert torch.equal(model.match(view0, view1).matches0, build_like(model, SMALL).match(view0, view1).matches0)


def build_like(model: LightGlue, config: LightGlueConfig) -> LightGlue:
    twin = build(config)
    twin.load_state_dict(model.state_dict())
    return twin


def test_adaptive_inference_without_effect_equals_the_batch() -> None:
    view0, view1 = random_view(3, 9, real=[9, 4, 7]), random_view(3, 11, seed=1, real=[6, 11, 3])
    adaptive, plain = build(replace(SMALL, depth_confidence=1.0)), build()
    for name, expected in vars(plain.match(view0, view1)).items():
        torch.testing.assert_close(getattr(adaptive.match(view0, view1), name), expected, msg=name)


@pytest.mark.parametrize(("input_dim", "width"), [(32, 32), (16, 32)])
def test_identity_start_is_nearest_neighbours(input_dim: int, width: int) -> None:
    config = replace(SMALL, descriptor_dim=width, init="identity")
    model = LightGlue(config, input_dim=input_dim, add_scale_ori=True)
    view0, view1 = random_view(2, 40, input_dim), random_view(2, 50, input_dim, seed=1)
    # 30 keypoints of view 0 are seen again with noise, in another order.
    again = F.normalize(view0.descriptors[:, :30].flip(1) + 0.05 * view1.descriptors[:, :30], dim=-1)
    view1 = replace(view1, descriptors=torch.cat([again, view1.descriptors[:, 30:]], dim=1))
    cosine = view0.descriptors @ view1.descriptors.transpose(1, 2)
    for layer in model(view0, view1):
        similarity = layer.projected0 @ layer.projected1.transpose(1, 2)
        torch.testing.assert_close(similarity, IDENTITY_TEMPERATURE * cosine, atol=1e-4, rtol=1e-4)
    found, nearest = model.match(view0, view1), NearestNeighbor().match(view0, view1)
    assert torch.equal(found.matches0[:, :30], nearest.matches0[:, :30])
    assert torch.equal(found.matches0[:, :30], torch.arange(30).flip(0).expand(2, 30))
    assert (found.matching_scores0[:, :30] > 0.5).all()


def test_identity_start_of_a_narrower_network_keeps_neighbours() -> None:
    config = replace(SMALL, descriptor_dim=64, init="identity")
    model = LightGlue(config, input_dim=128, add_scale_ori=False)
    view0 = random_view(1, 60, 128)
    view1 = replace(random_view(1, 60, 128, seed=1), descriptors=view0.descriptors)
    similarity = model(view0, view1)[0]
    cosine = similarity.projected0 @ similarity.projected1.transpose(1, 2) / IDENTITY_TEMPERATURE
    assert abs(cosine[0].diagonal().mean().item() - 1) < 0.05  # the projection is right on average
    assert torch.equal(model.match(view0, view1).matches0[0], torch.arange(60))


def test_identity_start_learns_everywhere() -> None:
    model = build(replace(SMALL, init="identity"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    view0, view1 = random_view(2, 12), random_view(2, 12, seed=1)
    for _ in range(2):  # the first step only moves the zero layers, the second all
        optimizer.zero_grad()
        scores = sum(log_assignment(layer, view0.mask, view1.mask)[:, :12, :12] for layer in model(view0, view1))
        (-scores.diagonal(dim1=1, dim2=2).mean()).backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert [name for name in still if "token_confidence" not in name] == []


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("num0", [0, 12])
def test_predict_and_match_are_the_two_of_them(adaptive: bool, num0: int) -> None:
    model = build(replace(SMALL, depth_confidence=0.5 if adaptive else -1.0)).eval()
    view0, view1 = random_view(2, num0, real=[num0, min(num0, 7)]), random_view(2, 9, seed=1)
    last, matches = model.predict_and_match(view0, view1)
    expected = model.match(view0, view1)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(matches, name), value), name
    for name, value in vars(model(view0, view1)[-1]).items():
        predicted = getattr(last, name)
        assert predicted is value is None or torch.equal(predicted, value), name


@pytest.mark.parametrize("size", [1, 12 * 9 * 2, 10**9])
def test_matches_do_not_depend_on_how_many_assignments_are_formed_at_a_time(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build().eval()
    view0, view1 = random_view(5, 12, real=[12, 7, 0, 12, 3]), random_view(5, 9, seed=1, real=[9, 9, 9, 0, 4])
    monkeypatch.setattr(module, "ASSIGNMENT_SIZE", size)
    matches = model.match(view0, view1)
    expected = filter_matches(log_assignment(model(view0, view1)[-1], view0.mask, view1.mask), 0.0)
    found = (matches.matches0, matches.matches1, matches.matching_scores0, matches.matching_scores1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert model.match(view0[:0], view1[:0]).matches0.shape == (0, 12)
