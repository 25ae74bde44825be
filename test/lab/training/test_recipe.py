"""The whole recipe, small: a model of any kind and its library, from nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from semla_ros.cli import main
from semla_ros.errors import ConfigError
from semla_ros.lab.training.recipe import Recipe
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.library.manifest import read_manifest
from semla_ros.resources import share_folder
from semla_ros.segmentation.checkpoint import load_model

LOOP = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1, "bfloat16": False}
TOWER = {"patch": 16, "visual_width": 64, "visual_layers": 3, "native_grid": [4, 4], "working_grid": [4, 4],
         "embed_dim": 32}  # fmt: skip
COMMON = {
    "image_size": [64, 64], "clear_images": 6, "domain_images": 4, "domains": ["old-town-fog"],
    "clip": {"dense_batch_size": 2, "caption_size": [64, 64], "loop": LOOP},
    "segmenter": {"loop": LOOP}, "adapter": {"loop": LOOP},
}  # fmt: skip
RECIPES = {
    "catseg": {
        **COMMON, "kind": "catseg", "name": "small-catseg", "scene_tower": TOWER, "scene_encoder": {"loop": LOOP},
        "model": {
            "guidance_layers": [0, 1], "probability": "softmax",
            "clip": {**TOWER, "text_width": 64, "text_layers": 1, "context_length": 32},
            "aggregator": {"grid": [4, 4], "hidden_dim": 32, "window": 2, "embed_dim": 32, "text_guidance_dim": 16,
                           "appearance_guidance_dim": 16, "decoder_dims": [16, 16], "decoder_guidance_dims": [16, 16],
                           "decoder_guidance_proj_dims": [8, 8]},
        },
    },
    "sed": {
        **COMMON, "kind": "sed", "name": "small-sed", "scene_encoder_of": "semla-tiny",
        "model": {
            "visual_dims": [8, 8, 16, 16], "visual_depths": [1, 1, 1, 1], "embed_dim": 32, "text_width": 64,
            "text_layers": 1, "context_length": 32, "working_resolution": [64, 64], "detaches_guidance": False,
            "probability": "softmax",
            "decoder": {"hidden_dim": 16, "dims": [8, 8, 8], "encoder_dims": [16, 8, 8], "guidance_dims": [4, 4, 4],
                        "kernels": [3, 3, 3]},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", RECIPES)
def test_a_model_of_each_kind_and_its_library_are_made_from_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPES[kind]), encoding="utf-8")
    model, library = tmp_path / "model", tmp_path / "library"
    options = ["--recipe", str(tmp_path / "recipe.yaml"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    assert main(["train", "all", *options, "--model-out", str(model), "--library-out", str(library)]) == 0
    loaded = load_model(model)
    assert (loaded.model.kind, loaded.model_id, loaded.class_names) == (kind, f"small-{kind}", CLASS_NAMES)
    assert loaded.template == loaded.model.template
    manifest = read_manifest(library)
    assert manifest.base.id == f"small-{kind}"
    assert set(manifest.adapters) == {"old-town-fog"}
    shipped = share_folder() / "models" / "semla-tiny" / "scene_encoder.safetensors"
    assert ((model / shipped.name).read_bytes() == shipped.read_bytes()) == (kind == "sed")
    capsys.readouterr()
    assert main(["library", "check", str(library), "--model", str(model)]) == 0
    evaluated = ["evaluate", "--model", str(model), "--library", str(library), "--images", "1", "--jobs", "1"]
    named = ["--domains", "old-town-fog", "--variants", "zero_shot", "semla", "--json", str(tmp_path / "out.json")]
    assert main([*evaluated, *named]) == 0
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["domains"]["old-town-fog"]
    assert set(figures) >= {"zero_shot", "semla"}


def test_the_encoder_of_the_small_sed_learns_through_its_guidance() -> None:
    recipe = Recipe.load(share_folder() / "config" / "training_sed.yaml")
    model = recipe.untrained_model(vocab_rows=4)
    text = torch.nn.functional.normalize(torch.randn(3, *model.text_shape), dim=-1)
    gradients = []
    for detaches in (True, False):
        model.config = replace(model.config, detaches_guidance=detaches)
        model.zero_grad()
        model(torch.zeros(1, 3, 64, 64), text).sum().backward()
        gradients.append(sum(float(item.grad.abs().sum()) for item in model.clip.visual.trunk.stem.parameters()))
    assert gradients[0] != gradients[1]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"scene_encoder_of": ""}, "either 'scene_tower' and 'scene_encoder', or 'scene_encoder_of'"),
        ({"domains": ["old-town-fogg"]}, "did you mean 'old-town-fog'"),
        ({"kind": "catseg"}, "unknown model setting"),
        ({"model": {**RECIPES["sed"]["model"], "text_width": 65}}, "'text_width'"),
    ],
)
def test_a_recipe_that_is_of_no_model_is_refused_before_anything_is_rendered(
    changed: dict, named: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPES["sed"], **changed}), encoding="utf-8")
    with pytest.raises(ConfigError, match=named):
        Recipe.load(tmp_path / "recipe.yaml")
