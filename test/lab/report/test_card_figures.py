from pathlib import Path

from semla_ros.lab.report.evaluation_tables import write_card_figures

RESULTS = {
    "seeds": [0, 1],
    "images": 40,
    "domains": {
        "fog": {"zero_shot": 0.1, "oracle": 0.5, "semla": 0.49, "semla_without_own": 0.4},
        "dusk": {"oracle": 0.3},
    },
    "source": {"clear": {"zero_shot": 0.7}},
    "h_mean": {"zero_shot": 0.2, "semla_without_own": 0.35},
}


def folders(root: Path) -> tuple[Path, Path]:
    library, model = root / "library", root / "model"
    (library / "fog").mkdir(parents=True)
    model.mkdir()
    (library / "fog" / "CARD.md").write_text("# fog\n\nrank 6\n")
    (model / "README.md").write_text("# tiny\n\nOf no use on real images.\n")
    return library, model


def test_cards_get_the_figures_of_their_domain_and_the_command_behind_them(tmp_path: Path) -> None:
    library, model = folders(tmp_path)
    assert write_card_figures(RESULTS, library, model, "semla evaluate") == [
        library / "fog" / "CARD.md",
        model / "README.md",
    ]
    card, readme = (library / "fog" / "CARD.md").read_text(), (model / "README.md").read_text()
    assert card.startswith("# fog\n\nrank 6\n\n## Figures\n")
    assert "2 x 40 test scenes, `semla evaluate`" in card
    assert "| this adapter alone | 0.500 |" in card
    assert "| clear, no adapter | 0.700 |" in readme
    assert "| 2 domains, h-mean: SemLA without the own adapter (leave-one-out) | 0.350 |" in readme


def test_figures_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    library, model = folders(tmp_path)
    write_card_figures(RESULTS, library, model, "semla evaluate")
    first = (library / "fog" / "CARD.md").read_text()
    write_card_figures(RESULTS, library, model, "semla evaluate")
    assert (library / "fog" / "CARD.md").read_text() == first
