"""`library.yaml`: what a library was made for, and what it recommends.

Optional: a published folder set has none. Where it is there, the base model, the scene encoder and every file's digest
are held to it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

from semla_ros.config import GONE, Checked, DriftConfig, Range, RetrievalConfig, fixed, from_mapping
from semla_ros.errors import ConfigError, LibraryError
from semla_ros.file_integrity import open_regular
from semla_ros.library.domain_statistics import DomainStatistics
from semla_ros.results import BASE_MODEL

logger = logging.getLogger(__name__)

MANIFEST_NAME = "library.yaml"
BASE_STATISTICS_NAME = "base_statistics.npz"  # beside it: centroid of what the base model was trained on
FORMAT = 1
MAX_BYTES = 64 * 1024 * 1024  # some hundred thousand adapters
MAX_DEPTH = 32  # a manifest has 5; PyYAML's C loader ends the process where tens of thousands are nested
RENDERED = "rendered"  # images of a renderer, as a model or a library states it
NOT_FOR_CAMERAS = (
    "made for rendered images: on a camera's, expect the base model and poor masks; train adapters on your own images "
    "('semla train adapter') or use published weights ('semla fetch')"
)
Distance = Annotated[float | None, Range(0)]


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A model by id and by the SHA-256 of its file; either is empty where it is not known."""

    id: str = ""
    sha256: str = ""

    def difference(self, other: ModelReference) -> str:
        """How this cannot be the same model as another: "id 'a', not 'b'"; empty where it can."""
        pairs = (("id", self.id, other.id), ("SHA-256", self.sha256, other.sha256))
        found = [f"{label} '{own}', not '{theirs}'" for label, own, theirs in pairs if own and theirs and own != theirs]
        return next(iter(found), "")


@dataclass(frozen=True, kw_only=True)
class AdapterEntry(Checked):
    """What a manifest says of one adapter.

    Attributes:
        sha256: File name -> digest of each file of its folder that is read.
        images: Number of images behind the centroid; 0 where not known.
        family: Weather or light that related domains share ("night"), for reports.
        licence: Under which the weights may be used.
        note: One free line.
    """

    sha256: Mapping[str, str] = field(default_factory=dict)
    images: int = 0
    spread_mean: Distance = fixed(None, "Mean Euclidean distance of the domain's images to the centroid, if known")
    spread_p95: Distance = fixed(None, "95th percentile of that distance")
    family: str = ""
    licence: str = ""
    note: str = ""

    def completed(self, statistics: DomainStatistics) -> AdapterEntry:
        """The same with what the adapter's own statistics tell where the manifest does not."""
        return dataclasses.replace(
            self,
            images=self.images or statistics.images,
            spread_mean=statistics.spread_mean if self.spread_mean is None else self.spread_mean,
            spread_p95=statistics.spread_p95 if self.spread_p95 is None else self.spread_p95,
        )


@dataclass(frozen=True, kw_only=True)
class BaseDomain(Checked):
    """What the base model was trained on, as scenes: where it needs no adapter.

    Attributes:
        sha256: Digest of `base_statistics.npz`, which holds the centroid.
        family: Weather or light, as for adapters.
        images: Number of images behind the centroid.
    """

    sha256: str
    family: str = ""
    images: int = 0
    spread_p95: Distance = fixed(None, "Distance within which 95 % of them lie to it")


@dataclass(frozen=True, kw_only=True)
class LibraryManifest:
    """The whole of `library.yaml`.

    Attributes:
        base: The model that the adapters were trained on.
        encoder: The scene encoder behind the centroids.
        retrieval: Recommended settings; None where the library has no opinion.
        drift: Likewise.
        base_domain: Where the base model is at home; None where the library does not say.
        adapters: By name, in library order.
        domain: What kind of images it was made for, "rendered" or "camera"; empty where it does not say.
        note: One free line.
        broken: Adapters whose entry cannot be used -> why. What was read so is not written again.
    """

    base: ModelReference = field(default_factory=ModelReference)
    encoder: ModelReference = field(default_factory=ModelReference)
    retrieval: RetrievalConfig | None = None
    drift: DriftConfig | None = None
    base_domain: BaseDomain | None = None
    adapters: Mapping[str, AdapterEntry] = field(default_factory=dict)
    domain: str = ""
    note: str = ""
    broken: Mapping[str, str] = field(default_factory=dict)


def is_plain_name(name: object) -> bool:
    """Whether a name is that of a folder and nothing more: no separator, not hidden, no way out; nor `BASE_MODEL`.

    It can be printed and published: no control characters, no bytes that are not UTF-8.
    """
    return (
        isinstance(name, str)
        and 0 < len(name) <= 200
        and not name.startswith(".")
        and name != BASE_MODEL
        and name.isprintable()
        and not any(character in "/\\:" for character in name)
    )


def read_manifest(folder: Path) -> LibraryManifest:
    """Read `library.yaml` of a library folder; an empty manifest where there is none.

    Raises:
        LibraryError: It cannot be parsed, or a value in it is unknown, of the wrong type or out of range. Adapters'
            entries of that kind are told in `broken` instead.
    """
    path = folder / MANIFEST_NAME
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes; it is no manifest")
        values = _load_yaml(content.decode())
    except FileNotFoundError:
        return LibraryManifest()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise LibraryError(f"{path}: {' '.join(str(error).split())}") from None
    try:
        return _manifest(values or {}, path)
    except ConfigError as error:
        raise LibraryError(f"{path}: {error}") from None


def _load_yaml(text: str) -> Any:
    # The C loader is ten times faster, which counts for manifests of thousands of adapters.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):  # without recursion, as loading is not
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):  # a few of them can stand for more than fits into memory
            raise ValueError(f"alias '*{event.anchor}': write out what it stands for")
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels are nested; it is no manifest")
    return yaml.load(text, Loader=loader)


def _manifest(values: Any, path: Path) -> LibraryManifest:
    if not isinstance(values, Mapping):
        raise ConfigError(f"expected a mapping, got {type(values).__name__}")
    values = {key: value for key, value in values.items() if value is not None}
    version = values.pop("format", FORMAT)
    if version != FORMAT:
        raise ConfigError(f"format {version!r} is not known, expected {FORMAT}; use a newer release to read it")
    adapters = values.pop("adapters", {})
    if not isinstance(adapters, Mapping):
        raise ConfigError(f"'adapters' must be a mapping, got {type(adapters).__name__}")
    values.pop("broken", None)
    for key in ("retrieval", "drift"):
        if isinstance(values.get(key), Mapping):
            values[key] = _without_gone(key, values[key], path)
    manifest = from_mapping(
        LibraryManifest, {**values, **{key: str(values.get(key, "")) for key in ("domain", "note")}}
    )
    entries, broken = {}, {}
    for name, entry in adapters.items():
        try:
            if not is_plain_name(name):
                raise ConfigError(f"adapter name {name!r} must be a plain folder name")
            entries[name] = from_mapping(AdapterEntry, {} if entry is None else entry, where=f"adapters: {name}")
        except ConfigError as error:
            broken[name if is_plain_name(name) else ascii(name)] = str(error)
    return dataclasses.replace(manifest, adapters=entries, broken=broken)


def _without_gone(section: str, settings: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """Recommendations without those of earlier releases, which mean nothing any more; None where none is left."""
    for name in settings:
        if name in GONE:
            logger.warning("%s: %s: '%s' is passed over: %s", path, section, name, GONE[name])
    return {name: value for name, value in settings.items() if name not in GONE} or None
