"""What `semla_ros.__all__` offers, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import semla_ros
from semla_ros import Library, Pipeline, Result, SemlaError
from semla_ros.lab.world.domains import domain_named, split_seed
from semla_ros.results import ImageArray

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ("harbour-dusk", "boulevard-clear-night", "suburb-clear", "garage-indoor")


def scene(domain: str, index: int = 0) -> ImageArray:
    return domain_named(domain).scene(split_seed("test", index)).render(128, 96).image


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return Pipeline("semla-tiny", device="cpu", threads=1)


@pytest.fixture
def tiny(tiny_model_folder: Path, library_copy: Path) -> Pipeline:
    return Pipeline(str(tiny_model_folder), library=library_copy, device="cpu", threads=1)


def test_the_public_names_are_there_and_cost_nothing_before_they_are_used() -> None:
    for name in semla_ros.__all__:
        assert getattr(semla_ros, name) is not None
    assert set(semla_ros.__all__) <= set(dir(semla_ros))
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        _ = semla_ros.Pipelin
    source = "import semla_ros, sys; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True)


def test_the_first_lines_of_the_readme_run_as_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len([line for line in block.splitlines() if line]) == 5
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene("harbour-dusk")).save("photo.jpg", quality=95)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    result = next(value for value in names.values() if isinstance(value, Result))
    assert result.mix.heaviest == "harbour-dusk"
    assert np.array_equal(np.asarray(Image.open("out/photo_mask.png")), result.mask)
    assert Image.open("out/photo_overlay.png").size == (128, 96)


def test_an_answer_says_what_it_is_and_why(shipped: Pipeline, tmp_path: Path) -> None:
    image = scene("harbour-dusk")
    result = shipped(image)
    assert result.mask.shape == result.confidence.shape == (96, 128)
    assert result.confidence.dtype == np.float32
    assert 0 <= result.confidence.min() <= result.confidence.max() <= 1
    assert result.classes == shipped.classes
    assert sum(result.shares.values()) == pytest.approx(1)
    assert list(result.shares.values()) == sorted(result.shares.values(), reverse=True)
    assert result.shares["road"] == pytest.approx((result.mask == result.classes.index("road")).mean())
    assert set(result.distances) == set(Library().names)
    assert next(iter(result.distances)) == result.mix.names[0] == "harbour-dusk"
    assert not result.is_out_of_library
    overlaid = np.asarray(result.overlay())
    assert overlaid.shape == image.shape
    assert not np.array_equal(overlaid, image)
    assert np.array_equal(np.asarray(result.overlay(alpha=0)), image)
    files = result.save(tmp_path / "made" / "here", "dusk")
    assert [path.name for path in files.values()] == ["dusk_mask.png", "dusk_overlay.png"]
    html = result._repr_html_()
    assert ("<p>" + html).startswith("<p><figure")
    assert "data:image/png;base64," in html
    for words in ("road", "harbour-dusk"):
        assert words in html
        assert words in repr(result)


def test_a_picture_of_nothing_known_is_out_of_the_library(shipped: Pipeline) -> None:
    stripes = np.zeros((96, 128, 3), np.uint8)
    stripes[:, ::8] = (255, 0, 255)
    result = shipped(stripes)
    assert result.is_out_of_library
    assert result.mix.base_weight > 0.5
    assert "outside the library" in repr(result)
    assert "outside the library" in result._repr_html_()
    assert shipped(scene("harbour-dusk")).is_out_of_library is False


def test_images_without_a_stamp_are_scenes_of_their_own(shipped: Pipeline) -> None:
    images = [scene(domain) for domain in DOMAINS]
    results = [shipped(image) for image in images]
    assert [result.mix.heaviest for result in results] == list(DOMAINS)
    again = [shipped(image) for image in reversed(images)][::-1]
    for one, other in zip(results, again, strict=True):
        assert one.mix.id == other.mix.id
        assert np.array_equal(one.mask, other.mask)


def test_images_of_a_drive_change_the_mix_only_where_the_scene_does(shipped: Pipeline) -> None:
    shipped(scene("harbour-dusk"), stamp_s=100.0)
    before = shipped.mix.id
    assert shipped(scene("garage-indoor"), stamp_s=100.01).mix.id == before  # too early to look again
    for step in range(6):
        result = shipped(scene("garage-indoor", step), stamp_s=101.0 + step)
    assert result.mix.heaviest == "garage-indoor"


def test_every_form_of_an_image_gives_the_same_answer(tiny: Pipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255  # so that floats and 16 bits are read over their whole range
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    forms = {
        "path": path,
        "text": str(path),
        "pillow": Image.fromarray(pixels),
        "with alpha": Image.fromarray(pixels).convert("RGBA"),
        "mirrored twice": pixels[:, ::-1][:, ::-1],
        "in columns": np.asfortranarray(pixels),
        "0 to 1": pixels / 255,
        "16 bits": pixels.astype(np.uint16) * 257,
    }
    expected = tiny(pixels)
    for form, image in forms.items():
        result = tiny(image)  # type: ignore[arg-type]
        assert np.array_equal(result.image, pixels), form
        assert np.array_equal(result.mask, expected.mask), form
    assert [tiny(form).name for form in (path, str(path), pixels)] == ["picture", "picture", "image"]
    grey = tiny(pixels[:, :, 0])
    assert np.array_equal(grey.image, np.repeat(pixels[:, :, :1], 3, axis=2))
    assert np.array_equal(tiny(Image.fromarray(pixels[:, :, 0])).mask, grey.mask)


def test_what_was_handed_in_may_change_afterwards(tiny: Pipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    result = tiny(pixels)
    kept = pixels.copy()
    pixels[:] = 0
    assert np.array_equal(result.image, kept)


def test_a_turned_photo_is_segmented_upright(tiny: Pipeline, tmp_path: Path) -> None:
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path, exif=exif)
    assert tiny(path).mask.shape == (60, 40)
    assert np.array_equal(tiny(Image.open(path)).mask, tiny(path).mask)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((3, 8, 8), np.float32), r"\(3, 8, 8\)"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.array([["a"]]), "U1"),
        ([[1, 2], [3, 4]], "list"),
        (None, "NoneType"),
        ("missing.png", "missing.png: no such file"),
    ],
)
def test_what_is_no_image_is_named(image: object, message: str, tiny: Pipeline) -> None:
    with pytest.raises(SemlaError, match=message):
        tiny(image)  # type: ignore[arg-type]


def test_classes_can_be_read_and_assigned_and_a_bad_list_changes_nothing(tiny: Pipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    tiny.classes = ["sky", "person"]
    assert tiny.classes == tiny(image).classes == ("sky", "person")
    assert tiny(image).mask.max() <= 1
    with pytest.raises(SemlaError, match="unicorn"):
        tiny.classes = ["sky", "unicorn"]
    assert tiny.classes == ("sky", "person")
    tiny.classes = "road, sky"  # type: ignore[assignment]
    assert tiny.classes == ("road", "sky")


def test_adapters_can_be_chosen_and_kept(tiny: Pipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    adapted = tiny(image)
    assert tiny.adapt(None).heaviest == "base model"
    base = tiny(image, adapt=False)
    assert base.mix.names == ()
    assert base.distances == {}
    mix = tiny.adapt({"fog": 0.75})
    assert mix.shares() == {"fog": 0.75, "base model": 0.25}
    kept = tiny(image, adapt=False)
    assert kept.mix.id == mix.id
    assert not np.array_equal(kept.mask, base.mask)
    assert tiny.adapt(mix.shares()).id == mix.id
    assert tiny.adapt(image).id == adapted.mix.id
    assert np.array_equal(tiny(image, adapt=False).mask, adapted.mask)


@pytest.mark.parametrize("weights", [{"fog": 1.5}, {"fog": -0.1}, {"fog": float("nan")}, {"fog": 0.5, "night": 0.6}])
def test_weights_that_are_no_shares_are_refused(weights: dict[str, float], tiny: Pipeline) -> None:
    tiny.adapt({"snow": 1.0})
    with pytest.raises(SemlaError, match="sum to at most 1"):
        tiny.adapt(weights)
    with pytest.raises(SemlaError, match="is not in the library"):
        tiny.adapt({"dusk": 1.0})
    assert tiny.mix.as_dict() == {"snow": 1.0}


def test_a_library_takes_an_adapter_in_and_a_pipeline_takes_a_library(
    tiny_model_folder: Path, tiny_library_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    with pytest.raises(SemlaError, match="mine"):
        Library(folder)
    library = Library(tiny_library_folder)
    assert len(library) == 4
    assert library.problems == {}
    assert "snow" in repr(library)
    pipeline = Pipeline(str(tiny_model_folder), library=library, device="cpu")
    assert pipeline.library.names == library.names
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert pipeline.library.explain(pixels).mix.id == pipeline(pixels).mix.id
    with pytest.raises(SemlaError, match="names neither base model nor scene encoder; give 'model'"):
        library.explain(pixels)
    assert "4 adapters" in repr(pipeline)


def test_an_adapter_that_is_added_can_be_used(library_copy: Path, tiny_library_folder: Path) -> None:
    library = Library(library_copy)
    assert library.add(tiny_library_folder / "fog", "haze") == "haze"
    assert set(library.names) == {"day", "fog", "haze", "night", "snow"}
    with pytest.raises(SemlaError, match="exists already"):
        library.add(tiny_library_folder / "fog", "haze")


def test_a_library_explains_an_image_as_the_pipeline_treats_it(shipped: Pipeline, tmp_path: Path) -> None:
    image = scene("suburb-clear")
    result, why = shipped(image), Library().explain(image)
    assert why.mix.id == result.mix.id
    assert why.distances == pytest.approx(result.distances)
    assert str(why).startswith("image lies within the library; mix: suburb-clear")
    assert repr(why) == str(why)
    assert why._repr_png_().startswith(b"\x89PNG")
    assert why.save(tmp_path / "deep" / "why.png").read_bytes() == why._repr_png_()
    assert why.save(tmp_path / "deep" / "why.html").read_text().startswith("<!doctype html>")
    with pytest.raises(SemlaError, match=r"saved as \.png or \.html"):
        why.save(tmp_path / "why.pdf")


def test_a_map_says_where_the_domains_and_the_images_lie() -> None:
    report = Library().map(scene("harbour-dusk"), scene("garage-indoor"))
    assert "20 adapters in" in str(report)
    assert [item["adapters"][0]["name"] for item in report.figures["images"]] == ["harbour-dusk", "garage-indoor"]
    assert {row["name"]: row["neighbour"] for row in report.figures["adapters"]}["old-town-fog"] == "boulevard-fog-day"
