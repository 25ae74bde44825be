"""The real pipeline's parts under the protocol, on a small random model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_parts import ALPHA, tiny_adapter, tiny_centroid, write_adapter, write_model

from semla_ros.cli import main
from semla_ros.commands import evaluate
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError
from semla_ros.lab.evaluation.drives import GateDrive, made_drive
from semla_ros.lab.evaluation.following import WAYS
from semla_ros.lab.evaluation.subject import PipelineSpec, PipelineSubject
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame
from semla_ros.segmentation.checkpoint import load_model

SIZE = (72, 96)
ADAPTERS = ("suburb-clear", "old-town-fog", "old-town-night", "old-town-snow")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> PipelineSpec:
    folder = write_model(tmp_path_factory.mktemp("model"))
    library, model = tmp_path_factory.mktemp("library"), load_model(folder).model
    for index, name in enumerate(ADAPTERS):
        layers = tiny_adapter(model, rank=2 + index, seed=100 + index)
        write_adapter(library / name, layers, tiny_centroid(index), alpha=ALPHA)
    inference = InferenceConfig(device="cpu", engine="torch", threads=1)
    return PipelineSpec(
        config=SemlaConfig(model=str(folder), library=str(library), inference=inference),
        retrieval={"top_k": 2, "fade_out_of_library": False},
    )


@pytest.fixture(scope="module")
def subject(spec: PipelineSpec) -> PipelineSubject:
    return spec.load(0)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def test_the_subject_answers_as_the_pipeline_does(spec: PipelineSpec, subject: PipelineSubject) -> None:
    pipeline = PerceptionPipeline.load(spec.config)
    subject.set_classes(pipeline.class_names)
    try:
        for mix in (equal_mix([]), equal_mix(["old-town-fog"]), equal_mix(["old-town-night", "old-town-snow"])):
            pipeline.apply_mix(mix, "test")
            subject.use(mix)
            frame = Frame(image=picture(), stamp_ns=0)
            answer = subject.probabilities(picture(), SIZE).argmax(axis=0)
            assert (answer == pipeline.segment(frame).mask).mean() > 0.999
    finally:
        pipeline.close()


def test_returning_to_a_mix_returns_to_its_bits(subject: PipelineSubject) -> None:
    subject.use(equal_mix(["old-town-fog"]))
    first = subject.probabilities(picture(), SIZE)
    subject.use(equal_mix(["old-town-night"]))
    other = subject.probabilities(picture(), SIZE)
    subject.use(equal_mix(["old-town-fog"]))
    assert (subject.probabilities(picture(), SIZE) == first).all()
    assert (other != first).any()


def test_a_domains_vocabulary_counts_from_the_next_mix(subject: PipelineSubject) -> None:
    subject.set_classes(("sky", "road"))
    subject.use(equal_mix([]))
    assert subject.probabilities(picture(), SIZE).shape == (2, *SIZE)
    subject.set_classes(CLASS_NAMES)
    subject.use(equal_mix([]))
    assert subject.probabilities(picture(), (30, 40)).shape == (len(CLASS_NAMES), 30, 40)


def test_settings_given_replace_those_of_the_library(subject: PipelineSubject) -> None:
    assert subject.recommended.top_k == 2
    mix = subject.retriever(subject.recommended).retrieve(subject.centroids[0], ("old-town-fog",))
    assert len(mix.names) == 2
    assert "old-town-fog" not in mix.names
    assert "top_k 2" in subject.description["retrieval"]
    assert subject.retriever(subject.recommended, as_published=True).retrieve(subject.centroids[0] + 1).base_weight == 0


def test_the_command_runs_the_world_on_the_real_parts(spec: PipelineSpec, tmp_path: Path, capsys) -> None:
    path = tmp_path / "results.json"
    options = ["--model", spec.config.model, "--library", spec.config.library, "--device", "cpu", "--workers", "1"]
    domains = ["--domains", "old-town-fog", "old-town-night", "monsoon-rain", "clear"]
    assert main(["evaluate", *options, *domains, "--images", "1", "--json", str(path)]) == 0
    results = json.loads(path.read_text())
    assert list(results["domains"]) == ["old-town-fog", "old-town-night"]
    assert list(results["unseen"]) == ["monsoon-rain"]
    assert list(results["source"]) == ["clear"]
    assert set(results["weights"]["old-town-fog"][0]["semla_without_own"]) <= {*ADAPTERS, "base model"} - {
        "old-town-fog"
    }
    assert "h-mean" in capsys.readouterr().out


def test_a_drive_is_followed_by_the_real_model(
    spec: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One small rendered drive; photographs beside it."""
    parts = [("fog", 5.0), ("night", 5.0)]
    drive = GateDrive(
        name="short", kind="tunnel", drive=made_drive("old-town", 3, parts), duration_s=10.0, events_s=(5.0,)
    )
    monkeypatch.setattr(evaluate, "make_drives", lambda seed, kinds: [drive])
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    path, table = tmp_path / "out" / "drive.json", tmp_path / "out" / "drive.md"
    options = ["--model", spec.config.model, "--library", spec.config.library, "--device", "cpu", "--images", "3"]
    options += ["--json", str(path), "--markdown", str(table), "--frames", str(tmp_path), "--frame-rate", "2"]
    assert main(["evaluate", "--drive", "tunnel", "--seeds", "4", *options]) == 0
    results = json.loads(path.read_text())
    rows = results["drives"]["4: short"]
    assert list(rows) == list(WAYS)
    assert rows["base model"]["fusions"] == 0
    assert rows["every look"]["fusions"] == 19
    assert (rows["oracle"]["wrong_family"], rows["oracle"]["delay_s"]) == (0.0, 0.5)
    assert all(0 <= row["miou"] <= 1 for row in rows.values())
    assert results["photographs"]["every look"]["fusions"] == 2
    assert results["photographs"]["every look"]["off_the_looks"] == 0.0
    assert table.read_text().startswith("| drive | followed by | fusions/min |")
    out = capsys.readouterr().out
    assert "photographs" in out
    assert "former gate" in out


def test_a_missing_model_is_one_clear_line(capsys) -> None:
    assert main(["evaluate", "--model", "no-such-model", "--images", "1"]) == 2
    assert "model 'no-such-model' was not found" in capsys.readouterr().err


def test_a_bad_setting_is_told_before_anything_is_loaded(capsys) -> None:
    assert main(["evaluate", "--model", "no-such-model", "--top-k", "0"]) == 2
    assert "'top_k' must be at least 1" in capsys.readouterr().err
    for options, words in (
        (["--drive", "steady", "--frame-rate", "0"], "'--frame-rate' must be above 0"),
        (["--frames", "."], "'--frames' is measured with '--drive'"),
        (["--drive", "uphill"], "no drive named 'uphill'; known: steady, slow"),
    ):
        assert main(["evaluate", "--model", "no-such-model", *options]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ConfigError):
        SemlaConfig(inference=InferenceConfig(threads=-1))
