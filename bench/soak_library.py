"""A copy of an adapter library that somebody keeps changing: adapters come, go, and are broken."""

from __future__ import annotations

import random
import shutil
from itertools import cycle
from pathlib import Path


class ChangingLibrary:
    """Copies a library and changes one thing at a time; each round ends with the library as it was.

    Args:
        source: The library to copy.
        folder: Where the copy goes; must not exist yet.
        seed: Of the bits that flip.

    Attributes:
        folder: The copy.
        reloads: How often it was changed.
    """

    def __init__(self, source: Path, folder: Path, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.folder = folder
        self.reloads = 0
        shutil.copytree(source, folder)
        self._aside = folder.with_name("aside")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self._names = cycle(names)
        self._source = source
        self._damaged = ""
        self._damages = cycle((self._flip_bit, self._cut_off, self._empty, self._noise, self._no_configuration))
        self._steps = cycle(
            (
                self._nothing, self._add_broken, self._remove_broken, self._take_away, self._bring_back,
                self._damage, self._mend,
            )
        )  # fmt: skip

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

    def _damage(self) -> None:
        self._damaged = next(self._names)
        next(self._damages)(self.folder / self._damaged / "adapter_model.safetensors")

    def _mend(self) -> None:
        shutil.rmtree(self.folder / self._damaged)
        shutil.copytree(self._source / self._damaged, self.folder / self._damaged)

    def _flip_bit(self, weights: Path) -> None:
        data = bytearray(weights.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")  # the values follow the header
        data[self._random.randrange(start, len(data))] ^= 1 << self._random.randrange(8)
        weights.write_bytes(data)

    def _cut_off(self, weights: Path) -> None:
        weights.write_bytes(weights.read_bytes()[:-100])

    def _empty(self, weights: Path) -> None:
        weights.write_bytes(b"")

    def _noise(self, weights: Path) -> None:
        weights.write_bytes(self._random.randbytes(weights.stat().st_size))

    def _no_configuration(self, weights: Path) -> None:
        (weights.parent / "adapter_config.json").write_text("{", encoding="utf-8")
