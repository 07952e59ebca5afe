"""Turn the authors' ComDefend checkpoint into weights of `comdefend`.

The authors publish pickled lists of 18 arrays, and this package opens no pickle. If you trust the
files, repack each one yourself:

    python -c "import sys, numpy as np; np.savez(sys.argv[2], *np.load(sys.argv[1],
        allow_pickle=True))" enc20_0.0001.npy enc.npz

and likewise `dec20_0.0001.npy` as `dec.npz`. Then

    python docs/import_comdefend.py enc.npz dec.npz comdefend-authors.safetensors
    defend bench --dataset cifar10 --defense comdefend:weights=comdefend-authors.safetensors ...

Each list holds kernels (height, width, in, out) and biases (out,) by turns. The authors compute
sigmoid(c - n) of x - 0.5, as `comdefend` does, so that the arrays only have to be transposed. Their
files carry no licence: do not pass the result on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from defend.defenses.comdefend import WIDEST
from defend.errors import BadWeights, DefendError
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights

ARRAYS = 18  # nine kernels and nine biases


def main() -> None:
    """Convert two files of arrays into one weights file."""
    if len(sys.argv) != 4:
        sys.exit("usage: python docs/import_comdefend.py ENC.npz DEC.npz OUT.safetensors")
    encoder, decoder, out = map(Path, sys.argv[1:])
    try:
        convert(encoder, decoder, out)
    except DefendError as e:
        sys.exit(f"Error: {e}")


def convert(encoder: Path, decoder: Path, out: Path) -> None:
    """Write the weights file. Raise BadWeights for arrays of another number or shape."""
    com, rec = read_arrays(encoder), read_arrays(decoder)
    tensors = {**named_tensors("com", com), **named_tensors("rec", rec)}
    code_maps, channels = com[-1].shape[0], rec[-1].shape[0]
    width = max(bias.shape[0] for bias in com[1::2])
    is_pair = (rec[0].shape[2], com[0].shape[2]) == (code_maps, channels)
    if not is_pair or channels not in (1, 3) or width != WIDEST:
        raise BadWeights(
            f"expected kernels (3, 3, in, out) of an encoder and its decoder, {WIDEST} channels at"
            f" the widest, got {com[0].shape} to {com[-2].shape} and {rec[0].shape} to"
            f" {rec[-2].shape}; give ENC.npz first"
        )
    header = Header(
        kind="defense",
        component="comdefend",
        architecture="comdefend",
        dataset="cifar10" if channels == 3 else "fashion-mnist",
        fields={"code_maps": code_maps, "channels": channels, "width": width},
        trained_on=TrainedOn(kind="clean"),
        command="none: the authors' checkpoint",
        seed=0,
        commit="",
    )
    save_weights(out, tensors, header)
    print(f"wrote {out}")


def read_arrays(path: Path) -> list[np.ndarray]:
    """Return the arrays of a file of numpy.savez in their order. Raise BadWeights."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    except (OSError, ValueError, KeyError) as e:
        raise BadWeights(
            f"{path}: expected arrays as numpy.savez writes them, got {type(e).__name__}: {e};"
            " repack the authors' file as described at the top of this script"
        ) from None
    shapes = [a.ndim for a in arrays]
    if shapes != [4, 1] * (ARRAYS // 2):
        raise BadWeights(
            f"{path}: expected {ARRAYS} arrays, kernels and biases by turns, got {len(arrays)} of"
            f" {shapes} dimensions"
        )
    return arrays


def named_tensors(network: str, arrays: list[np.ndarray]) -> dict[str, Tensor]:
    """Return the tensors of ComCNN ("com") or RecCNN ("rec"), kernels as (out, in, h, w)."""
    kernels = [torch.from_numpy(a.astype(np.float32)).permute(3, 2, 0, 1) for a in arrays[::2]]
    biases = [torch.from_numpy(a.astype(np.float32)) for a in arrays[1::2]]
    return {
        f"{network}.{i}.{kind}": tensor
        for kind, tensors in (("weight", kernels), ("bias", biases))
        for i, tensor in enumerate(tensors)
    }


if __name__ == "__main__":
    main()
