"""The node on other kinds of models: SED, and a toy that another package brings by entry point."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from graph import Graph, PerceptionClient, wait_for
from sensor_msgs.msg import Image
from small_sed import write_sed
from tiny_parts import CLASSES, write_library
from toy_package import install_toy, write_toy

from semla_ros.segmentation.checkpoint import load_model


@pytest.mark.parametrize("kind", ["sed", "toy"])
def test_the_node_serves_and_adapts(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    site = install_toy(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site))
    paths = [str(site), str(Path(__file__).parents[1] / "helpers"), graph.environment.get("PYTHONPATH", "")]
    monkeypatch.setitem(graph.environment, "PYTHONPATH", os.pathsep.join(filter(None, paths)))
    model = (write_sed if kind == "sed" else write_toy)(tmp_path / "models" / kind)
    library = write_library(tmp_path / "library", load_model(model).model)
    (library / "library.yaml").write_text("retrieval: {fade_out_of_library: false}")  # noise is strange to it
    client = PerceptionClient(graph, kind)
    masks = graph.collect(Image, f"{client.prefix}/mask")
    process = graph.start(
        "-m", "semla_ros.nodes.perception", namespace=kind, model=model, library=library,
        **{"diagnostics.period_s": 0.1, "diagnostics.hardware_id": kind},
    )  # fmt: skip
    client.wait_for_state("active")

    def is_fused() -> bool:
        client.send(client.image(size=(48, 64)))
        return "(drift)" in process.output

    wait_for(is_fused, f"a mix: {process.output}")
    wait_for(lambda: masks, "a mask")
    assert {*np.frombuffer(masks[-1].data, np.uint8)} <= {*range(len(CLASSES)), 255}
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output
