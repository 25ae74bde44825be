"""One table of parameters: the shipped file, the dataclasses and the node agree, and wrong values are named."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from semla_ros.config import DriftConfig, InferenceConfig, NodeConfig, RetrievalConfig, SemlaConfig
from semla_ros.errors import ConfigError
from semla_ros.serving.parameters import SPECS, Settings, check_ranges, explicit_only, unknown_parameters
from tools.parameter_tables import RECOMMENDED, TOPICS, YAML, as_yaml, with_table


def test_the_shipped_file_and_the_documentation_are_written_from_the_settings() -> None:
    assert YAML.read_text(encoding="utf-8") == as_yaml()
    page = TOPICS.read_text(encoding="utf-8")
    assert page == with_table(page)
    assert all(f"| `{name}` |" in page for name in SPECS)


def test_the_shipped_file_gives_the_defaults_and_leaves_recommendations_their_right() -> None:
    values = yaml.safe_load(as_yaml())["/**"]["ros__parameters"]
    flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
    flat |= {f"{group}.{key}": value for group in ("diagnostics",) for key, value in values[group].items()}
    settings = Settings.make(flat)
    assert settings.node == NodeConfig()
    assert settings.pipeline == SemlaConfig()  # retrieval and drift are None: the library's recommendation counts
    assert set(SPECS) - set(flat) == RECOMMENDED


def test_commented_values_are_the_defaults_too() -> None:
    commented = dict(re.findall(r"^    # ([a-z_]+): (.+)$", as_yaml(), re.MULTILINE))
    values = {name: yaml.safe_load(text) for name, text in commented.items() if name in SPECS}
    assert values == {**dataclasses.asdict(RetrievalConfig()), **dataclasses.asdict(DriftConfig())}


def test_every_parameter_has_a_description_and_every_duration_and_rate_its_unit() -> None:
    for name, spec in SPECS.items():
        assert len(spec.text) > 10, name
        for suffix, unit in (("_s", "s"), ("_ms", "ms"), ("_hz", "Hz")):
            assert not name.endswith(suffix) or spec.unit == unit, name


def test_every_number_has_a_range() -> None:
    for name, spec in SPECS.items():
        if isinstance(spec.default, (int, float)) and not isinstance(spec.default, bool):
            assert spec.range is not None, name
            for outside in (spec.range.lower - 1, spec.range.most(type(spec.default)) + 1):
                with pytest.raises(ConfigError, match=name):
                    Settings.make({name: type(spec.default)(outside)})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"topk": 3}, ["topk", "did you mean 'top_k'?"]),
        ({"zzz": 3}, ["zzz", "known: model,"]),
        ({"top_k": 0}, ["top_k", "at least 1"]),
        ({"top_k": "3"}, ["top_k", "int", "'3'"]),
        ({"classes": "road"}, ["classes", "list of strings"]),
        ({"cameras": ["a", "a"]}, ["cameras", "repetitions"]),
        ({"cameras": ["a b"]}, ["cameras", "topic", "a b"]),
        ({"cameras": ["a=/x", "a=/y"]}, ["cameras", "repetitions"]),
        ({"cameras": ["a=/x/image", "b=/x/image"]}, ["cameras", "repetitions"]),
        ({"cameras": ["a", "b=a/image"]}, ["cameras", "repetitions"]),
        ({"cameras": ["/front/image_raw"]}, ["cameras", "front=/front/image_raw", "got '/front/image_raw'"]),
        ({"cameras": ["front="]}, ["cameras", "'front='"]),
        ({"cameras": ["=/front/image_raw"]}, ["cameras", "'=/front/image_raw'"]),
        ({"cameras": ["front=/a//b"]}, ["cameras", "'front=/a//b'"]),
        ({"cameras": ["front=/a/b/"]}, ["cameras", "'front=/a/b/'"]),
        ({"image_transport": "theora"}, ["image_transport", "raw", "theora"]),
        ({"mask_scale": 0.0}, ["mask_scale"]),
        ({"engine": "tensorflow"}, ["engine", "tensorrt"]),
        ({"inference": "tiled"}, ["inference", "sliding", "tiled"]),
        ({"diagnostics.period_s": 0.0}, ["diagnostics.period_s", "at least 0.01"]),
        ({"diagnostics.max_drop_ratio": 1.5}, ["diagnostics.max_drop_ratio"]),
        ({"compat.unsafe_softmax": False}, ["compat.unsafe_softmax", "docs/compat.md"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(given: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.make(given)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_is_not_set_and_empty_strings_in_lists_mean_the_default() -> None:
    settings = Settings.make({"cameras": None, "classes": [""]})
    assert settings.node.cameras == ()
    assert settings.pipeline.classes == ()
    assert settings.values["cameras"] == []


def test_sliding_windows_can_be_chosen_when_the_node_starts() -> None:
    assert Settings.make({}).values["inference"] == "whole"
    assert Settings.make({"inference": "sliding"}).pipeline.inference.inference == "sliding"
    assert not SPECS["inference"].is_live
    assert SPECS["inference"].choices == ("whole", "sliding")


def test_each_field_of_each_group_is_a_parameter() -> None:
    for prefix, group in (("", NodeConfig), ("", InferenceConfig), ("", RetrievalConfig)):
        names = {prefix + item.name for item in dataclasses.fields(group)} - {"diagnostics"}
        assert names <= set(SPECS), names - set(SPECS)


def test_a_whole_number_is_fine_for_a_float() -> None:
    assert Settings.make({"temperature": 1}).values["temperature"] == 1.0


def test_a_number_out_of_its_range_is_told_before_rclpy_sees_it() -> None:
    check_ranges({"top_k": 1, "mask_scale": 1.0, "classes": ["road"], "unknown": -1, "temperature": "a word"})
    with pytest.raises(ConfigError, match=r"'diagnostics.max_drop_ratio' must be in \[0, 1\], got 1.5"):
        check_ranges({"top_k": 1, "diagnostics.max_drop_ratio": 1.5})


def test_changes_build_on_what_is_in_use_and_recommendations_yield_to_what_was_given() -> None:
    settings = Settings.make({"top_k": 2}).with_recommended(
        RetrievalConfig(top_k=7, temperature=0.5), DriftConfig(steady_s=3.0), ["road", "sky"]
    )
    assert (settings.retrieval.top_k, settings.retrieval.temperature, settings.drift.steady_s) == (2, 0.5, 3.0)
    assert explicit_only(settings, RetrievalConfig) == {"top_k": 2}
    changed = settings.changed({"fade_start": 1.5})
    assert changed.pipeline.classes == ("road", "sky")
    assert (changed.retrieval.temperature, changed.retrieval.fade_start) == (0.5, 1.5)
    assert explicit_only(changed, RetrievalConfig) == {"top_k": 2, "fade_start": 1.5}


def test_parameters_of_ros_itself_are_known() -> None:
    assert unknown_parameters(["use_sim_time", "qos_overrides./x.publisher.depth", "top_k"]) == []
