"""The layers of cost aggregation and decoder, in the form that every device runs and training differentiates.

Maps travel channels-last, shape (B, T, H, W, C): batch, class, rows, columns, channels.

Much of the published computation is the same for every class or every pixel. With `exact_rewrites` that part is
computed once; the function is the same, only rounding differs:

- Class attention pads T classes to `pad_len` with one learned token. In linear attention that token adds the same
  term to both sums at every pixel, so it is added (pad_len - T) times in closed form.
- Queries and keys read [feature ; guidance]. A linear map of a concatenation is a sum of two, and the guidance half
  is the same for all classes (appearance) or all pixels (text).
- The first convolution of each decoder step reads [upsampled ; guidance] and splits likewise.

Nothing derived from a weight outlives a call, so weights may be overwritten between two calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """Dimensions of the aggregator; the defaults are the published ones (B size)."""

    grid: tuple[int, int] = (24, 24)  # rows, columns of the cost volume
    hidden_dim: int = 128
    layers: int = 2
    heads: int = 4
    window: int = 12  # edge of an attention window in cells, divides both edges of the grid
    pooling: tuple[int, int] = (1, 1)  # average pooling before class attention, divides the grid
    pad_len: int = 256  # classes are padded to this length, the best of more are processed; 0 = neither
    embed_dim: int = 512  # channels of the dense features and class embeddings
    text_guidance_dim: int = 128
    appearance_guidance_dim: int = 128
    decoder_dims: tuple[int, ...] = (64, 32)  # of each step; the first two are guided by transformer blocks
    decoder_guidance_dims: tuple[int, int] = (256, 128)
    decoder_guidance_proj_dims: tuple[int, ...] = (32, 16)  # guidance channels that each step reads
    detail_dims: tuple[int, ...] = ()  # channels of a convolutional stem's maps, one for each step; none: published

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if self.window < 1 or rows % self.window or columns % self.window:
            raise ConfigError(f"'window' must divide the grid {rows}x{columns}, got {self.window}")
        if rows % self.pooling[0] or columns % self.pooling[1]:
            raise ConfigError(f"'pooling' must divide the grid {rows}x{columns}, got {self.pooling}")
        if self.hidden_dim % self.heads:
            raise ConfigError(f"'heads' must divide hidden_dim {self.hidden_dim}, got {self.heads}")
        if self.pad_len < 0:
            raise ConfigError(f"'pad_len' must be at least 0, got {self.pad_len}")
        steps = len(self.decoder_dims)
        if steps < 2 or len(self.decoder_guidance_proj_dims) != steps or len(self.detail_dims) not in (0, steps):
            raise ConfigError(
                f"'decoder_guidance_proj_dims' and 'detail_dims' (unless empty) must have one entry for each of the at "
                f"least 2 'decoder_dims' {self.decoder_dims}, got {self.decoder_guidance_proj_dims}, {self.detail_dims}"
            )
        if steps > 2 and not self.detail_dims:
            raise ConfigError(f"{steps} decoder steps need 'detail_dims': transformer blocks guide the first two only")
        dims = (self.hidden_dim, *self.decoder_dims)
        for dim, guidance in zip(dims, self.decoder_guidance_proj_dims, strict=False):
            if guidance >= dim:
                raise ConfigError(f"'decoder_guidance_proj_dims' must be below {dim}, got {guidance}")


def has_dropout(module: nn.Module) -> bool:
    """Whether a module is random at the moment."""
    return module.training and any(isinstance(item, nn.Dropout) and item.p > 0 for item in module.modules())


def split_linear(module: nn.Module, x: Tensor, guidance: Tensor, *, exact_rewrites: bool) -> Tensor:
    """Linear map of the concatenation [x ; guidance] along the last axis.

    Args:
        module: nn.Linear, or a linear wrapper of one such as a LoRA layer.
        x: Shape (..., C).
        guidance: Shape (..., G), broadcastable against x in the leading axes.
        exact_rewrites: Apply the two halves apart, the guidance half without broadcasting.
    """
    channels = x.shape[-1]
    if not exact_rewrites or has_dropout(module):
        stacked = torch.cat([x, guidance.to(x.dtype).expand(*x.shape[:-1], -1)], dim=-1)
        literal: Tensor = module(stacked)
        return literal
    if type(module) is nn.Linear:
        weight, bias = module.weight, module.bias
    else:
        # The wrapper's own weight, read off by sending the identity through it: differentiable, and a few hundred
        # rows where the maps have tens of thousands.
        size = channels + guidance.shape[-1]
        probe = torch.zeros(size + 1, size, device=x.device)
        probe.fill_diagonal_(1.0)
        with torch.autocast(x.device.type, enabled=False):
            rows = module(probe)
        weight, bias = (rows[:-1] - rows[-1]).transpose(0, 1), rows[-1]
    shared = F.linear(guidance, weight[:, channels:], bias)
    return F.linear(x, weight[:, :channels]) + shared


def split_convolution(
    module: nn.Module, x: Tensor, guidance: Tensor, own_guidance: Tensor | None = None, *, exact_rewrites: bool
) -> Tensor:
    """3x3 convolution without bias of the concatenation [x ; guidance ; own guidance] along the channels.

    Args:
        module: nn.Conv2d or a wrapper of one.
        x: Class maps, shape (B*T, C, H, W).
        guidance: Shared by the T maps of an image, shape (B, G, H, W).
        own_guidance: Of each class map, shape (B*T, E, H, W), where there is any.
        exact_rewrites: Convolve the guidance once for each image instead of once for each map.
    """
    images = guidance.shape[0]  # unlike len(), it may stay a variable where the model is exported
    own_parts = [x] if own_guidance is None else [x, own_guidance]
    if not exact_rewrites or type(module) is not nn.Conv2d:
        repeated = guidance.repeat_interleave(x.shape[0] // images, dim=0)
        literal: Tensor = module(torch.cat([x, repeated.to(x.dtype), *own_parts[1:]], dim=1))
        return literal
    start = x.shape[1]
    end = start + guidance.shape[1]
    shared = F.conv2d(guidance, module.weight[:, start:end], padding=1)
    if own_guidance is None:
        own = F.conv2d(x, module.weight[:, :start], padding=1)
    else:
        weight = torch.cat([module.weight[:, :start], module.weight[:, end:]], dim=1)
        own = F.conv2d(torch.cat(own_parts, dim=1), weight, padding=1)
    return (own.view(images, -1, *own.shape[1:]) + shared[:, None]).flatten(0, 1)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut (B, T, H, W, C) into (B, T, windows, window**2, C), windows row-major."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // window, window, w // window, window, c)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, t, -1, window * window, c)


def from_windows(x: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`."""
    b, t, _, _, c = x.shape
    h, w = grid
    x = x.reshape(b, t, h // window, w // window, window, window, c)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h, w, c)


def shifted_window_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Additive mask that keeps cells apart which are neighbours only because of the cyclic shift.

    Returns:
        Shape (windows, window**2, window**2): 0 within a region, -100 across.
    """
    rows, columns = (_shift_regions(size, window, shift) for size in grid)
    region = rows[:, None] * 3 + columns[None, :]
    cells = to_windows(region[None, None, :, :, None].float(), window)[0, 0, :, :, 0]  # (windows, window**2)
    return (cells[:, None, :] != cells[:, :, None]).float() * -100.0


def _shift_regions(size: int, window: int, shift: int) -> Tensor:
    index = torch.arange(size)
    return (index >= size - window).long() + (index >= size - shift).long()


class WindowAttention(nn.Module):
    """Attention within windows; queries and keys also see the appearance guidance."""

    def __init__(self, dim: int, guidance_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, guidance: Tensor, mask: Tensor | None, *, exact_rewrites: bool) -> Tensor:
        """Mix the cells of each window.

        Args:
            x: Shape (B, T, windows, n, C).
            guidance: Shape (B, 1, windows, n, G).
            mask: Additive, shape (windows, n, n), or None.
            exact_rewrites: See the module's docstring.
        """
        b, t, windows, n, _ = x.shape
        q = split_linear(self.q, x, guidance, exact_rewrites=exact_rewrites)
        k = split_linear(self.k, x, guidance, exact_rewrites=exact_rewrites)
        q, k, v = (
            item.reshape(b * t * windows, n, self.heads, -1).transpose(1, 2) for item in (q, k, self.v(x))
        )  # each (B*T*windows, heads, n, head dim)
        if mask is not None:
            mask = mask.to(q.dtype).expand(b * t, -1, -1, -1).reshape(b * t * windows, 1, n, n)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return projected


class WindowMlp(nn.Module):
    """Two linear layers with an exact GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class WindowBlock(nn.Module):
    """Window attention and MLP, both residual and pre-norm; shifted by half a window where `shift` is set."""

    attn_mask: Tensor | None

    def __init__(self, config: AggregatorConfig, *, shift: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.grid, self.window, self.shift = config.grid, config.window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.appearance_guidance_dim, config.heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = WindowMlp(dim)
        self.register_buffer("attn_mask", self.make_attn_mask() if shift else None)

    def make_attn_mask(self) -> Tensor:
        """The mask of a shifted block, computed from the grid."""
        return shifted_window_mask(self.grid, self.window, self.shift)

    def forward(self, x: Tensor, guidance: Tensor, *, exact_rewrites: bool) -> Tensor:
        """Transform (B, T, H, W, C) under guidance (B, 1, H, W, G)."""
        n = self.norm1(x)
        if self.shift:
            n, guidance = (torch.roll(item, (-self.shift, -self.shift), dims=(2, 3)) for item in (n, guidance))
        mixed = self.attn(
            to_windows(n, self.window),
            to_windows(guidance, self.window),
            self.attn_mask,
            exact_rewrites=exact_rewrites,
        )
        mixed = from_windows(mixed, self.window, self.grid)
        if self.shift:
            mixed = torch.roll(mixed, (self.shift, self.shift), dims=(2, 3))
        x = x + mixed
        return torch.add(x, self.mlp(self.norm2(x)))


class SpatialPart(nn.Module):
    """Aggregation over the image, for each class apart: one plain and one shifted window block."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        # One window that covers the grid has nothing to exchange with neighbours.
        shift = config.window // 2 if config.grid != (config.window, config.window) else 0
        self.block_1 = WindowBlock(config, shift=0)
        self.block_2 = WindowBlock(config, shift=shift)
        self.guidance_norm = nn.LayerNorm(config.appearance_guidance_dim)

    def forward(self, x: Tensor, appearance: Tensor, *, exact_rewrites: bool) -> Tensor:
        """Transform (B, T, H, W, C) under guidance (B, 1, H, W, G)."""
        guidance = self.guidance_norm(appearance)
        x = self.block_1(x, guidance, exact_rewrites=exact_rewrites)
        mixed: Tensor = self.block_2(x, guidance, exact_rewrites=exact_rewrites)
        return mixed


class LinearAttention(nn.Module):
    """Linear attention over classes; queries and keys also see the text guidance."""

    eps = 1e-6

    def __init__(self, dim: int, guidance_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        guidance: Tensor,
        padding: tuple[Tensor, Tensor, int | Tensor] | None,
        presence: Tensor | None = None,
        *,
        exact_rewrites: bool,
    ) -> Tensor:
        """Mix the classes of each pixel.

        Args:
            x: Shape (B, T, P, C).
            guidance: Shape (B or 1, T, 1, G).
            padding: A token (1, 1, 1, C), its guidance (1, 1, 1, G) and how many times it stands behind the T
                classes; None for none.
            presence: Shape (T,), 0 for rows that nothing is to attend to; None where there are none.
            exact_rewrites: See the module's docstring.
        """
        q, k, v = self.project(x, guidance, exact_rewrites=exact_rewrites)
        if presence is not None:
            k = k * presence.to(k.dtype)[:, None, None, None]
        sums = torch.einsum("btphi,btphj->bphij", k, v)  # (B, P, heads, d, d)
        norms = k.sum(dim=1)  # (B, P, heads, d)
        if padding is not None:
            token, token_guidance, count = padding
            _, pad_k, pad_v = self.project(token, token_guidance, exact_rewrites=False)
            sums = sums + count * pad_k[:, 0, :, :, :, None] * pad_v[:, 0, :, :, None, :]
            norms = norms + count * pad_k[:, 0]
        mixed = torch.einsum("btphi,bphij->btphj", q, sums)
        scale = torch.einsum("btphi,bphi->btph", q, norms) + self.eps
        return (mixed / scale[..., None]).flatten(3)

    def project(self, x: Tensor, guidance: Tensor, *, exact_rewrites: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both positive) and values, each (B, T, P, heads, d); see `forward`."""
        q = F.elu(split_linear(self.q, x, guidance, exact_rewrites=exact_rewrites)) + 1.0
        k = F.elu(split_linear(self.k, x, guidance, exact_rewrites=exact_rewrites)) + 1.0
        q, k, v = (item.view(*item.shape[:3], self.heads, -1) for item in (q, k, self.v(x)))
        return q, k, v


class ClassPart(nn.Module):
    """Aggregation over the classes, for each pixel apart.

    Args:
        dim: Channels of the class maps.
        heads: Of the attention, divides `dim`.
        guidance_dim: Channels of the text guidance; 0 = none.
        pad_len: Classes are padded to this length; 0 = not.
        pooling: Average pooling before the attention, (rows, columns).
    """

    def __init__(
        self, dim: int, heads: int, *, guidance_dim: int = 0, pad_len: int = 0, pooling: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.pad_len, self.pooling = pad_len, pooling
        self.attention = LinearAttention(dim, guidance_dim, heads)
        self.MLP = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        if pad_len:
            self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_dim))

    def forward(
        self, x: Tensor, text_guidance: Tensor, presence: Tensor | None = None, *, exact_rewrites: bool
    ) -> Tensor:
        """Transform (B, T, H, W, C) under guidance (B or 1, T, G); `presence` (T,) as in `CostAggregator.forward`."""
        b, t, h, w, c = x.shape
        grid = (h // self.pooling[0], w // self.pooling[1])
        y = x
        if grid != (h, w):
            pooled = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), self.pooling)
            y = pooled.permute(0, 2, 3, 1)
        y = y.reshape(b, t, -1, c)  # (B, T, P, C)
        guidance = text_guidance[:, :, None]  # (B or 1, T, 1, G)
        missing: int | Tensor = self.pad_len - t
        padding: tuple[Tensor, Tensor, int | Tensor] | None = None
        if presence is not None:
            missing = self.pad_len - presence.sum()  # a tensor: nothing waits for the GPU, nothing is compiled anew
            if self.pad_len:
                padding = (self.norm1(self.padding_tokens[:, None]), self.padding_guidance[:, None], missing)
        elif missing > 0 and exact_rewrites:
            padding = (self.norm1(self.padding_tokens[:, None]), self.padding_guidance[:, None], missing)
        elif missing > 0:
            tokens = self.padding_tokens[:, :, None].expand(b, self.pad_len - t, y.shape[2], -1).to(y.dtype)
            y = torch.cat([y, tokens], dim=1)
            filler = self.padding_guidance[:, :, None].expand(guidance.shape[0], self.pad_len - t, -1, -1)
            guidance = torch.cat([guidance, filler.to(guidance.dtype)], dim=1)
        y = y + self.attention(self.norm1(y), guidance, padding, presence, exact_rewrites=exact_rewrites)
        y = y + self.MLP(self.norm2(y))
        y = y[:, :t]
        if grid != (h, w):
            maps = y.reshape(b * t, *grid, c).permute(0, 3, 1, 2)
            maps = F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=True)
            y = maps.permute(0, 2, 3, 1)
        # y holds x already, so the residual counts twice: published behaviour.
        return x + y.reshape(x.shape)


class DoubleConvolution(nn.Module):
    """Twice: 3x3 convolution, group norm, ReLU; the first reads [x ; guidance ; own guidance]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        groups = max(1, channels_out // 16)
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.GroupNorm(groups, channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.GroupNorm(groups, channels_out),
            nn.ReLU(),
        )

    def forward(
        self, x: Tensor, guidance: Tensor, own_guidance: Tensor | None = None, *, exact_rewrites: bool
    ) -> Tensor:
        """Map (B*T, C, H, W), guidance (B, G, H, W) and own guidance (B*T, E, H, W) to (B*T, C_out, H, W)."""
        first, *rest = self.double_conv
        x = split_convolution(first, x, guidance, own_guidance, exact_rewrites=exact_rewrites)
        for module in rest:
            x = module(x)
        return x


class DecoderStep(nn.Module):
    """Doubles the resolution of each class map under guidance."""

    def __init__(self, channels_in: int, channels_out: int, guidance_dim: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels_in, channels_in - guidance_dim, 2, stride=2)
        self.conv = DoubleConvolution(channels_in, channels_out)

    def forward(self, x: Tensor, guidance: Tensor, *, exact_rewrites: bool) -> Tensor:
        """Map (B*T, C, H, W) and guidance (B, G, 2H, 2W) to (B*T, C_out, 2H, 2W)."""
        doubled: Tensor = self.conv(self.up(x), guidance, exact_rewrites=exact_rewrites)
        return doubled
