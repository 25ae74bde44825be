"""SED against its reference set: text, stages, final maps, early rejection, training, LoRA, keys.

`SEMLA_GOLDEN_SED_DIR` names another set of the same layout.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from reference_set import largest_error, read_arrays, read_json
from sed_set import EVERY, SedSet, assert_close, published_maps, told_config
from torch import Tensor

from semla_ros.adaptation.fusion import Fuser
from semla_ros.lab.training.weights_files import save_model
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.domain_statistics import statistics_name
from semla_ros.results import AdapterMix
from semla_ros.segmentation.checkpoint import read_weights
from semla_ros.segmentation.inference import normalise, resize
from semla_ros.segmentation.one_image import segment_probabilities
from semla_ros.segmentation.sed import Sed, SedConfig
from semla_ros.segmentation.targets import lora_signature
from semla_ros.segmentation.text_prompts import templates

GIVEN = Path(__file__).parent / "sed_data"
KEYS = GIVEN / "keys"  # facts of the published sizes, not of a reference set
SIZES = {"convnext_b": SedConfig.sed_b, "convnext_l": SedConfig.sed_l}
MAP_TOLERANCE = TEXT_TOLERANCE = 2e-5
STAGE_TOLERANCE = 1e-5  # relative to the tensor's largest value
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3  # relative
FINAL = re.compile(
    r"(?:work(?P<rows>\d+)x(?P<columns>\d+)_)?"
    r"(?:(?P<head>other_head)_|pool(?P<pool>\d+)_|(?P<one>one_class)_|(?P<lora>lora(?:_cached_text)?)_"
    r"|(?P<classes>mid|many)_(?:full|fast(?P<fast>\d+))_)?"
    r"img(?P<image>\d+)_(?:own_size_every(?P<step>\d+)|out(?P<height>\d+)x(?P<width>\d+))"
)


@pytest.fixture(scope="module")
def golden() -> SedSet:
    folder = Path(os.environ.get("SEMLA_GOLDEN_SED_DIR") or GIVEN)
    if not (folder / "config.json").is_file():
        pytest.skip(f"the reference set of SED is not in {folder}")
    return SedSet(folder)


@pytest.fixture(scope="module")
def model(golden: SedSet) -> Sed:
    return sed(golden.load().model)


def sed(model: object) -> Sed:
    assert isinstance(model, Sed)
    return model


def finals(golden: SedSet, wanted: str) -> list[tuple[str, re.Match[str]]]:
    """Final maps of one family, by the name of its group in `FINAL`; "" for those of none."""
    groups = ("head", "pool", "one", "lora", "classes")
    found = [(name, match) for name in golden.variants if (match := FINAL.fullmatch(name))]
    return [(name, match) for name, match in found if next((group for group in groups if match[group]), "") == wanted]


def maps_of(golden: SedSet, model: Sed, text: Tensor, match: re.Match[str], expected: np.ndarray) -> None:
    """Hold one entry against the model."""
    image = golden.image(int(match["image"]))
    size = (int(match["rows"]), int(match["columns"])) if match["rows"] else None
    with torch.no_grad():
        logits = model(golden.view(image, model.config, size), text)[0]
    step = int(match["step"] or 1)
    own = (int(match["height"]), int(match["width"])) if match["height"] else (image.shape[1], image.shape[2])
    maps = published_maps(logits, image, own)[..., ::step, ::step]
    assert largest_error(maps, expected) <= MAP_TOLERANCE, match.string


def test_every_entry_of_the_set_is_read_by_a_test(golden: SedSet) -> None:
    kept = re.compile(r"(work\d+x\d+_)?(mid|many)_fast\d+_kept\d+")
    others = [name for name in golden.variants if not FINAL.fullmatch(name) and not kept.fullmatch(name)]
    assert [name for name in others if not re.fullmatch(r"other_head_dense(_every\d+)?", name)] == []


# Text


def test_the_templates_are_the_published_ones_in_their_order(golden: SedSet) -> None:
    assert list(templates("imagenet")) == golden.config["templates"]


def test_prompts_become_the_published_token_ids(golden: SedSet) -> None:
    ids = golden.vocabulary.tokenize(golden.config["classes"], "imagenet")
    published = [golden.tokens[f"prompt_{name}"] for name in ("class", "template", "synonym", "rows")]
    seen = torch.zeros_like(ids)
    for index, template, synonym, row in zip(*published, strict=True):
        seen[index, template, synonym] = torch.from_numpy(row)
    assert torch.equal(ids, seen)


def test_a_prompt_that_is_too_long_is_cut(golden: SedSet) -> None:
    ids = golden.vocabulary.tokenize([golden.config["long_class"]], "imagenet")
    assert np.array_equal(ids[0, 0].numpy(), golden.tokens["long_rows"])


def test_class_embeddings_match(golden: SedSet, model: Sed) -> None:
    for name, expected in golden.text.items():
        match = EVERY.fullmatch(name)
        assert match
        names = {"base": golden.config["classes"], "long": [golden.config["long_class"]]}
        classes = names.get(match["name"]) or golden.config[f"{match['name']}_classes"]
        with torch.no_grad():
            embeddings = model.encode_text(golden.vocabulary.tokenize(classes, "imagenet"))
        step = int(match["step"] or 1)
        assert largest_error(embeddings[:, ::step], expected) <= TEXT_TOLERANCE, name


# Stages


@pytest.fixture(scope="module", params=[True, False], ids=["rewritten", "literal"])
def activations(request: pytest.FixtureRequest, golden: SedSet, model: Sed) -> Mapping[str, Tensor]:
    """What the model computes on the way, by the names of the reference file, the batch axis dropped."""
    seen: dict[str, Tensor] = {}
    handles = []

    def record(name: str, module: torch.nn.Module, keep: Any = lambda output: output[0]) -> None:
        handles.append(module.register_forward_hook(lambda _m, _i, output: seen.__setitem__(name, keep(output))))

    def before(name: str, module: torch.nn.Module, keep: Any = lambda inputs: inputs[0]) -> None:
        handles.append(module.register_forward_pre_hook(lambda _m, inputs: seen.__setitem__(name, keep(inputs))))

    every = lambda output: output  # noqa: E731
    trunk, decoder = model.clip.visual.trunk, model.decoder  # type: ignore[union-attr]
    record("stem", trunk.stem)  # type: ignore[union-attr, arg-type]
    for index, stage in enumerate(trunk.stages):  # type: ignore[union-attr, arg-type]
        record(f"res{index + 2}", stage)
    record("res3_downsampled", trunk.stages[1].downsample)  # type: ignore[union-attr, index]
    record("dense", model.clip.visual, lambda output: output[0][0])  # type: ignore[arg-type]
    before("cost", decoder, lambda inputs: inputs[0][0].transpose(0, 1))
    record("conv1", decoder.conv1, every)
    for index, step in enumerate(decoder.steps):
        record(f"guidance{index}", decoder.decoder_guidance_projection[index])
        record(f"cost_guidance{index}", decoder.decoder_corr_guidance_projection[index], every)
        record(f"step{index + 1}_mixed", step.cnext, every)
        record(f"step{index + 1}_classes", step.attention, lambda output: output[0].permute(0, 3, 1, 2))
        record(f"step{index + 1}_up", step.up, every)
        before(f"step{index + 1}_conv1", step.conv.double_conv[1])
        record(f"step{index + 1}", step.conv, every)
    view = golden.view(golden.image(0), model.config)
    seen["input"] = view[0]
    seen["input_mean_std"] = torch.stack([view[0].mean(dim=(1, 2)), view[0].std(dim=(1, 2))])
    auxiliary: list[Tensor] = []
    decoder.exact_rewrites = request.param
    with torch.no_grad():
        seen["logits"] = model(view, golden.classes("base", model), auxiliary=auxiliary)[0]
    decoder.exact_rewrites = True
    for handle in handles:
        handle.remove()
    return seen | {f"aux{index}": logits[0] for index, logits in enumerate(auxiliary)}


def test_every_stage_matches(golden: SedSet, activations: Mapping[str, Tensor]) -> None:
    assert golden.stages
    for name, expected in golden.stages.items():
        match = EVERY.fullmatch(name)
        assert match
        step = int(match["step"] or 1)
        actual = activations[match["name"]]
        assert_close(actual[..., ::step, ::step] if match["step"] else actual, expected, STAGE_TOLERANCE, name)


# Final maps


@pytest.mark.parametrize("family", ["", "one"])
def test_final_maps_match(golden: SedSet, model: Sed, family: str) -> None:
    found = finals(golden, family)
    assert found
    for name, match in found:
        text = golden.classes("base", model)
        maps_of(golden, model, text[1:2] if family else text, match, golden.variants[name])


def test_maps_of_our_own_inference_are_the_published_ones_where_nothing_is_cut_or_shrunk(
    golden: SedSet, model: Sed
) -> None:
    compared = 0
    for name, match in finals(golden, ""):
        image = golden.image(int(match["image"]))
        height, width = model.config.working_resolution
        is_cut = image.shape[1] < height // 4 or image.shape[2] < width // 4
        if match["rows"] or match["step"] or is_cut or image.shape[1] > height or image.shape[2] > width:
            continue
        size = (int(match["height"]), int(match["width"]))
        maps = segment_probabilities(
            model, image.float(), golden.classes("base", model), size
        )  # bytes would be rounded
        assert largest_error(maps, golden.variants[name]) <= MAP_TOLERANCE, name
        compared += 1
    assert compared


def test_an_image_smaller_than_the_maps_is_not_cut(golden: SedSet, model: Sed) -> None:
    rows, columns = (side // 8 for side in model.config.working_resolution)  # half of what the maps have
    image, size = golden.image(0)[:, :rows, :columns], (rows // 2, columns // 2)
    text = golden.classes("base", model)
    with torch.no_grad():
        logits = model(golden.view(image, model.config), text)[0]
    ours = segment_probabilities(model, image.float(), text, size)
    assert largest_error(ours, resize(logits.sigmoid()[None], size)[0].numpy()) <= MAP_TOLERANCE
    assert (ours - published_maps(logits, image, size)).abs().max() > 10 * MAP_TOLERANCE


def test_the_other_image_head_matches(golden: SedSet, tmp_path: Path) -> None:
    other = sed(golden.load(head="other_head.safetensors", path=tmp_path / "other.pth").model)
    assert other.config.head != told_config(golden.config).head
    for name, match in finals(golden, "head"):
        maps_of(golden, other, golden.classes("base", other), match, golden.variants[name])
    (name,) = (name for name in golden.variants if name.startswith("other_head_dense"))
    step = int(EVERY.fullmatch(name)["step"] or 1)  # type: ignore[index]
    with torch.no_grad():
        dense = other.clip.visual(golden.view(golden.image(0), other.config))[0][0]
    assert_close(dense[..., ::step, ::step], golden.variants[name], STAGE_TOLERANCE, name)


def test_pooled_class_attention_matches(golden: SedSet) -> None:
    found = finals(golden, "pool")
    assert found
    for name, match in found:
        pooled = sed(golden.load(pooling=(int(match["pool"]),) * 2).model)
        maps_of(golden, pooled, golden.classes("base", pooled), match, golden.variants[name])


# Early rejection


@pytest.mark.parametrize("classes", ["mid", "many"])
def test_early_rejection_keeps_the_published_classes_and_maps(golden: SedSet, classes: str) -> None:
    model = sed(golden.load().model)
    kept: list[np.ndarray] = []
    contenders = model.decoder.contenders

    def recorded(logits: Tensor) -> Tensor:
        chosen = contenders(logits)
        kept.append((kept[-1] if kept else np.arange(len(logits)))[chosen.numpy()])
        return chosen

    model.decoder.contenders = recorded  # type: ignore[method-assign]
    found = [(name, match) for name, match in finals(golden, "classes") if match["classes"] == classes]
    assert any(match["fast"] for _, match in found)
    for name, match in found:
        kept.clear()
        model.decoder.top_k = int(match["fast"] or 0)
        maps_of(golden, model, golden.classes(match["classes"], model), match, golden.variants[name])
        prefix = name[: name.index("_img")]
        expected = [item for item in golden.variants if item.startswith(f"{prefix}_kept")]
        assert len(expected) == len(kept)
        for item in expected:
            assert np.array_equal(kept[int(item.rpartition("kept")[2])], golden.variants[item]), item


# LoRA


def test_an_adapter_acts_everywhere_and_on_the_text_only_where_it_is_computed_anew(
    golden: SedSet, tmp_path: Path
) -> None:
    (source,) = (golden.folder / "adapters").iterdir()
    shutil.copytree(source, tmp_path / source.name)
    centroid = np.ones((1, 4), np.float32)  # the set has none
    np.savez(tmp_path / source.name / statistics_name(source.name), train_average_embedding=centroid)
    model = sed(golden.load(adapts_text=True).model)
    library = AdapterLibrary.load(tmp_path, targets=lora_signature(model))
    layers = set(library.adapter(source.name).layers)
    assert any(path.startswith(model.text_tower) for path in layers)
    assert any(not path.startswith(model.text_tower) for path in layers)
    tokens = golden.vocabulary.tokenize(golden.config["classes"], "imagenet")
    cached = golden.classes("base", model)
    fuser = Fuser(model, library, tokens)
    one = AdapterMix(names=(source.name,), weights=np.ones(1), distances=np.full(1, np.nan), base_weight=0.0)
    prepared = fuser.prepare(one)
    fuser.commit(prepared)
    found = finals(golden, "lora")
    assert {match["lora"] for _, match in found} == {"lora", "lora_cached_text"}
    for name, match in found:
        text = prepared.text_features if match["lora"] == "lora" else cached
        maps_of(golden, model, text, match, golden.variants[name])


# Training


def test_training_losses_and_gradients_match(golden: SedSet) -> None:
    reference = read_json(golden.folder / "train.json")
    labels = torch.from_numpy(read_arrays(golden.folder / "train_inputs.npz")["labels"]).long()
    rows, columns = reference["pooling"]
    model = sed(golden.load(pooling=(rows, columns)).model).requires_grad_(True)
    text = golden.classes("base", model)
    crops = [crop(golden, reference["crops"][f"crop{index}"]) for index in range(len(labels))]
    images = normalise(torch.stack(crops), model.config)
    height, width = images.shape[-2:]
    images = resize(F.pad(images, (0, -width % 32, 0, -height % 32)), model.config.working_resolution)
    auxiliary: list[Tensor] = []
    logits = [model.train()(images, text, auxiliary=auxiliary), *auxiliary]
    wanted = (labels[:, None] == torch.arange(len(text))[:, None, None]).float()  # ignored pixels are of no class
    losses = [
        F.binary_cross_entropy_with_logits(resize(item, (labels.shape[1], labels.shape[2])), wanted) for item in logits
    ]
    torch.stack(losses).sum().backward()
    expected = [reference["losses"][f"loss_sem_seg_{index}"] for index in range(len(losses))]
    assert [loss.item() for loss in losses] == pytest.approx(expected, rel=LOSS_TOLERANCE)
    gradients = {name: item.grad for name, item in model.named_parameters()}
    for name, norm in reference["gradient_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=GRADIENT_TOLERANCE), name  # type: ignore[union-attr]
    without = {name: item.detach() for name, item in model.named_parameters() if item.grad is None}
    untouched = model.published_names(without)
    assert len(untouched) == reference["without_gradient"]["count"]
    assert set(reference["without_gradient"]["names"]) <= untouched.keys()


def crop(golden: SedSet, spelled: str) -> Tensor:
    """A crop such as "img0[:, 0:96, 0:128]"."""
    match = re.fullmatch(r"img(\d+)\[:, (\d+):(\d+), (\d+):(\d+)\]", spelled)
    assert match
    image, top, bottom, left, right = map(int, match.groups())
    return golden.image(image)[:, top:bottom, left:right]


# Checkpoints


def test_the_shapes_of_a_checkpoint_tell_its_architecture(golden: SedSet) -> None:
    tensors, _ = read_weights(golden.folder / "checkpoint.safetensors")
    told, found = told_config(golden.config), SedConfig.of_tensors(Sed.own_names(tensors))
    unread = {"heads": told.decoder.heads, "pooling": told.decoder.pooling}  # which no shape tells
    decoder = told.decoder.__class__(**{**vars(found.decoder), **unread})
    assert vars(found) | {"decoder": decoder, "working_resolution": told.working_resolution} == vars(told)


def test_a_model_that_was_saved_comes_back(golden: SedSet, model: Sed, tmp_path: Path) -> None:
    loaded = golden.load()
    save_model(model, tmp_path / "own.safetensors", class_names=(), vocabulary=golden.vocabulary, model_id="toy")
    again, _ = read_weights(tmp_path / "own.safetensors")
    published, _ = read_weights(golden.folder / "checkpoint.safetensors")
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], published[name]) for name in published)
    assert loaded.template == "imagenet"


@pytest.mark.parametrize("size", SIZES)
def test_every_published_tensor_has_its_place_and_no_place_stays_empty(size: str) -> None:
    shapes = read_json(KEYS / f"{size}_state_dict.json")
    tensors = Sed.own_names({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    with torch.device("meta"):
        model = Sed.build(None, tensors)
    assert model.config == SIZES[size]()
    assert model.published_id == f"sed-{size[-1]}"
    assert {name: item.shape for name, item in tensors.items()} == {
        name: item.shape for name, item in model.state_dict().items()
    }


@pytest.mark.parametrize("size", SIZES)
def test_adapter_targets_are_linear_modules_of_the_published_sizes(size: str) -> None:
    published = {
        name: (item["out_features"], item["in_features"])
        for name, item in read_json(KEYS / f"{size}_linear_modules.json").items()
        if ".visual.head." not in name
    }
    with torch.device("meta"):
        usual, every = Sed(SIZES[size]()), Sed(SedConfig(**{**vars(SIZES[size]()), "adapts_text": True}))
    assert lora_signature(every) == published
    own = {name: size for name, size in published.items() if not name.startswith(Sed.text_tower)}
    assert lora_signature(usual) == own


def test_parameter_counts_are_the_published_ones() -> None:
    counts = {}
    for size, make in SIZES.items():
        with torch.device("meta"):
            counts[size] = round(sum(item.numel() for item in Sed(make()).parameters()) / 1e6, 1)
    assert counts == {"convnext_b": 180.8, "convnext_l": 353.2}
