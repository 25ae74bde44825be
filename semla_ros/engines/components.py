"""The parts of a model that no adapter ever changes.

LoRA touches attention and MLP weights of the segmenter. What stays the same for the life of a model are the scene
encoder and what the segmenter names itself: these may be compiled once and served by another runtime while everything
around them goes on in torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.segmentation.fixed_component import FixedComponent, noise
from semla_ros.segmentation.protocol import SegmentationModel

SCENE_ENCODER = "scene_encoder"
MAX_BATCH = 8  # images at once: the published sliding inference has 5 windows


def fixed_components(
    model: SegmentationModel | None, encoder: SceneEncoder | None, *, probe_scenes: Sequence[np.ndarray] = ()
) -> list[FixedComponent]:
    """Every fixed component of a model and its scene encoder.

    Args:
        model: The segmenter; None leaves its own out.
        encoder: The scene encoder; None leaves it out.
        probe_scenes: RGB images to probe the scene encoder with; noise where there are none.
    """
    found = [] if encoder is None else [_scene_encoder(encoder, probe_scenes)]
    return found if model is None else [*found, *model.fixed_components()]


def _scene_encoder(encoder: SceneEncoder, scenes: Sequence[np.ndarray]) -> FixedComponent:
    tower, size = encoder.tower, encoder.preprocessing
    probe = noise((2, 3, size.height, size.width), tower)
    if len(scenes) >= 2:
        probe = torch.from_numpy(np.stack([size.normalised(image) for image in scenes])).to(probe.device)
    return FixedComponent(
        name=SCENE_ENCODER,
        module=tower,
        inputs=(probe[:MAX_BATCH],),
        input_names=("images",),
        max_batch=MAX_BATCH,
        original=lambda images: type(tower).forward(tower, images),
        shadow=((tower, "forward", lambda served: served),),
    )
