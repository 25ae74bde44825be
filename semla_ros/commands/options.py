"""What options of several commands are read by."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from semla_ros.config import SemlaConfig
from semla_ros.errors import ConfigError
from semla_ros.hub.published import is_hub_name


class Listed(argparse.Action):
    """Names separated by commas, spaces or both: `--classes road,car "traffic sign"`; use with `nargs="+"`.

    The option may be repeated; what a `type` makes of each name is kept.
    """

    def __init__(self, *arguments: Any, type: Any = str, **options: Any) -> None:
        super().__init__(*arguments, **{"nargs": "+", **options})
        self._item = type

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        """Add the names to those given before."""
        earlier: Sequence[Any] = getattr(namespace, self.dest)
        try:
            names = [self._item(name.strip()) for text in values for name in text.split(",") if name.strip()]
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, [*(() if earlier is self.default else earlier), *names])


def add_model_options(parser: Any, default: str = SemlaConfig.model, what: str = "") -> None:
    """`--model` and `--model-dir`.

    Args:
        parser: Gets them; or a group of one.
        default: Of `--model`.
        what: It is for; in its help.
    """
    shown = " (%(default)s)" if default else ""
    parser.add_argument("--model", default=default, help=f"{what or 'model'}: id, path or hf://owner/repo{shown}")
    parser.add_argument("--model-dir", default="", metavar="DIR", help="where models are looked for first")


def add_library_option(parser: Any, default: str = "the model's own") -> None:
    """`--library`, which is read; `default` is what an empty one means."""
    parser.add_argument(
        "--library", default="", metavar="DIR", help=f"adapter library: folder or hf://owner/repo (default: {default})"
    )


def add_view_options(parser: Any, default: str | None = "whole", shown: str = "whole") -> None:
    """What a model sees of an image, for `view_settings`; `default` is that of `--inference`, `shown` in its help."""
    parser.add_argument("--inference", choices=("whole", "sliding"), default=default, help=f"default: {shown}")
    parser.add_argument(
        "--working-resolution", default="", metavar="HxW", help="that images are resized to; default: the model's own"
    )
    parser.add_argument(
        "--early-rejection", type=int, default=0, metavar="N", help="classes that go on at each pixel; default: 0, all"
    )


def view_settings(arguments: Any) -> dict[str, Any]:
    """The fields of `InferenceConfig` that `add_view_options` asks for."""
    return {name: getattr(arguments, name) for name in ("inference", "working_resolution", "early_rejection")}


def output_folder(text: str) -> Path:
    """A folder to write to, as the `type` of an option: whether that is possible is tried before the work begins.

    Raises:
        ConfigError: It is not; the message says why.
    """
    path = Path(text).expanduser()
    _try_to_write(path, path)
    return path


def output_file(text: str) -> Path:
    """A file to write, likewise; its folder is made later where it is missing.

    Raises:
        ConfigError: As `output_folder`, or it is a folder.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    if not path.exists() or path.is_file():  # a device or a pipe says itself what is wrong
        _try_to_write(path.parent, path)
    return path


def add_log_option(parser: Any) -> None:
    """`--log-to`, for `logging_to`."""
    parser.add_argument(
        "--log-to",
        choices=("tensorboard", "wandb", "mlflow"),
        default="",
        help="tell losses and figures to it, too (default: none)",
    )
    parser.add_argument(
        "--log-dir",
        type=output_folder,
        metavar="DIR",
        help="for the files of tensorboard and wandb (default: out/log)",
    )


def logging_to(arguments: argparse.Namespace, name: str) -> AbstractContextManager[None]:
    """The log that was asked for, if any; `name` says what runs."""
    from semla_ros.lab.report.experiment_log import experiment_log

    settings = {key: value for key, value in vars(arguments).items() if not callable(value)}
    folder = arguments.log_dir or Path("out/log")
    return experiment_log(arguments.log_to, folder, f"{name}-{datetime.now():%Y%m%d-%H%M%S}", settings)


def rerun_target(text: str) -> str:
    """Where a Rerun recording goes; a file is tried as `output_file` does."""
    return str(output_file(text)) if text.endswith(".rrd") else text


def _try_to_write(folder: Path, path: Path) -> None:
    if is_hub_name(path):
        raise ConfigError(f"{path}: nothing is written to the hub but by 'semla library push'; name a folder")
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {folder}: {error.strerror or error}") from None


def unique_stems(paths: Sequence[Path], outputs: Callable[[str], Iterable[Path]]) -> list[str]:
    """File names without suffix; a number is added where an output would replace another one, or an input.

    Args:
        paths: Inputs.
        outputs: Stem -> the files that are written.
    """
    names, inputs, stems = {path.stem for path in paths}, {path.resolve() for path in paths}, dict[str, None]()

    def is_free(stem: str, name: str) -> bool:
        written = {file.resolve() for file in outputs(stem)}
        return stem not in stems and (stem == name or stem not in names) and not written & inputs

    for path in paths:
        numbered = (f"{path.stem}-{number}" for number in count(2))
        stems[next(stem for stem in chain([path.stem], numbered) if is_free(stem, path.stem))] = None
    return list(stems)
