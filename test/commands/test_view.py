"""`semla view` where its optional package is missing, and the layout that it names."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml

from semla_ros.cli import main
from semla_ros.resources import share_folder
from semla_ros.results import BASE_MODEL

LAYOUT = share_folder() / "config" / "foxglove_layout.json"


def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "semla_ros.nodes.view_bridge", raising=False)
    monkeypatch.setitem(sys.modules, "foxglove", None)
    assert main(["view"]) == 2
    assert capsys.readouterr().err == ("semla view: this is not installed: foxglove: pip install 'semla_ros[view]'\n")


def test_every_panel_of_the_layout_has_a_place_and_every_place_a_panel() -> None:
    layout = json.loads(LAYOUT.read_text(encoding="utf-8"))

    def panels(node: object) -> list[str]:
        return [node] if isinstance(node, str) else [*panels(node["first"]), *panels(node["second"])]  # type: ignore[index]

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])


def test_the_layout_plots_the_weight_of_every_shipped_adapter() -> None:
    plotted = set(re.findall(r'name==\\"([^"\\]+)\\"', LAYOUT.read_text(encoding="utf-8")))
    manifest = yaml.safe_load((share_folder() / "adapters" / "semla-tiny" / "library.yaml").read_text(encoding="utf-8"))
    assert plotted == {*manifest["adapters"], BASE_MODEL}
