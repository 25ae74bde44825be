"""Fuse a mix of LoRA adapters into the weights of the warm model, in two phases.

*Prepare* writes `W = W0 + sum_i w_i * (alpha_i / r_i) * B_i A_i` into standby memory and encodes the class names with
the fused text tower; the model in use is not touched. *Commit* puts both into use between two frames. Every fusion
starts from the base weights, so nothing drifts, and a mix gives the same bits each time it comes back.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from semla_ros.adaptation.background import background_stream
from semla_ros.adaptation.weight_slabs import LayerStack, Scratch, WeightSlab
from semla_ros.errors import AdapterError, first_line, is_out_of_memory
from semla_ros.results import AdapterMix
from semla_ros.segmentation.protocol import SegmentationModel

if TYPE_CHECKING:
    from semla_ros.library.adapter_library import AdapterLibrary

logger = logging.getLogger(__name__)

Terms = list[tuple[LayerStack, float]]  # what a slab is fused from: stacks with their weights


class MixError(AdapterError):
    """Adapters of a mix cannot be used.

    Attributes:
        names: Which.
    """

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A generation that is ready to be put into use.

    Attributes:
        mix: What it is fused from.
        text_features: Class embeddings of the fused text tower, shape (T, ...).
        base_text: Those of the base model for the same classes.
        terms: What each slab is fused from.
        ticket: Which `prepare` made it; only the latest one can be committed.
    """

    mix: AdapterMix
    text_features: Tensor
    base_text: Tensor
    terms: Sequence[Terms]
    ticket: int


class Fuser:
    """Owns the adapted weights of a model: base values, the ones in use, and the ones being prepared.

    Making one moves the adapted weights of `model` into slabs; the model stays usable as before. Not thread-safe: one
    thread prepares, and commits while no forward pass runs.

    Args:
        model: The model to adapt; it must hold the base weights.
        library: Where adapters of a mix are found.
        token_ids: The vocabulary, see `set_tokens`.
        memory: "double" keeps a standby copy of the adapted weights, so that a commit only swaps pointers; "single"
            saves that memory and computes the fused weights within the commit. Where there is no memory for "double",
            "single" serves from then on.

    Attributes:
        notes: What was asked for and could not be had, with the reason.
        in_use: What serves; None before the first commit, and where not even the base model could be put into use.
        stands_by: What served before, while its weights are whole in the standby copies: `commit` takes it like what
            was just prepared. None once `prepare` is called, where vocabulary or library have changed, under "single",
            and on a GPU.
        slabs: The adapted weights, by shape.
    """

    def __init__(
        self,
        model: SegmentationModel,
        library: AdapterLibrary,
        token_ids: Tensor,
        *,
        memory: Literal["double", "single"] = "double",
    ) -> None:
        self._library = library
        paths = model.lora_targets()
        self._text_tower = model.text_tower
        self._device = next(model.parameters()).device
        self._shadow = _shadow_model(model, [path for path in paths if path.startswith(model.text_tower)])
        self._scratch = Scratch(self._device)
        self.notes: list[str] = []
        self._is_single = memory == "single"
        self.slabs: list[WeightSlab] = []
        self._make_slabs(model, paths)
        self._resident: dict[str, list[LayerStack | None]] = {}
        self._stream = background_stream(self._device)
        self._ticket = 0
        self._committed = 0
        self.in_use: PreparedModel | None = None
        self.stands_by: PreparedModel | None = None
        self._earlier: PreparedModel | None = None  # what was in use where nothing is
        self._serves_live = True  # what is in use lies in the slabs' live memory
        self.set_tokens(token_ids)

    def set_tokens(self, token_ids: Tensor) -> None:
        """Change the vocabulary for the next `prepare`.

        Args:
            token_ids: Prompts of each class, shape (T, ...), int64; see `SegmentationModel.encode_text`.
        """
        self._token_ids = token_ids.to(self._device)
        self._base_text: Tensor | None = None
        self._forget_what_stands_by()

    def set_library(self, library: AdapterLibrary) -> None:
        """Use another library from now on; adapters that it lacks stay usable while the present mix holds them."""
        self._library = library
        self._forget_what_stands_by()
        for name in library.names:
            self._resident.pop(name, None)

    def prepare(self, mix: AdapterMix) -> PreparedModel:
        """Compute a mix's weights and class embeddings beside the ones in use.

        Args:
            mix: Adapter names and weights; `base_weight` needs no arithmetic, it is what the weights lack to 1.

        Returns:
            What `commit` takes. It is void once `prepare` is called again.

        Raises:
            MixError: Adapters are missing or damaged, or do not fit the model. The model in use is unchanged.
        """
        self._ticket += 1
        self._forget_what_stands_by()
        try:
            return self._prepare(mix)
        except MixError:
            raise
        except Exception as error:
            if self._is_single or not is_out_of_memory(error):
                raise
            self._become_single(error)
        return self._prepare(mix)  # out here, where what failed holds no memory any more

    def _prepare(self, mix: AdapterMix) -> PreparedModel:
        with self._in_background():
            terms = self.fuse_standby(mix)
            is_other_text = mix.names and any(slab.is_shadowed for slab in self.slabs)
            text_features = self._encode_text(mix) if is_other_text else self._base_text
        assert text_features is not None
        assert self._base_text is not None
        return PreparedModel(mix, text_features, self._base_text, terms, self._ticket)

    def _become_single(self, error: BaseException) -> None:
        """Give the standby copies back, for good."""
        self._is_single = True
        for slab in self.slabs:
            if not slab.is_shadowed:
                slab.drop_standby()
        self._scratch = Scratch(self._device)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.notes.append(f"memory 'single' serves: out of memory ({first_line(error)})")
        logger.warning(self.notes[-1])

    def fuse_standby(self, mix: AdapterMix) -> Sequence[Terms]:
        """The first half of `prepare`: write the weights of a mix into the slabs that have a standby copy."""
        self._forget_all_but((*(self.in_use.mix.names if self.in_use else ()), *mix.names))
        terms = self._terms(mix)
        for slab, slab_terms in zip(self.slabs, terms, strict=True):  # what commit needs is allocated now
            slab.buffers(sum(stack.rank for stack, _ in slab_terms), self._scratch)
        if self._base_text is None:
            self._base_text = self._text_of([[] for _ in self.slabs])
        self._fuse_where(terms, lambda slab: slab.standby is not slab.live)
        return terms

    def commit(self, prepared: PreparedModel, set_text: Callable[[Tensor], None] = lambda _: None) -> None:
        """Put a prepared model into use, all of it or nothing. No forward pass may run meanwhile.

        Args:
            prepared: From the latest `prepare`, or what stands by.
            set_text: Takes its class embeddings over, or raises and keeps the former ones.

        Raises:
            BaseException: Whatever failed. `in_use` tells what serves: as a rule the same as before; the base model
                where the way back fails, too.
        """
        is_latest = prepared.ticket == self._ticket and prepared.ticket != self._committed
        if not is_latest and prepared is not self.stands_by:
            raise ValueError(f"prepared model {prepared.ticket} is void, the latest is {self._ticket}")
        self._committed, self.stands_by = self._ticket, None
        earlier, live = self.in_use, [slab.live for slab in self.slabs]
        try:
            with self._in_background():
                self._fuse_where(prepared.terms, lambda slab: slab.standby is slab.live)
                for slab in self.slabs:
                    slab.swap()
            set_text(prepared.text_features)
        except BaseException:
            self._go_back(earlier, live, set_text)
            raise
        if earlier is not None and self._serves_live and self._exchanges:
            self.stands_by = earlier
        self.in_use, self._serves_live = prepared, True
        self._forget_all_but((*prepared.mix.names, *(self.stands_by.mix.names if self.stands_by else ())))

    def use_base(self, set_text: Callable[[Tensor], None]) -> None:
        """Put the base model into use, for the classes in use. No forward pass may run meanwhile.

        Raises:
            Exception: `set_text` failed. Nothing may serve before this has succeeded: `in_use` is None.
        """
        if (earlier := self.in_use or self._earlier) is None:
            raise ValueError("nothing was committed yet")
        self._earlier, self.in_use, self.stands_by, self._serves_live = earlier, None, None, False
        self._write_base()
        set_text(earlier.base_text)
        terms: list[Terms] = [[] for _ in self.slabs]
        self.in_use = PreparedModel(AdapterMix(), earlier.base_text, earlier.base_text, terms, earlier.ticket)

    def _go_back(
        self, earlier: PreparedModel | None, live: Sequence[Tensor], set_text: Callable[[Tensor], None]
    ) -> None:
        """Undo what `commit` did to the weights; the class embeddings change last, and so have not."""
        try:
            if earlier is None or not earlier.mix.names:
                self._serves_live = False
                self._write_base()
                return
            with self._in_background():
                for slab, before, terms in zip(self.slabs, live, earlier.terms, strict=True):
                    slab.restore(before, terms, self._scratch)
        except BaseException:
            if earlier is None:
                raise
            logger.exception("the earlier weights cannot be restored: the base model serves")
            self.use_base(set_text)

    def _write_base(self) -> None:
        with self._in_background():
            for slab in self.slabs:
                slab.use_base()

    @contextmanager
    def _in_background(self) -> Iterator[None]:
        """On the background stream of a GPU, which is waited for at the end, and nothing else on the device."""
        with torch.no_grad(), torch.cuda.stream(self._stream):
            yield
        if self._stream is not None:
            self._stream.synchronize()

    @property
    def resident_adapters(self) -> tuple[str, ...]:
        """Names of the adapters whose matrices are in memory."""
        return tuple(self._resident)

    @property
    def num_bytes(self) -> int:
        """Memory of all adapted weights: base, in use, standby."""
        return sum(slab.num_bytes for slab in self.slabs)

    def _make_slabs(self, model: nn.Module, paths: Iterable[str]) -> None:
        groups: dict[tuple[object, ...], dict[str, nn.Module]] = defaultdict(dict)
        for path in paths:
            module = model.get_submodule(path)
            weight = module.weight
            assert isinstance(weight, Tensor)
            groups[path.startswith(self._text_tower), weight.flatten(1).shape, weight.dtype][path] = module
        for (is_text, *_), modules in groups.items():
            shadows = {path: self._shadow.get_submodule(path) for path in modules} if is_text else {}
            # Class embeddings are made before the commit, so the text tower has a standby copy even under "single".
            self.slabs.append(WeightSlab(modules, shadows, has_standby=bool(is_text)))
        try:
            for slab in () if self._is_single else self.slabs:
                slab.add_standby()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._become_single(error)

    def _terms(self, mix: AdapterMix) -> list[Terms]:
        """For each slab the stacks of the mix with their weights, heaviest adapter first."""
        pairs = zip(mix.names, mix.weights, strict=True)
        weighted = [(self._stacks(name), float(weight)) for name, weight in pairs if weight]
        return [
            [(stack, weight) for stacks, weight in weighted if (stack := stacks[index]) is not None]
            for index in range(len(self.slabs))
        ]

    def _stacks(self, name: str) -> list[LayerStack | None]:
        if name not in self._resident:
            try:
                adapter = self._library.adapter(name)
                self._resident[name] = [slab.stack(adapter.layers, adapter.scaling, name) for slab in self.slabs]
            except AdapterError as error:
                raise MixError(str(error), [name]) from None
            except Exception as error:
                if isinstance(error, RuntimeError) or is_out_of_memory(error):  # of the device
                    raise
                raise MixError(f"adapter '{name}': cannot be used ({type(error).__name__}: {error})", [name]) from None
        return self._resident[name]

    def _fuse_where(self, terms: Sequence[Terms], is_meant: Callable[[WeightSlab], bool]) -> None:
        for slab, slab_terms in zip(self.slabs, terms, strict=True):
            if is_meant(slab):
                slab.fuse(slab_terms, self._scratch)

    def _encode_text(self, mix: AdapterMix) -> Tensor:
        """Class embeddings of a mix whose weights are in the standby copy.

        Raises:
            MixError: They cannot be had. Named are the adapters with which alone they cannot be had either, or all.
        """
        try:
            return self._checked_text()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            failure = error
        singles = {name: self._terms(mix.only(name)) for name in mix.names}
        self._text_of([[] for _ in self.slabs])  # raises where no adapter is to blame
        names = [name for name, terms in singles.items() if not self._has_text(terms)]
        if not names and not isinstance(failure, AdapterError):
            raise failure  # of the device: another time it may work
        names = names or list(mix.names)
        listed = "', '".join(names)
        raise MixError(f"adapter '{listed}': {failure}; replace or remove its folder", names) from None

    def _has_text(self, terms: Sequence[Terms]) -> bool:
        try:
            self._text_of(terms)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return False
        return True

    def _text_of(self, terms: Sequence[Terms]) -> Tensor:
        """Class embeddings of other terms than those in the standby copy, which this overwrites."""
        self._fuse_where(terms, lambda slab: slab.is_shadowed)
        return self._checked_text()

    def _checked_text(self) -> Tensor:
        text_features = self._shadow.encode_text(self._token_ids)
        if not bool(text_features.isfinite().all()):
            raise AdapterError("class embeddings are not finite")
        return text_features

    @property
    def _exchanges(self) -> bool:
        """Whether a commit leaves the weights before in the standby copies; on a GPU that would be three copies."""
        return not self._is_single and not any(slab.is_fixed for slab in self.slabs)

    def _forget_what_stands_by(self) -> None:
        self.stands_by = None
        self._forget_all_but(self.in_use.mix.names if self.in_use else ())

    def _forget_all_but(self, names: Sequence[str]) -> None:
        self._resident = {name: stacks for name, stacks in self._resident.items() if name in names}


def _shadow_model(model: SegmentationModel, own_paths: Sequence[str]) -> SegmentationModel:
    """A second model that shares every tensor with `model` but the weights of `own_paths`."""
    own = {id(model.get_submodule(path).weight) for path in own_paths}
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        # A new Parameter on the same memory: its `data` can later point elsewhere without moving the model's own.
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False) if id(parameter) in own else parameter
    shadow: SegmentationModel = copy.deepcopy(model, memo)
    return shadow
