"""What a run's configuration refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylg.data.config import DataConfig, ImagesConfig
from raylg.errors import ConfigError
from raylg.models.config import ExtractorConfig, LightGlueConfig, ModelConfig
from raylg.supervision.config import LossConfig
from raylg.training.config import RunConfig, ScaleConfig, TrainConfig


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(
            data=DataConfig(source="images", path=("photographs",), batch_size=9, images=ImagesConfig(width=640)),
            model=ModelConfig(extractor=ExtractorConfig(resize=512)),
            scale=ScaleConfig(num_workers=2),
        )
    problems = str(caught.value).splitlines()
    assert len(problems) == 2
    assert problems[0].startswith("data.batch_size = 9: must be a multiple of scale.num_workers = 2")
    assert problems[1].startswith("model.extractor.resize = 512: views have 640 px (data.images.width and height)")


def test_second_stage_needs_a_matcher_and_something_to_learn() -> None:
    second = TrainConfig(stage="confidence")
    with pytest.raises(ConfigError) as caught:
        RunConfig(
            train=second,
            loss=LossConfig(confidence_weight=0.0),
            model=ModelConfig(matcher=LightGlueConfig(num_layers=1)),
        )
    problems = str(caught.value).splitlines()
    assert all(problem.startswith("train.stage = 'confidence': ") for problem in problems)
    assert [any(word in problem for problem in problems) for word in ("init_from", "weight = 0", "num_layers = 1")]
    assert len(problems) == 3
    RunConfig(train=replace(second, init_from="runs/first"))
    RunConfig(train=second, model=ModelConfig(matcher=LightGlueConfig(weights="lightglue.pth")))


def test_views_of_photographs_may_be_smaller_than_the_resize() -> None:
    RunConfig(
        data=DataConfig(source="images", path=("photographs",), images=ImagesConfig(width=320, height=240)),
        model=ModelConfig(extractor=ExtractorConfig(resize=320)),
    )
