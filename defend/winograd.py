"""3x3 convolutions with a quarter of the multiplications, on CPUs.

Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, section 4:
F(4x4, 3x3). Each tile of 4 x 4 outputs is computed from 6 x 6 inputs:

    Y = A^T [(G g G^T) * (B^T d B)] A        * element by element, then summed over input channels

Symbols: d is a tile of the padded input, g a kernel, Y a tile of the output. Of a tile read row by
row, B^T d B is the matrix `_BT (x) _BT` (a Kronecker product) times the vector d, and so on. The 36
sums over channels are 36 products of matrices, one for each place of a tile.

Float32 results are within about 1e-5 of the largest output, as those of a direct convolution are
within 1e-6. Those of an image do not depend on the rest of its batch: the size of an image alone
decides the shapes of all products of matrices.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

TILE = 4  # outputs along each side of a tile
PATCH = TILE + 2  # inputs along each side
CHUNK = 64  # tiles that are computed at once, so that the work fits into the cache
SMALLEST = 64  # channels, in and out, below which the transforms cost more than they save
REGISTER = 16  # float32 numbers: other columns of a product may be summed in another order

_BT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_AT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConv2d(nn.Conv2d):
    """A Conv2d that computes float32 and float64 on a CPU by `conv2d`, and the rest as torch does.

    `use_winograd` makes one of a Conv2d.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_wide = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
        is_plain = x.ndim == 4 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if is_wide and is_plain and min(x.shape[2:]) > TILE:
            return conv2d(x, weight, bias)
        y: Tensor = super()._conv_forward(x, weight, bias)
        return y


def use_winograd(net: nn.Module, wanted: bool = True) -> None:
    """Let the eligible convolutions of a network compute by `conv2d`, or no longer.

    Parameters, buffers and their names stay as they are.
    """
    for module in eligible(net):
        module.__class__ = WinogradConv2d if wanted else nn.Conv2d


def eligible(net: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions that `conv2d` can compute and that have enough channels."""
    return [module for module in net.modules() if _is_eligible(module)]  # type: ignore[misc]


def _is_eligible(module: nn.Module) -> bool:
    if type(module) not in (nn.Conv2d, WinogradConv2d):  # a subclass may compute anything
        return False
    assert isinstance(module, nn.Conv2d)
    shape = module.kernel_size, module.stride, module.dilation, module.padding
    is_plain = module.groups == 1 and module.padding_mode == "zeros"
    channels = module.in_channels, module.out_channels
    is_large = all(n >= SMALLEST and n % REGISTER == 0 for n in channels)
    padded = (1, 1) if module.padding != "same" else "same"
    return is_plain and is_large and shape == ((3, 3), (1, 1), (1, 1), padded)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.conv2d(x, weight, bias, padding=1)` in channels_last order.

    x: (b, c, h, w). weight: (k, c, 3, 3). bias: (k,). Gradients are exact.
    """
    y: Tensor = _Conv2d.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, weight.new_zeros(len(weight)) if bias is None else bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d(g, flipped(weight))
        if ctx.needs_input_grad[1]:
            grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, g, padding=1)  # type: ignore
        if ctx.needs_input_grad[2]:
            grad_bias = g.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias


def flipped(weight: Tensor) -> Tensor:
    """Return the kernels (c, k, 3, 3) by which the gradient of the input is a convolution of that
    of the output.
    """
    return weight.transpose(0, 1).flip(2, 3)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution of x (b, c, h, w), chunk by chunk: some images, some rows of tiles."""
    (b, c, h, w), k = x.shape, len(weight)
    rows, columns = -(-h // TILE), -(-w // TILE)  # of tiles in an image
    images = max(1, CHUNK // (rows * columns))
    chunk_rows = min(rows, max(1, CHUNK // columns))
    tiles = images * chunk_rows * columns
    to_patch, to_tile = _matrix("B", x.dtype), _matrix("A", x.dtype)
    kernels = transform_kernels(weight)

    padded = x.new_zeros(images, TILE * rows + 2, TILE * columns + 2, c)
    patches = x.new_empty(PATCH, PATCH, images, chunk_rows, columns, c)
    transformed = x.new_empty(PATCH**2, tiles * c)
    products = x.new_empty(PATCH**2, tiles, k)
    outputs = x.new_empty(TILE, TILE, images, chunk_rows, columns, k)
    y = _empty_channels_last(x, b, k, TILE * rows, TILE * columns)
    tiled = y.permute(0, 2, 3, 1).view(b, rows, TILE, columns, TILE, k)
    for image in range(0, b, images):
        batch = x[image : image + images].permute(0, 2, 3, 1)
        padded[: len(batch), 1 : h + 1, 1 : w + 1] = batch
        for row in range(0, rows, chunk_rows):
            first = min(row, rows - chunk_rows)  # a last chunk that is shorter begins earlier
            patches.copy_(_patches(padded, first, patches.shape))
            torch.mm(to_patch, patches.view(PATCH**2, -1), out=transformed)
            torch.bmm(transformed.view(PATCH**2, tiles, c), kernels, out=products)
            torch.mm(to_tile, products.view(PATCH**2, -1), out=outputs.view(TILE**2, -1))
            part = tiled[image : image + images, first : first + chunk_rows]
            torch.add(outputs.permute(2, 3, 0, 4, 1, 5)[: len(batch)], bias, out=part)
    if y.shape[2:] == x.shape[2:]:
        return y
    # A copy, not a view: a network may write into what it gets, as ReLU(inplace=True) does.
    return y[:, :, :h, :w].clone(memory_format=torch.channels_last)


def _empty_channels_last(x: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised tensor of this shape in channels_last order, in the dtype of x."""
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _patches(padded: Tensor, first: int, shape: torch.Size) -> Tensor:
    """Return the overlapping tiles (6, 6, images, rows, columns, c) from a row of tiles on."""
    image, row, column, channel = padded.stride()
    strides = (row, column, image, TILE * row, TILE * column, channel)
    return padded.as_strided(shape, strides, TILE * first * row)


def transform_kernels(weight: Tensor) -> Tensor:
    """Return G g G^T (36, c, k) of kernels (k, c, 3, 3)."""
    k, c = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, c * k)
    return (_matrix("G", weight.dtype) @ flat).view(PATCH**2, c, k)


@cache
def _matrix(name: str, dtype: torch.dtype) -> Tensor:
    """Return the matrix that transforms a whole tile: the Kronecker square of A^T, B^T or G."""
    sides = {"A": _AT, "B": _BT, "G": _G}
    side = torch.tensor(sides[name], dtype=torch.float64)
    return torch.kron(side, side).to(dtype)
