"""Cost aggregation on a CPU, a few class maps or pixels at a time, so that intermediate results stay in its caches.

The whole batch of a published B-size image makes intermediate tensors of 30 to 110 MB; written to memory and read back
at each step they take longer than the arithmetic. Class maps are independent in the spatial part and in the decoder,
pixels in the class part, so both are taken through all their steps in small groups. Exact, as are the other rewrites
of `aggregation_layers`, and for inference only: nothing here builds a graph, and every layer must be a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.segmentation.aggregation_layers import ClassPart, DecoderStep, LinearAttention, SpatialPart, WindowBlock

FLOATS_AT_ONCE = 150_000  # in the spatial and the class part, whose hidden layers hold four times as many
DECODED_AT_ONCE = 600_000  # floats in the decoder's last step


def is_possible(module: nn.Module, x: Tensor) -> bool:
    """Whether `module` can run here: on a CPU, without gradients, eagerly, every layer a plain one."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(type(item) in _PLAIN or not _is_layer(item) for item in module.modules())
    )


_PLAIN = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _PLAIN) or hasattr(module, "base_layer")


# Spatial part


def mix_space(part: SpatialPart, x: Tensor, appearance: Tensor) -> Tensor:
    """`SpatialPart` on (B, T, H, W, C) under appearance (B, 1, H, W, G)."""
    b, t, h, w, c = x.shape
    mixed = torch.empty((b, t, h * w, c), dtype=x.dtype)
    maps = x.reshape(b, t, h * w, c)
    blocks = [part.block_1, part.block_2]
    orders = [_window_order(block) for block in blocks]
    there, back = orders[0].argsort()[orders[1]], orders[1].argsort()
    maps_at_once = max(1, FLOATS_AT_ONCE // (h * w * c))
    for image in range(b):
        guidance = part.guidance_norm(appearance[image, 0]).flatten(0, 1)  # (H*W, G)
        shared = [_guidance_part(block, guidance[order]) for block, order in zip(blocks, orders, strict=True)]
        for start in range(0, t, maps_at_once):
            y = maps[image, start : start + maps_at_once].index_select(1, orders[0])
            y = _window_block(blocks[0], y, shared[0])
            y = y.index_select(1, there)
            y = _window_block(blocks[1], y, shared[1])
            torch.index_select(y, 1, back, out=mixed[image, start : start + maps_at_once])
    return mixed.view(x.shape)


def _window_order(block: WindowBlock) -> Tensor:
    """Cells of the grid in the order of the block's windows, shape (H*W,)."""
    (rows, columns), edge = block.grid, block.window
    cells = torch.arange(rows * columns).view(rows, columns).roll((-block.shift, -block.shift), dims=(0, 1))
    return cells.view(rows // edge, edge, columns // edge, edge).transpose(1, 2).flatten()


def _guidance_part(block: WindowBlock, guidance: Tensor) -> Tensor:
    """What guidance (H*W, G) and the biases add to queries, keys and values, shape (H*W, 3C)."""
    attention = block.attn
    channels = attention.v.in_features
    halves = [F.linear(guidance, item.weight[:, channels:], item.bias) for item in (attention.q, attention.k)]
    return torch.cat([*halves, attention.v.bias.to(halves[0].dtype).expand(len(guidance), -1)], dim=1)


def _window_block(block: WindowBlock, x: Tensor, shared: Tensor) -> Tensor:
    """One block on class maps (M, H*W, C) in the order of its windows; `x` is overwritten."""
    attention = block.attn
    m, cells, c = x.shape
    n = block.window**2
    weight = torch.cat([attention.q.weight[:, :c], attention.k.weight[:, :c], attention.v.weight])
    qkv = F.linear(block.norm1(x), weight).add_(shared)  # (M, H*W, 3C)
    q, k, v = qkv.view(m * cells // n, n, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)  # each (windows, heads, n, d)
    mask = block.attn_mask
    if mask is not None:
        mask = mask.to(q.dtype).repeat(m, 1, 1)[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x += attention.proj(mixed.transpose(1, 2).reshape(x.shape))
    hidden = torch.ops.aten.gelu_(block.mlp.fc1(block.norm2(x)))
    x += block.mlp.fc2(hidden)
    return x


# Class part


def mix_classes(part: ClassPart, x: Tensor, text_guidance: Tensor) -> Tensor:
    """`ClassPart` without pooling on (B, T, H, W, C) under guidance (B or 1, T, G)."""
    b, t, h, w, c = x.shape
    mixed = torch.empty((b, t, h * w, c), dtype=x.dtype)
    pixels = x.reshape(b, t, h * w, c)
    attention = part.attention
    shared = _text_part(attention, text_guidance)  # (B or 1, T, 3C)
    padding = _padding_sums(part, t)
    step = max(1, FLOATS_AT_ONCE // (t * c))
    for image in range(b):
        for start in range(0, h * w, step):
            y = pixels[image, :, start : start + step].transpose(0, 1).contiguous()  # (P, T, C)
            total = y + _attend(attention, part.norm1(y), shared[image % len(shared)], padding)
            first, last = part.MLP[0], part.MLP[2]
            y += total  # the residual counts twice: published behaviour
            y += last(F.relu_(first(part.norm2(total))))
            mixed[image, :, start : start + step] = y.transpose(0, 1)
    return mixed.view(x.shape)


def _text_part(attention: LinearAttention, guidance: Tensor) -> Tensor:
    """What guidance (B, T, G) and the biases add to queries, keys and values, shape (B, T, 3C)."""
    channels = attention.v.in_features
    halves = [F.linear(guidance, item.weight[:, channels:], item.bias) for item in (attention.q, attention.k)]
    return torch.cat([*halves, attention.v.bias.to(halves[0].dtype).expand_as(halves[0])], dim=2)


def _padding_sums(part: ClassPart, classes: int) -> tuple[Tensor, Tensor] | None:
    """What the learned tokens behind the classes add to the two sums of linear attention, (heads, d, d), (heads, d)."""
    missing = part.pad_len - classes
    if missing <= 0:
        return None
    token = part.norm1(part.padding_tokens[:, None])
    _, k, v = part.attention.project(token, part.padding_guidance[:, None], exact_rewrites=False)
    k, v = k[0, 0, 0].float(), v[0, 0, 0].float()  # (heads, d)
    return missing * k[:, :, None] * v[:, None, :], missing * k


def _attend(attention: LinearAttention, x: Tensor, shared: Tensor, padding: tuple[Tensor, Tensor] | None) -> Tensor:
    """Linear attention over T for pixels (P, T, C), with what `_text_part` gives for the T classes."""
    p, t, c = x.shape
    weight = torch.cat([attention.q.weight[:, :c], attention.k.weight[:, :c], attention.v.weight])
    qkv = F.linear(x, weight).add_(shared).float()  # (P, T, 3C)
    F.elu_(qkv[:, :, : 2 * c]).add_(1.0)
    q, k, v = (item.view(p, t, attention.heads, -1) for item in torch.split(qkv, c, dim=2))
    mixed = torch.empty_like(x, dtype=qkv.dtype)
    for head, out in enumerate(mixed.view(p, t, attention.heads, -1).unbind(2)):
        queries, keys, values = q[:, :, head], k[:, :, head], v[:, :, head]  # (P, T, d), strided: no copy
        sums = torch.bmm(keys.transpose(1, 2), values)  # (P, d, d)
        norms = keys.sum(dim=1)  # (P, d)
        if padding is not None:
            sums += padding[0][head]
            norms += padding[1][head]
        scale = torch.bmm(queries, norms[:, :, None]).add_(attention.eps)  # (P, T, 1)
        torch.div(torch.bmm(queries, sums), scale, out=out)
    return mixed


# Decoder


def decode(steps: Sequence[DecoderStep], head: nn.Conv2d, maps: Tensor, guides: Sequence[Tensor]) -> Tensor:
    """Class maps (B*T, C, H, W) under guides (B, ., 2H, 2W), (B, ., 4H, 4W), ... to (B*T, 1, sH, sW)."""
    doublings = [_doubling(step) for step in steps]
    images, last_map = len(guides[0]), guides[-1].shape[2] * guides[-1].shape[3] * head.in_channels
    maps_at_once = max(1, DECODED_AT_ONCE // last_map)
    parts = []
    for image, own in enumerate(maps.chunk(images)):
        shared = [_guide_part(step, guide[image : image + 1]) for step, guide in zip(steps, guides, strict=True)]
        for some in torch.split(own, maps_at_once):
            y = some
            for step, doubling, add in zip(steps, doublings, shared, strict=True):
                y = F.conv_transpose2d(y, doubling, stride=2, padding=1) + add
                for module in list(step.conv.double_conv)[1:]:
                    y = F.relu_(y) if isinstance(module, nn.ReLU) else module(y)
            parts.append(_single_channel(head, y))
    return torch.cat(parts)


def _doubling(step: DecoderStep) -> Tensor:
    """The step's transposed convolution and the 3x3 convolution after it as one, shape (C, C_out, 4, 4).

    Nothing stands between the two, so they are one linear map: a transposed convolution with kernel 4, stride 2 and
    padding 1, at half the multiplications and without the maps in between.
    """
    up, convolution = step.up.weight, _first_convolution(step).weight  # (C, m, 2, 2), (C_out, m + G, 3, 3)
    parts = torch.einsum("cmab,omij->abijco", up.float(), convolution[:, : up.shape[1]].float())
    kernel = parts.new_zeros(4, 4, up.shape[0], convolution.shape[0])
    for a in range(2):
        for i in range(3):
            for b in range(2):
                for j in range(3):
                    kernel[a - i + 2, b - j + 2] += parts[a, b, i, j]
    return kernel.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _guide_part(step: DecoderStep, guide: Tensor) -> Tensor:
    """What the guide (1, G, 2H, 2W) and the transposed convolution's bias add before the first norm."""
    bias = _bias(step.up)[None, :, None, None].to(guide.dtype).expand(1, -1, *guide.shape[2:])
    both = torch.cat([bias, guide], dim=1).contiguous(memory_format=torch.channels_last)
    return F.conv2d(both, _first_convolution(step).weight, padding=1)


def _first_convolution(step: DecoderStep) -> nn.Conv2d:
    module = step.conv.double_conv[0]
    assert isinstance(module, nn.Conv2d)
    return module


def _bias(module: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert module.bias is not None
    return module.bias


def _single_channel(head: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution to one channel, (M, C, H, W) to (M, 1, H, W): nine dot products a pixel, then nine shifts.

    Convolution kernels work on blocks of 16 output channels; for one of them they take three times as long.
    """
    m, _, h, w = x.shape
    taps = F.linear(x.permute(0, 2, 3, 1), head.weight[0].flatten(1).T).float().permute(3, 0, 1, 2)  # (9, M, H, W)
    padded = torch.zeros((m, h + 2, w + 2))
    for tap, values in enumerate(taps):
        row, column = 2 - tap // 3, 2 - tap % 3
        padded[:, row : row + h, column : column + w] += values
    padded += _bias(head).float()
    return padded[:, None, 1 : 1 + h, 1 : 1 + w]
