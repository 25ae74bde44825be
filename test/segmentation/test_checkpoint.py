import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from semla_ros.errors import CheckpointError
from semla_ros.lab.training.weights_files import save_model
from semla_ros.segmentation.aggregation_layers import AggregatorConfig
from semla_ros.segmentation.checkpoint import LoadedModel, load_model, read_weights
from semla_ros.segmentation.clip import ClipConfig, to_open_clip
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.text_prompts import Vocabulary

NAMES = ("road", "sky")
HEAD = "sem_seg_head.predictor.transformer.head.bias"
CLIP = "sem_seg_head.predictor.clip_model."


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_texts([f"a photo of a {name} in the scene" for name in NAMES], context_length=12)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> CatSeg:
    """A random model on a grid that is not square."""
    torch.manual_seed(0)
    clip = ClipConfig(
        patch=8,
        visual_width=64,
        visual_layers=3,
        native_grid=(2, 4),
        working_grid=(4, 6),
        embed_dim=16,
        text_width=64,
        text_layers=1,
        context_length=12,
        vocab_rows=len(vocabulary),
        pool="avg",
    )
    aggregator = AggregatorConfig(
        grid=(4, 6),
        hidden_dim=16,
        heads=2,
        window=2,
        pad_len=0,
        embed_dim=16,
        text_guidance_dim=8,
        appearance_guidance_dim=8,
        decoder_dims=(16, 16),
        decoder_guidance_dims=(8, 8),
        decoder_guidance_proj_dims=(4, 4),
    )
    config = CatSegConfig(clip=clip, aggregator=aggregator, guidance_layers=(0, 1), sliding=None, probability="softmax")
    return CatSeg(config).eval()


@pytest.fixture
def saved(tmp_path: Path, model: CatSeg, vocabulary: Vocabulary) -> Path:
    path = tmp_path / "models" / "toy" / "segmenter.safetensors"
    save_model(
        model,
        path,
        class_names=NAMES,
        vocabulary=vocabulary,
        template="a photo of a {} in the scene",
        model_id="toy",
        extra={"steps": 3},
    )
    return path


def rewrite(source: Path, target: Path, change) -> Path:
    """Write a safetensors file again with its tensors changed in place."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, target, metadata=metadata)
    return target


def assert_same_weights(loaded: LoadedModel, model: CatSeg) -> None:
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        assert torch.equal(state[name], expected.half().float()), name


def test_a_saved_model_comes_back_with_all_that_belongs_to_it(saved: Path, model, vocabulary) -> None:
    loaded = load_model(saved.parent)
    assert_same_weights(loaded, model)
    assert loaded.model.config == model.config
    assert loaded.class_names == NAMES
    assert loaded.tokenizer.bpe_ids == vocabulary.bpe_ids
    assert (loaded.template, loaded.model_id, loaded.metadata) == ("a photo of a {} in the scene", "toy", {"steps": 3})
    assert len(loaded.sha256) == 64
    assert not any(item.requires_grad for item in loaded.model.parameters())
    ids = loaded.tokenizer.tokenize(loaded.class_names, loaded.template)
    assert loaded.model(torch.zeros(1, 3, 32, 48), loaded.model.encode_text(ids)).shape == (1, 2, 16, 24)


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_again_gives_the_same_bytes_and_leaves_nothing_else(saved: Path, model, vocabulary) -> None:
    before = saved.read_bytes()
    assert_same_weights(load_model(saved), model)
    save_model(
        model,
        saved,
        class_names=NAMES,
        vocabulary=vocabulary,
        template="a photo of a {} in the scene",
        model_id="toy",
        extra={"steps": 3},
    )
    assert saved.read_bytes() == before
    assert [item.name for item in saved.parent.iterdir()] == [saved.name]


def test_a_training_checkpoint_loads_under_each_of_its_spellings(tmp_path: Path, saved: Path, model) -> None:
    published = load_file(saved)
    assert f"{CLIP}visual.transformer.resblocks.0.attn.q_proj_weight" in published
    aliases = {name.replace("_proj_weight", "_proj.weight"): item for name, item in published.items()}
    fused = to_open_clip(aliases)
    assert f"{CLIP}visual.transformer.resblocks.0.attn.in_proj_weight" in fused
    for number, tensors in enumerate((published, published | aliases, fused)):
        path = tmp_path / f"model_{number}.pth"
        content = {"model": tensors, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}, "iteration": 79999}
        torch.save(content, path, _use_new_zipfile_serialization=number != 1)
        loaded = load_model(path, config=model.config)
        assert_same_weights(loaded, model)
        assert loaded.model_id == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(HEAD), f"1 missing: {HEAD}"),
        (lambda tensors: tensors.update(stranger=torch.zeros(1)), "1 unexpected: stranger"),
        (lambda tensors: tensors.update({HEAD: torch.zeros(2)}), r"head.bias \(2,\) instead of \(1,\)"),
        (lambda tensors: tensors.update({HEAD: torch.tensor([float("nan")])}), f"'{HEAD}' holds values that are not"),
        (lambda tensors: tensors.pop(CLIP + "visual.proj"), "1 missing: .*visual.proj"),
        (
            lambda tensors: tensors.update({CLIP + "text_projection": torch.zeros(64, 8)}),
            r"text_projection \(64, 8\) instead of \(64, 16\)",
        ),
        (
            lambda tensors: tensors.update({CLIP + "positional_embedding": torch.zeros(9, 64)}),
            r"positional_embedding \(9, 64\) instead of \(12, 64\)",
        ),
        (
            lambda tensors: tensors.update(
                {f"{CLIP}transformer.resblocks.0.attn.q_proj.weight": torch.ones(64, 64).half()}
            ),
            "and its alias .* hold different values",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path: Path, saved: Path, change, message: str) -> None:
    path = rewrite(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 5, 0.5])
def test_a_truncated_file_is_one_clear_line(tmp_path: Path, saved: Path, suffix: str, kept: float) -> None:
    whole = saved
    if suffix == ".pth":
        whole = tmp_path / "whole.pth"
        torch.save({"model": load_file(saved)}, whole)
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * kept) if kept < 1 else int(kept)])
    with pytest.raises(CheckpointError) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [(), ("model",), ("state_dict",), ("model_state_dict",), ("model", "state_dict")])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
def test_weights_are_found_however_training_wrapped_them(
    tmp_path: Path, saved: Path, suffix: str, wrapper: tuple[str, ...], prefix: str
) -> None:
    expected = load_file(saved)
    content: dict[str, Any] = {prefix + name: tensor for name, tensor in expected.items()}
    for key in reversed(wrapper):
        content = {"epoch": 3, "optimizer": {}, key: content}
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=suffix != ".pt")
    tensors, metadata = read_weights(path)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert metadata == {}


def test_content_and_not_the_name_says_what_a_file_is(tmp_path: Path, saved: Path) -> None:
    expected = load_file(saved)
    renamed = tmp_path / "weights.pth"
    renamed.write_bytes(saved.read_bytes())
    assert load_model(renamed).model_id == load_model(saved).model_id
    tiny, starts = tmp_path / "tiny.safetensors", set()
    for length in range(0, 256, 8):  # one header's length begins with the first byte of a pickle
        save_file({"weight": torch.ones(3)}, tiny, metadata={"x": "y" * (length + 200)})
        starts.add(tiny.read_bytes()[0])
        assert read_weights(tiny)[0].keys() == {"weight"}
    assert 0x80 in starts
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"state_dict": expected}, pickled)
    assert read_weights(pickled)[0].keys() == expected.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run 'git lfs pull'"),
        (b"", "not a whole safetensors file"),
        (b"<!DOCTYPE html>" + bytes(99), "not a whole safetensors file"),
        (b"PK\3\4" + bytes(99), "cannot be read"),
        (b"\x80\2" + bytes(99), "fetch"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_stands_in_place_of_weights_is_named(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_whatever_is_done_to_a_checkpoint_it_is_read_or_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    path, wholes = tmp_path / "weights.pth", []
    for is_zip in (True, False):
        torch.save({"state_dict": {"module.a.weight": torch.ones(40), "module.b": torch.zeros(3)}}, path,
                   _use_new_zipfile_serialization=is_zip)  # fmt: skip
        wholes.append(path.read_bytes())
    save_file({"a.weight": torch.ones(40)}, path)
    wholes.append(path.read_bytes())
    for index in range(600):
        data = bytearray(wholes[index % 3])
        place = int(rng.integers(len(data)))
        if index % 2:
            data[place] = int(rng.integers(256))
        else:
            del data[place : place + int(rng.integers(1, 200))]
        path.write_bytes(bytes(data))
        with contextlib.suppress(CheckpointError):
            read_weights(path)


class Surprise:
    """An object that a pickle could run code through."""


def test_a_pickle_with_anything_but_tensors_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": {"weight": Surprise()}}, path)
    with pytest.raises(CheckpointError, match="objects other than tensors"):
        load_model(path)
    torch.save({"model": {"weight": 3}}, path)
    with pytest.raises(CheckpointError, match="something else under weight"):
        load_model(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="dictionary with the weights under 'model'"):
        load_model(path)


def test_a_foreign_file_of_unknown_size_needs_to_be_told_what_tensors_cannot(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(load_file(saved), path)
    with pytest.raises(CheckpointError, match="visual width 64 is of no published model"):
        load_model(path)
    save_file({"stranger": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"of no kind of model that is installed \(catseg"):
        load_model(path)


def test_folders_and_missing_files_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model file"):
        load_model(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"segmenter.safetensors or a single checkpoint in it, found 0"):
        load_model(tmp_path)


def test_weights_beyond_half_precision_are_not_written(tmp_path: Path, model, vocabulary) -> None:
    broken = CatSeg(model.config)
    broken.upsample1.bias.data.fill_(1e6)
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"'upsample1.bias' has values that are not finite in half precision"):
        save_model(broken, path, class_names=NAMES, vocabulary=vocabulary, model_id="toy")
    assert not list(tmp_path.iterdir())


def test_the_header_is_plain_json(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["semla"])
    assert header["class_names"] == list(NAMES)
    assert header["config"]["probability"] == "softmax"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("[" * 100_000, "its header is no JSON"),
        ("{", "its header is no JSON"),
        ("[]", "its header must be a mapping, got list"),
        ("null", "its header must be a mapping, got NoneType"),
        ('{"config": []}', "'config' of its header must be a dict"),
        ('{"config": {"clip": 3}}', "'config' of its header cannot be that of a model"),
        ('{"config": {"clip": {"patch": "a"}}}', "'config' of its header cannot be that of a model"),
        ('{"config": {"colour": 1}}', "unknown model setting 'colour'"),
        ('{"class_names": "road"}', "'class_names' of its header must be a list of str"),
        ('{"class_names": [1]}', "'class_names' of its header must be a list of str"),
        ('{"token_rows": [true]}', "'token_rows' of its header must be a list of int"),
        ('{"template": 3}', "'template' of its header must be a str"),
        ('{"model_id": {}}', "'model_id' of its header must be a str"),
        ('{"extra": 1}', "'extra' of its header must be a dict"),
    ],
)
def test_a_header_that_says_nonsense_is_named(saved: Path, tmp_path: Path, header: str, words: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file(load_file(saved), path, metadata={"semla": header})
    with pytest.raises(CheckpointError, match=re.escape(words)) as raised:
        load_model(path)
    assert str(path) in str(raised.value)


def test_what_a_header_leaves_open_is_as_where_it_is_not_there(saved: Path, tmp_path: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["semla"])
    path = tmp_path / "other.safetensors"
    nothing = dict.fromkeys(("class_names", "token_rows", "template", "model_id", "extra"))
    save_file(load_file(saved), path, metadata={"semla": json.dumps({"config": header["config"], **nothing})})
    loaded = load_model(path)
    assert (loaded.class_names, loaded.template, loaded.model_id, loaded.metadata) == ((), "single", "other", {})
