"""CLIP's visual and text towers, with the module names of the published CAT-Seg checkpoints.

Differences from the ordinary CLIP are few: query, key and value projections are three linear modules (so that LoRA can
be attached to each), and the visual tower also gives dense features, one vector per patch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.errors import ConfigError

HEAD_DIM = 64  # CLIP's head size at every model size
_PROMPTS_AT_ONCE = 1024  # of an ensemble; more would only hold more memory


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Dimensions of both towers; the defaults are ViT-B/16 at CAT-Seg's working resolution of 384.

    Grids are (rows, columns) of patches. `native_grid` is the size of the stored position table, `working_grid` the
    one that images are processed at; where they differ the table is resized.
    """

    patch: int = 16  # patch edge in pixels
    visual_width: int = 768  # multiple of 64
    visual_layers: int = 12
    native_grid: tuple[int, int] = (14, 14)
    working_grid: tuple[int, int] = (24, 24)
    embed_dim: int = 512  # joint image-text dimension
    text_width: int = 512  # multiple of 64
    text_layers: int = 12
    context_length: int = 77  # longest prompt in tokens
    vocab_rows: int = 49408  # rows of the token table
    pool: Literal["tok", "avg"] = "tok"  # what the image feature is: the class token, or the mean of the patches
    stem_dims: tuple[int, ...] = ()  # channels of a convolutional stem's halving stages; none: published embedding

    def __post_init__(self) -> None:
        for name in ("visual_width", "text_width"):
            if getattr(self, name) % HEAD_DIM or getattr(self, name) <= 0:
                raise ConfigError(f"'{name}' must be a positive multiple of {HEAD_DIM}, got {getattr(self, name)}")
        if self.pool not in ("tok", "avg"):
            raise ConfigError(f"'pool' must be 'tok' or 'avg', got {self.pool!r}")
        if self.stem_dims and self.patch != 2 ** (len(self.stem_dims) + 1):
            raise ConfigError(
                f"a stem of {len(self.stem_dims)} halving stages needs patches of {2 ** (len(self.stem_dims) + 1)} "
                f"pixels, got {self.patch}"
            )
        if self.visual_layers < 2:
            raise ConfigError(f"'visual_layers' must be at least 2, got {self.visual_layers}")

    @property
    def working_resolution(self) -> tuple[int, int]:
        """Height and width in pixels that the visual tower takes."""
        return self.working_grid[0] * self.patch, self.working_grid[1] * self.patch


@dataclass(frozen=True, eq=False)
class DenseFeatures:
    """What the visual tower gives the segmenter.

    Attributes:
        tokens: Class token and patch tokens in the joint space, shape (B, 1 + h*w, embed_dim), not normalised.
        guidance: Tokens after each guidance block, each of shape (B, 1 + h*w, visual_width).
        grid: (h, w).
        details: Maps of the convolutional stem, coarse to fine, at 2, 4, ... times the grid; empty without a stem.
    """

    tokens: Tensor
    guidance: tuple[Tensor, ...]
    grid: tuple[int, int]
    details: tuple[Tensor, ...] = ()

    @classmethod
    def of_views(cls, views: Sequence[DenseFeatures]) -> DenseFeatures:
        """One batch of views that were computed apart."""
        guidance, details = (
            tuple(torch.cat(maps) for maps in zip(*parts, strict=True))
            for parts in ([view.guidance for view in views], [view.details for view in views])
        )
        return cls(torch.cat([view.tokens for view in views]), guidance, views[0].grid, details)

    def feature_map(self) -> Tensor:
        """Patch tokens as a map, shape (B, embed_dim, h, w)."""
        return _as_map(self.tokens, self.grid)

    def guidance_map(self, index: int) -> Tensor:
        """Patch tokens after one guidance block, shape (B, visual_width, h, w)."""
        return _as_map(self.guidance[index], self.grid)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def project(module: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Apply a bias-free linear module and add a bias, in one kernel where the module is plain.

    Args:
        module: nn.Linear, or a wrapper around one.
        x: Shape (..., in).
        bias: Shape (out,).
    """
    if type(module) is nn.Linear:
        return F.linear(x, module.weight, bias)
    return torch.add(module(x), bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate projections and one bias vector for the three of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))  # order q, k, v
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:
        """Mix tokens of shape (B, N, width)."""
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            project(module, x, bias).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for module, bias in zip((self.q_proj, self.k_proj, self.v_proj), biases, strict=True)
        )  # each (B, heads, N, 64)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def values_only(self, x: Tensor) -> Tensor:
        """The output each token would have if it attended to itself alone, shape (B, N, width)."""
        bias = self.in_proj_bias.chunk(3)[2]
        projected: Tensor = self.out_proj(project(self.v_proj, x, bias))
        return projected


class QuickGelu(nn.Module):
    """u * sigmoid(1.702 u), the GELU of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, any shape."""
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers with an activation between them, OpenAI's QuickGELU unless told otherwise."""

    def __init__(self, width: int, activation: type[nn.Module] = QuickGelu) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = activation()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        projected: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return projected


class Block(nn.Module):
    """One residual attention block, pre-norm."""

    def __init__(self, width: int, activation: type[nn.Module] = QuickGelu) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation)

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:
        """Transform tokens of shape (B, N, width)."""
        x = x + self.attn(self.ln_1(x), is_causal=is_causal)
        return torch.add(x, self.mlp(self.ln_2(x)))

    def dense(self, x: Tensor) -> Tensor:
        """The block without attention mixing, so that each token keeps its place; shape (B, N, width).

        Each token's residual is the class token, not the token itself: published behaviour.
        """
        x = self.attn.values_only(self.ln_1(x)) + x[:, :1]
        return torch.add(x, self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """A stack of blocks, under the name that the checkpoints give it."""

    def __init__(self, width: int, layers: int, activation: type[nn.Module] = QuickGelu) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, activation) for _ in range(layers))


class ConvStem(nn.Module):
    """Patch embedding by convolutions: stages that halve the image, then a linear map of each 2x2 cell to a token.

    Transformers with such a stem learn from far fewer images (Xiao et al., "Early Convolutions Help Transformers See
    Better", NeurIPS 2021), and its maps keep what a patch of 16 pixels has no room for: poles, signs, people.
    """

    def __init__(self, dims: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(after // 8, after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.GroupNorm(after // 8, after),
                nn.ReLU(),
            )
            for before, after in zip((3, *dims), dims, strict=False)
        )
        self.to_tokens = nn.Linear(4 * dims[-1], width)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map (B, 3, H, W) to tokens (B, h*w, width) and the stages' maps, coarse to fine."""
        x = images.contiguous(memory_format=torch.channels_last)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        cells = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)  # (B, h*w, 4*C)
        tokens: Tensor = self.to_tokens(cells)
        return tokens, tuple(maps[::-1])


class ImageTower(nn.Module, ABC):
    """The image side of a CLIP, as training from captions asks for it."""

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """The ordinary CLIP image feature.

        Args:
            images: Normalised, shape (B, 3, H, W), H and W multiples of the tower's coarsest cell.

        Returns:
            Shape (B, embed_dim), not normalised.
        """

    @abstractmethod
    def cells(self, images: Tensor) -> Tensor:
        """Features of each cell of such images, shape (B, embed_dim, h, w), not normalised."""


class VisualTower(ImageTower):
    """CLIP's vision transformer."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.visual_width
        rows, columns = config.native_grid
        self.config = config
        self.conv1 = (
            ConvStem(config.stem_dims, width)
            if config.stem_dims
            else nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        )
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(1 + rows * columns, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.visual_layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position table for a grid of patches, shape (1 + h*w, width); bicubic where it is not the native one.

        Computed anew each time: it costs microseconds to a few milliseconds and can never be stale.
        """
        if grid == self.config.native_grid:
            return self.positional_embedding
        table = self.positional_embedding[1:].view(*self.config.native_grid, -1).permute(2, 0, 1)
        resized = F.interpolate(table[None].float(), size=grid, mode="bicubic", align_corners=False)[0]
        patches = resized.flatten(1).transpose(0, 1).to(self.positional_embedding.dtype)
        return torch.cat([self.positional_embedding[:1], patches])

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], tuple[Tensor, ...]]:
        patch = self.config.patch
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise ConfigError(f"image of {height}x{width} pixels is not a multiple of the patch size {patch}")
        details: tuple[Tensor, ...] = ()
        if isinstance(self.conv1, ConvStem):
            x, details = self.conv1(images)
        else:
            x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, h*w, width)
        grid = (height // patch, width // patch)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return self.ln_pre(torch.cat([first, x], dim=1) + self.positions(grid)), grid, details

    def forward(self, images: Tensor) -> Tensor:
        """The ordinary CLIP image feature, see `pooled`."""
        x, _, _ = self._embed(images)
        for block in self.transformer.resblocks:
            x = block(x)
        pooled: Tensor = self.ln_post(x[:, 0]) if self.config.pool == "tok" else self.ln_post(x[:, 1:]).mean(dim=1)
        return pooled @ self.proj

    def pooled(self, images: Tensor) -> Tensor:
        """See `ImageTower.pooled`."""
        feature: Tensor = self(images)
        return feature

    def cells(self, images: Tensor) -> Tensor:
        """See `ImageTower.cells`."""
        return self.dense(images, ()).feature_map()

    def dense(self, images: Tensor, guidance_layers: tuple[int, ...]) -> DenseFeatures:
        """Features for each patch.

        Args:
            images: Normalised, shape (B, 3, H, W), H and W multiples of the patch size.
            guidance_layers: Indices of the blocks whose output guides the decoder, ascending, before the last block.
        """
        x, grid, details = self._embed(images)
        blocks = self.transformer.resblocks
        guidance: dict[int, Tensor] = {}
        for index, block in enumerate(blocks[:-1]):
            x = block(x)
            if index in guidance_layers:
                guidance[index] = x
        last = blocks[-1]
        assert isinstance(last, Block)
        tokens = self.ln_post(last.dense(x)) @ self.proj
        return DenseFeatures(tokens, tuple(guidance[index] for index in guidance_layers), grid, details)


class TextTower(nn.Module):
    """A CLIP model's text side; its modules stand directly below, beside the visual tower, as in the checkpoints.

    Args:
        visual: The visual tower.
        width: Of the text tower, a multiple of 64.
        layers: Of the text tower.
        embed_dim: Joint image-text dimension.
        context_length: Longest prompt in tokens.
        vocab_rows: Rows of the token table.
        activation: Of the MLPs.
    """

    visual: ImageTower

    def __init__(
        self,
        visual: ImageTower,
        *,
        width: int,
        layers: int,
        embed_dim: int,
        context_length: int,
        vocab_rows: int,
        activation: type[nn.Module] = QuickGelu,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.visual = visual
        self.token_embedding = nn.Embedding(vocab_rows, width)
        self.positional_embedding = nn.Parameter(torch.randn(context_length, width) * 0.01)
        self.transformer = Transformer(width, layers, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Embed prompts.

        The text tower is causal, so what stands behind the last end-of-text token cannot matter: prompts are cut at
        the longest one, which gives the same result for a fraction of the work.

        Args:
            token_ids: Token rows, shape (T, L), int64, L <= context_length; the end-of-text token has the largest id,
                0 pads.

        Returns:
            Shape (T, embed_dim), unit length.
        """
        if token_ids.ndim != 2 or token_ids.shape[1] > self.context_length:
            raise ConfigError(
                f"token ids must have shape (T, L) with L at most {self.context_length}, got {tuple(token_ids.shape)}"
            )
        end = token_ids.argmax(dim=-1)  # (T,)
        length = int(end.max()) + 1
        x = self.token_embedding(token_ids[:, :length]) + self.positional_embedding[:length]
        for block in self.transformer.resblocks:
            x = block(x, is_causal=True)
        last: Tensor = self.ln_final(x[torch.arange(len(x), device=x.device), end])
        embeddings: Tensor = F.normalize(last @ self.text_projection, dim=-1)
        return embeddings

    def encode_ensemble(self, token_ids: Tensor) -> Tensor:
        """Embed an ensemble of prompts, averaged over synonyms.

        Args:
            token_ids: Shape (T, P, S, L): classes, templates, synonyms; a synonym of nothing but padding is absent.

        Returns:
            Shape (T, P, embed_dim), unit length.
        """
        present = token_ids.any(dim=-1)  # (T, P, S)
        every = torch.zeros(*present.shape, self.text_projection.shape[1], device=token_ids.device)
        parts = torch.split(token_ids[present], _PROMPTS_AT_ONCE)  # type: ignore[no-untyped-call]
        embeddings = torch.cat([self.encode_text(some) for some in parts])
        every = every.to(embeddings.dtype).index_put((present,), embeddings)
        mean: Tensor = F.normalize(every.sum(dim=2), dim=-1)  # the sum and the mean point the same way
        return mean


class Clip(TextTower):
    """Both towers of OpenAI's kind."""

    visual: VisualTower

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(
            VisualTower(config),
            width=config.text_width,
            layers=config.text_layers,
            embed_dim=config.embed_dim,
            context_length=config.context_length,
            vocab_rows=config.vocab_rows,
        )
        self.config = config


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an open_clip (or original CLIP) state dict to the names used here.

    The fused `in_proj_weight` (3w, w) becomes three matrices, rows in the order q, k, v.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.in_proj_weight"):
            stem = name.removesuffix("in_proj_weight")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{stem}{letter}_proj.weight"] = part
        elif name not in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
            renamed[name] = tensor
    return renamed


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_open_clip`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.q_proj.weight"):
            stem = name.removesuffix("q_proj.weight")
            renamed[stem + "in_proj_weight"] = torch.cat([tensors[f"{stem}{letter}_proj.weight"] for letter in "qkv"])
        elif not name.endswith(("attn.k_proj.weight", "attn.v_proj.weight")):
            renamed[name] = tensor
    return renamed


def clip_parameter_groups(model: nn.Module, clip: str) -> tuple[list[Tensor], list[Tensor]]:
    """`SegmentationModel.parameter_groups` of a model whose CLIP stands below a path, its image tower as `visual`."""
    visual, rest = [], []
    for name, parameter in model.named_parameters():
        if name.startswith(clip + "visual."):
            visual.append(parameter.requires_grad_(True))
        elif name.startswith(clip):
            parameter.requires_grad_(False)
        else:
            rest.append(parameter.requires_grad_(True))
    return visual, rest
