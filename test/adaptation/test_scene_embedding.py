from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_image import CLIP_MEAN, CLIP_STD, ScenePreprocessing
from semla_ros.adaptation.scene_tower import SceneTower
from semla_ros.errors import CheckpointError, ConfigError, ImageError
from semla_ros.lab.training.weights_files import save_scene_encoder
from semla_ros.segmentation.clip import ClipConfig, QuickGelu, VisualTower, to_open_clip
from semla_ros.torchvision_compat import import_open_clip

DIM = 12


def tiny_tower(pool: str = "avg") -> VisualTower:
    torch.manual_seed(3)
    config = ClipConfig(
        patch=16,
        visual_width=64,
        visual_layers=2,
        native_grid=(3, 5),
        working_grid=(3, 5),
        embed_dim=DIM,
        text_width=64,
        text_layers=1,
        context_length=4,
        vocab_rows=8,
        pool=pool,  # type: ignore[arg-type]
    )
    return VisualTower(config).eval().half().float()  # values that half precision keeps


def tiny_settings(pool: str = "avg", **changes: object) -> dict[str, object]:
    vision = {"image_size": [48, 80], "patch_size": 16, "width": 64, "layers": 2, "head_width": 64, "pool_type": pool}
    settings: dict[str, object] = {
        "id": "tiny/scene",
        "embed_dim": DIM,
        "open_clip_vision_cfg": vision,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "quick_gelu": True,
        "resize": "stretch",
    }
    return {**settings, **changes}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "semla-test" / "scene_encoder.safetensors"
    save_scene_encoder(to_open_clip(tiny_tower().state_dict()), tiny_settings(), path)
    return path


def test_the_same_encoder_is_the_same_file(tmp_path: Path) -> None:
    for index in range(6):
        save_scene_encoder(to_open_clip(tiny_tower().state_dict()), tiny_settings(), tmp_path / f"{index}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def picture(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("pool", ["avg", "tok"])
def test_an_encoder_computes_what_the_trained_tower_computes(tmp_path: Path, pool: str) -> None:
    tower, path = tiny_tower(pool), tmp_path / "encoder.safetensors"
    save_scene_encoder(to_open_clip(tower.state_dict()), tiny_settings(pool), path)
    encoder = SceneEncoder.load(path)
    image = picture(48, 80)
    normalised = (image / 255.0 - CLIP_MEAN) / CLIP_STD
    with torch.no_grad():
        expected = tower(torch.from_numpy(normalised).permute(2, 0, 1)[None].float())[0].numpy()
    np.testing.assert_allclose(encoder.embed(image), expected, atol=2e-5 * np.linalg.norm(expected))
    assert encoder.dim == DIM
    assert encoder.id == "tiny/scene"
    assert len(encoder.sha256) == 64


def test_a_model_folder_is_as_good_as_its_file(file: Path) -> None:
    by_folder, by_file = SceneEncoder.load(file.parent), SceneEncoder.load(str(file))
    assert by_folder.sha256 == by_file.sha256
    np.testing.assert_array_equal(by_folder.embed(picture()), by_file.embed(picture()))


def test_images_of_any_size_are_embedded_alone_as_in_a_batch(file: Path) -> None:
    encoder = SceneEncoder.load(file)
    images = [picture(60, 90), picture(33, 200, seed=1), picture(480, 640, seed=2), picture(1, 1, seed=3)]
    batch = encoder.embed_batch(images)
    assert batch.shape == (4, DIM)
    assert batch.dtype == np.float32
    for image, row in zip(images, batch, strict=True):
        np.testing.assert_allclose(encoder.embed(image), row, atol=1e-5 * np.linalg.norm(row))
    assert encoder.embed_batch([]).shape == (0, DIM)


def test_embeddings_are_not_normalised(file: Path) -> None:
    lengths = np.linalg.norm(SceneEncoder.load(file).embed_batch([picture(), picture(seed=9) // 4]), axis=1)
    assert np.abs(lengths - 1).min() > 0.01


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5), (5, 5, 4)])
def test_an_image_of_another_form_is_refused(file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="uint8 RGB"):
        SceneEncoder.load(file).embed(np.zeros(shape, np.uint8))


def test_the_published_crop_discards_the_sides_of_wide_images() -> None:
    image = picture(50, 200)
    changed = image.copy()
    changed[:, :60] = 0
    changed[:, -60:] = 255
    published = ScenePreprocessing(height=32, width=32)
    np.testing.assert_array_equal(published.resized(image), published.resized(changed))
    whole = ScenePreprocessing(height=32, width=32, resize="stretch")
    assert not np.array_equal(whole.resized(image), whole.resized(changed))


@pytest.mark.parametrize("size", [(224, 224), (100, 30), (31, 97), (225, 224), (500, 501)])
def test_the_published_crop_is_that_of_the_published_transforms(size: tuple[int, int]) -> None:
    import_open_clip()
    from PIL import Image
    from torchvision import transforms

    image = picture(*size)
    reference = transforms.Compose(
        [transforms.Resize(64, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(64)]
    )
    expected = np.asarray(reference(Image.fromarray(image)))
    np.testing.assert_array_equal(ScenePreprocessing(height=64, width=64).resized(image), expected)


# Published forms


def hugging_face(tower: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """An open_clip tower under the names of the other layout, written out by hand."""
    start = "vision_model."
    result = {
        f"{start}embeddings.class_embedding": tower["class_embedding"],
        f"{start}embeddings.patch_embedding.weight": tower["conv1.weight"],
        f"{start}embeddings.position_embedding.weight": tower["positional_embedding"],
        f"{start}embeddings.position_ids": torch.arange(len(tower["positional_embedding"]))[None],
        "visual_projection.weight": tower["proj"].T.contiguous(),
    }
    for part in ("weight", "bias"):
        result[f"{start}pre_layrnorm.{part}"] = tower[f"ln_pre.{part}"]
        result[f"{start}post_layernorm.{part}"] = tower[f"ln_post.{part}"]
        for layer in range(layers):
            ours, theirs = f"transformer.resblocks.{layer}", f"{start}encoder.layers.{layer}"
            for letter, rows in zip("qkv", tower[f"{ours}.attn.in_proj_{part}"].chunk(3), strict=True):
                result[f"{theirs}.self_attn.{letter}_proj.{part}"] = rows.clone()
            result[f"{theirs}.self_attn.out_proj.{part}"] = tower[f"{ours}.attn.out_proj.{part}"]
            result[f"{theirs}.layer_norm1.{part}"] = tower[f"{ours}.ln_1.{part}"]
            result[f"{theirs}.layer_norm2.{part}"] = tower[f"{ours}.ln_2.{part}"]
            result[f"{theirs}.mlp.fc1.{part}"] = tower[f"{ours}.mlp.c_fc.{part}"]
            result[f"{theirs}.mlp.fc2.{part}"] = tower[f"{ours}.mlp.c_proj.{part}"]
    return result


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights of a published model, of which open_clip is told a small size."""
    open_clip = import_open_clip()
    torch.manual_seed(0)
    known = open_clip.get_model_config("ViT-B-32")
    config = {**known, "vision_cfg": {**known["vision_cfg"], "layers": 2, "width": 64}}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config if name == "ViT-B-32" else None)
    tower = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"], True).half().float()
    folder = tmp_path / "ViT-B-32-openai"
    folder.mkdir()
    tensors = {f"visual.{name}": value.half().contiguous() for name, value in tower.state_dict().items()}
    tensors["text_projection"] = torch.zeros(4, 4)  # the other half of a CLIP is left unread
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def test_an_open_clip_model_is_found_by_name_and_needs_no_text_tower(published: Path) -> None:
    encoder = SceneEncoder.load("ViT-B-32/openai", model_dir=published.parent)
    assert encoder.id == "ViT-B-32/openai"
    assert encoder.dim == 512
    assert encoder.preprocessing == ScenePreprocessing(height=224, width=224)
    assert isinstance(encoder.tower.transformer.resblocks[0].mlp.gelu, QuickGelu)
    by_path = SceneEncoder.load(f"ViT-B-32:{published / 'open_clip_model.safetensors'}")
    assert by_path.id == "ViT-B-32/openai"
    np.testing.assert_array_equal(encoder.embed(picture()), by_path.embed(picture()))


@pytest.mark.parametrize(
    ("dim", "vision", "size"),
    [
        (128, {"image_size": (96, 128), "width": 128, "layers": 4, "head_width": 64, "pool_type": "avg"}, (96, 128)),
        (32, {"image_size": 64, "patch_size": 32, "width": 192, "layers": 2, "mlp_ratio": 4.0}, (64, 64)),
        (768, {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 3}, (224, 224)),  # a slice of ViT-L/14
    ],
)
def test_openais_architecture_is_computed_to_the_bit_as_open_clip_does(
    tmp_path: Path, dim: int, vision: dict[str, object], size: tuple[int, int]
) -> None:
    torch.manual_seed(5)
    theirs = import_open_clip().model._build_vision_tower(dim, vision, True).half().float().eval().requires_grad_(False)
    path = tmp_path / "encoder.safetensors"
    save_scene_encoder(theirs.state_dict(), tiny_settings(embed_dim=dim, open_clip_vision_cfg=vision), path)
    encoder = SceneEncoder.load(path)
    assert isinstance(encoder.tower, SceneTower)
    images = torch.randn(3, 3, *size)
    with torch.inference_mode():
        assert torch.equal(encoder.tower(images), theirs(images))
        assert torch.equal(encoder.tower(images[:1]), theirs(images[:1]))


@pytest.mark.parametrize(
    "change",
    [{"head_width": 32}, {"mlp_ratio": 2.0}, {"norm_kwargs": {"eps": 1e-6}}, {"image_size": 50}, {"layers": 1}],
)
def test_another_architecture_is_left_to_open_clip(tmp_path: Path, change: dict[str, object]) -> None:
    vision = {"image_size": 48, "patch_size": 16, "width": 64, "layers": 2, **change}
    tower = import_open_clip().model._build_vision_tower(DIM, dict(vision), True)
    path = tmp_path / "encoder.safetensors"
    save_scene_encoder(tower.state_dict(), tiny_settings(open_clip_vision_cfg=vision, resize="shortest_crop"), path)
    encoder = SceneEncoder.load(path)
    assert type(encoder.tower).__module__.startswith("open_clip")
    assert encoder.embed(picture()).shape == (DIM,)


def test_weights_of_others_have_the_plain_activation(published: Path) -> None:
    checkpoint = published / "open_clip_model.safetensors"
    encoder = SceneEncoder.load(f"ViT-B-32/laion2b_s34b_b79k:{checkpoint}")
    assert encoder.id == "ViT-B-32/laion2b_s34b_b79k"
    assert type(encoder.tower.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"


def test_the_hugging_face_layout_gives_the_same_embeddings(file: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    open_clip = import_open_clip()
    vision = {"image_size": 48, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32, "mlp_ratio": 2.0}
    tower = open_clip.model._build_vision_tower(DIM, vision, True).half().float()
    ours = tmp_path / "ours.safetensors"
    settings = tiny_settings(open_clip_vision_cfg=vision, resize="shortest_crop")
    save_scene_encoder(tower.state_dict(), settings, ours)
    theirs = tmp_path / "clip-tiny"
    theirs.mkdir()
    save_file(hugging_face(tower.state_dict(), 2), theirs / "model.safetensors")
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 16,
        "hidden_act": "quick_gelu",
    }
    (theirs / "config.json").write_text(json.dumps({"projection_dim": DIM, "vision_config": config}))
    encoder = SceneEncoder.load(theirs)
    assert encoder.id == "clip-tiny"
    expected = SceneEncoder.load(ours).embed(picture())
    np.testing.assert_allclose(encoder.embed(picture()), expected, atol=2e-5 * np.linalg.norm(expected))


# Bad input


def test_a_model_whose_weights_are_not_here_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="semla fetch ViT-L-14-openai"):
        SceneEncoder.load("ViT-L-14/openai", model_dir=tmp_path)
    with pytest.raises(ConfigError, match="ViT-B-32/laion2b_s34b_b79k:<file>"):
        SceneEncoder.load("ViT-B-32/laion2b_s34b_b79k", model_dir=tmp_path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere", "no such file or folder"),
        ("ViT-B-32/unheard-of", "knows no such model"),
        ("ViT-Q-77/openai", "knows no such model"),
        ("ViT-B-32:/nowhere/weights.safetensors", "there is no file"),
    ],
)
def test_an_unknown_encoder_is_named(source: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        SceneEncoder.load(source)
    assert source.split(":")[0] in str(raised.value)


def test_a_truncated_file_is_a_checkpoint_error(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        SceneEncoder.load(file)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ln_post.weight", None, "missing tensors: 1, the first 'ln_post.weight'"),
        ("ln_post.gain", torch.zeros(1), "unexpected tensors: 1, the first 'ln_post.gain'"),
        ("proj", torch.zeros(3, 4), r"'proj' has shape \(3, 4\), expected \(64, 12\)"),
        ("proj", torch.full((64, DIM), torch.nan), "'proj' has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(file: Path, name: str, value: torch.Tensor | None, reason: str) -> None:
    tensors = {key: item for key, item in load_file(file).items() if key != name}
    if value is not None:
        tensors[name] = value
    metadata = {key: item if isinstance(item, str) else json.dumps(item) for key, item in tiny_settings().items()}
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=reason):
        SceneEncoder.load(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_std": [68.5, 66.6, 70.3]},  # on the 0..255 scale
        {"image_mean": [0.5]},
        {"resize": "squeeze"},
        {"embed_dim": "many"},
        {"open_clip_vision_cfg": {"width": 64}},
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "models" / "encoder.safetensors"
    with pytest.raises(ConfigError, match="settings need"):
        save_scene_encoder(to_open_clip(tiny_tower().state_dict()), tiny_settings(**changes), path)
    assert not path.parent.exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="neither"):
        SceneEncoder.load(path)
