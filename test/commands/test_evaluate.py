import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_world import ADAPTED, ToyBenchmark, ToySpec, ToySubject

from semla_ros.cli import main
from semla_ros.commands import evaluate
from semla_ros.errors import ConfigError, DatasetError
from semla_ros.lab.evaluation import protocol
from semla_ros.lab.evaluation.protocol import make_plan, run_job
from semla_ros.lab.evaluation.variants import choose_variants


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([*options, "--workers", "1"] if "--workers" not in options else options)


def run(*options: str) -> int:
    return evaluate.run(parse(*options), spec=ToySpec(), benchmark=ToyBenchmark())


def test_the_command_writes_json_page_and_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [tmp_path / "out" / name for name in ("results.json", "report.html", "table.md")]
    options = ["--json", str(files[0]), "--html", str(files[1]), "--markdown", str(files[2])]
    assert run("--seeds", "0", "1", "--images", "4", *options) == 0
    results = json.loads(files[0].read_text())
    assert results["seeds"] == [0, 1]
    assert set(results["domains"]) == set(ADAPTED)
    assert results["source"]["clear"]["zero_shot"] > 0.75
    assert len(results["weights"]["a-fog"]) == 8
    assert files[1].read_text().startswith("<!doctype html>")
    table = files[2].read_text()
    assert table.startswith("| domain | zero-shot | uniform |")
    assert "| **h-mean** |" in table
    assert f"{100 * results['domains']['a-fog']['semla']:.1f}" in table
    shown = capsys.readouterr().out
    assert "h-mean" in shown
    assert "report.html" in shown


def test_traces_take_one_line_per_image(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run("--images", "3", "--domains", "a-fog", "--variants", "semla", "--json", str(path))
    assert sum('"image":' in line for line in path.read_text().splitlines()) == 3


def test_two_runs_write_the_same_figures(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        run("--images", "3", "--json", str(tmp_path / name))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_domains_and_variants_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run("--images", "2", "--domains", "a-fog", "d-desert", "--variants", "zero_shot", "semla", "--json", str(path))
    results = json.loads(path.read_text())
    assert list(results["domains"]) == ["a-fog"]
    assert list(results["unseen"]) == ["d-desert"]
    assert list(results["h_mean"]) == ["zero_shot", "semla"]


def test_a_domain_without_an_adapter_is_reported_as_unseen() -> None:
    plan = make_plan(
        ToyBenchmark(), ["a-fog"], choose_variants(["paper"]), domains=["a-fog", "b-night"], seeds=[0], images=1
    )
    assert plan.domains == ("a-fog",)
    assert plan.unseen == ("b-night",)


def test_a_library_of_another_world_is_refused() -> None:
    with pytest.raises(ConfigError, match="no adapter of the benchmark 'world': it has indoor"):
        make_plan(ToyBenchmark(), ["indoor"], choose_variants(["paper"]), domains=None, seeds=[0], images=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "semla20"], "needs '--data ROOT'"),
        (["--classes", "road"], "goes with '--benchmark FILE'"),
        (["--drive", "--ray", "auto"], "'--ray' goes with domains"),
        (["--seeds", "1", "1"], "must differ"),
        (["--images", "-1"], "0 or more"),
        (["--workers", "0"], "at least 1"),
        (["--variants", "best"], "unknown variant 'best'"),
    ],
)
def test_bad_options_are_told_in_one_line(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(*options)
    assert "\n" not in str(caught.value)


def test_missing_data_sets_are_listed_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "--benchmark", "semla20", "--data", str(tmp_path), "--model", "not-there"]) == 2
    message = capsys.readouterr().err
    assert "20 domains cannot be read" in message
    assert "acdc/rgb_anon/fog/val" in message
    assert "IDD_Segmentation" in message


def test_the_published_domains_run_from_their_folders(tmp_path: Path) -> None:
    class Spec:
        def load(self, threads: int):
            subject = ToySpec().load(threads)
            subject.adapter_names = ("bdd", "acdc-fog")
            subject.centroids = np.zeros((2, 2), np.float32)
            subject.embed = lambda image: np.zeros(2, np.float32)
            subject.probabilities = lambda image, size: np.eye(19, dtype=np.float32)[
                np.full(size, 13 if subject.mix.as_dict().get("bdd") == 1 else 0)
            ].transpose(2, 0, 1)
            return subject

    image, labels = np.zeros((24, 32, 3), np.uint8), np.full((24, 32), 13, np.uint8)
    for folder, pixels, suffix in (("images/10k", image, "jpg"), ("labels/sem_seg/masks", labels, "png")):
        (tmp_path / "bdd100k" / folder / "val").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "bdd100k" / folder / "val" / f"0.{suffix}")
    options = ["--benchmark", "semla20", "--data", str(tmp_path), "--domains", "bdd", "--images", "0"]
    path = tmp_path / "results.json"
    evaluate.run(parse(*options, "--variants", "zero_shot", "oracle", "--json", str(path)), spec=Spec())
    results = json.loads(path.read_text())
    assert results["domains"] == {"bdd": {"zero_shot": 0.0, "oracle": 1.0}}
    with pytest.raises(DatasetError, match="'nyu'"):
        evaluate.run(parse(*options[:4], "--domains", "nyu"), spec=Spec())


def test_images_that_cannot_be_used_are_left_out_of_every_variant_named_and_scored_once_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        def load(self, threads: int) -> ToySubject:
            subject = ToySpec().load(threads)
            subject.adapter_names, subject.centroids = ("own",), np.zeros((1, 2), np.float32)
            subject.embed = lambda image: np.zeros(2, np.float32)
            subject.probabilities = lambda image, size: np.eye(2, dtype=np.float32)[
                (image[..., 0] > (100 if subject.mix.as_dict() else 30)).astype(int)
            ].transpose(2, 0, 1)
            return subject

    spec, rng = Spec(), np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(11):
        labels = rng.integers(0, 2, (24, 32)).astype(np.uint8)
        pixels = np.repeat((labels * 150 + rng.integers(0, 80, (24, 32)))[..., None], 3, axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:02}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index:02}.png")
    (tmp_path / "b.yaml").write_text(
        "classes: {two: [road, car]}\nencodings: {e: {classes: two, values: {0: road, 1: car}}}\ndomains:\n"
        "  own: {layouts: {here: {encoding: e, images: 'images/{name}.png', labels: 'labels/{name}.png'}}}\n"
    )
    base = ["--benchmark", str(tmp_path / "b.yaml"), "--data", str(tmp_path), "--variants", "zero_shot,semla,oracle"]

    def score(name: str, seeds: str = "0") -> int:
        out = ["--json", str(tmp_path / f"{name}.json"), "--markdown", str(tmp_path / "table.md")]
        return evaluate.run(parse(*base, "--images", "0", "--seeds", seeds, *out), spec=spec)

    def figures(name: str) -> dict:
        return json.loads((tmp_path / f"{name}.json").read_text())

    assert score("whole") == 0
    files = {
        tmp_path / name: (tmp_path / name).read_bytes() for name in ("images/02.png", "labels/09.png", "labels/10.png")
    }
    (tmp_path / "images/02.png").write_bytes(files[tmp_path / "images/02.png"][:60])
    Image.fromarray(np.zeros((20, 32), np.uint8)).save(tmp_path / "labels/09.png")
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(tmp_path / "labels/10.png")
    capsys.readouterr()
    assert score("some", "0,1") == 1
    told, found = capsys.readouterr().err, figures("some")
    assert [Path(line.split(str(tmp_path))[1].split()[0].strip(":,'")).name for line in told.splitlines()[:3]] == [
        "02.png", "09.png", "10.png",
    ]  # fmt: skip
    assert "the figures are without 3 images; once they are mended, the same command scores them alone" in told
    assert [line.removeprefix("left out: ") for line in told.splitlines()[:3]] == found["left_out"]["own"]
    assert "all images per domain and seed, without 3 that could not be used" in (tmp_path / "table.md").read_text()
    assert {entry["image"] for entry in found["weights"]["own"]}.isdisjoint({"02", "09", "10"})

    (tmp_path / "bad").mkdir()
    for path in files:
        for folder in ("images", "labels"):
            (tmp_path / folder / path.name).rename(tmp_path / "bad" / f"{folder}_{path.name}")
    assert score("few") == 0
    without = figures("few")
    assert found["per_class"] == without["per_class"]
    assert found["domains"]["own"] == without["domains"]["own"]
    for path in (tmp_path / "bad").iterdir():
        path.rename(tmp_path / path.name.replace("_", "/"))

    for path, content in files.items():
        path.write_bytes(content)
    done = []
    monkeypatch.setattr(protocol, "run_job", lambda *given: done.append(given[2].indices) or run_job(*given))
    assert score("some", "0,1") == 0
    assert done == 2 * [(0, 1, 2, 3), (8, 9, 10)]
    assert figures("some")["per_class"] == figures("whole")["per_class"]
    assert not (tmp_path / "some.json.part").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"results\.json cannot be written"):
        run("--images", "1", "--domains", "a-fog", "--json", str(tmp_path / "file" / "results.json"))


def test_help_has_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--help"])
    assert caught.value.code == 0
    assert "semla evaluate --seeds 0 1 2" in capsys.readouterr().out


def test_the_figures_are_the_same_for_any_number_of_jobs_on_ray_and_after_an_interrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs ray: the extra ray")
    options = ["--images", "3", "--domains", "old-town-fog", "clear", "--variants", "zero_shot", "semla"]
    for name, where in (("one", ["--jobs", "1"]), ("two", ["--jobs", "2"]), ("ray", ["--ray", "local", "--jobs", "2"])):
        assert main(["evaluate", *options, *where, "--device", "cpu", "--json", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "ray").read_bytes()
    done = []

    def interrupted(*arguments: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(run_job(*arguments))
        return done[0]

    again = ["evaluate", *options, "--device", "cpu", "--jobs", "1", "--json", str(tmp_path / "again")]
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "run_job", interrupted)
        assert main(again) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert main(again) == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "one").read_bytes()
    assert not (tmp_path / "again.part").exists()
