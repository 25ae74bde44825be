"""A copy of an adapter library that somebody keeps changing: adapters come, go, and are broken."""

from __future__ import annotations

import shutil
from itertools import cycle
from pathlib import Path


class ChangingLibrary:
    """Copies a library and changes one thing at a time; each round ends with the library as it was.

    Args:
        source: The library to copy.
        folder: Where the copy goes; must not exist yet.

    Attributes:
        folder: The copy.
        reloads: How often it was changed.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        self.reloads = 0
        shutil.copytree(source, folder)
        self._aside = folder.with_name("aside")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self._names = cycle(names)
        self._steps = cycle((self._nothing, self._add_broken, self._remove_broken, self._take_away, self._bring_back))

    def change(self) -> None:
        """Make the next change."""
        self.reloads += 1
        next(self._steps)()

    def _nothing(self) -> None:
        pass

    def _add_broken(self) -> None:
        source = self.folder / next(self._names)
        shutil.copytree(source, self.folder / "broken")
        (self.folder / "broken" / f"{source.name}_statistics.npz").rename(
            self.folder / "broken" / "broken_statistics.npz"
        )
        weights = self.folder / "broken" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])

    def _remove_broken(self) -> None:
        shutil.rmtree(self.folder / "broken")

    def _take_away(self) -> None:
        (self.folder / next(self._names)).rename(self._aside)

    def _bring_back(self) -> None:
        name = next(path.name.removesuffix("_statistics.npz") for path in self._aside.glob("*_statistics.npz"))
        self._aside.rename(self.folder / name)
