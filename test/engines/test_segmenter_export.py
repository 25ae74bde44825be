"""The whole segmenter as one graph, which a refit engine is built from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_conv_stem import images_and_text as stem_images
from test_conv_stem import stem_config
from test_model import images_and_text, seeded_model, tiny_config

from semla_ros.engines.components import segmenter
from semla_ros.engines.export import export_onnx


@pytest.mark.parametrize("kind", ["plain", "stem"])
def test_the_exported_segmenter_takes_as_many_views_as_come(kind: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if kind == "plain":
        model, (images, text) = seeded_model(tiny_config()), images_and_text(3, batch=3)
    else:
        model, (images, text) = seeded_model(stem_config()), stem_images(batch=3)
    export_onnx(segmenter(model, images[:2], text), tmp_path / "segmenter.onnx")
    session = runtime.InferenceSession(str(tmp_path / "segmenter.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (found,) = session.run(None, {"images": images[:count].numpy(), "text": text.numpy()})
        with torch.no_grad():
            expected = model(images[:count], text).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
