"""What a run's configuration refuses."""

from __future__ import annotations

import pytest

from raylg.data.config import DataConfig, ImagesConfig
from raylg.errors import ConfigError
from raylg.models.config import ExtractorConfig, ModelConfig
from raylg.training.config import RunConfig, ScaleConfig


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


def test_views_of_photographs_may_be_smaller_than_the_resize() -> None:
    RunConfig(
        data=DataConfig(source="images", path=("photographs",), images=ImagesConfig(width=320, height=240)),
        model=ModelConfig(extractor=ExtractorConfig(resize=320)),
    )
