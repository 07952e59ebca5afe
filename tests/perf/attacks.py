"""Attacks beside the references: the accuracy that each leaves on the same images, and its time, by turns in one run. Prints; asserts nothing.

The references: AutoAttack's own code as `pip install --no-deps pyautoattack==0.2.0`, and ART's SquareAttack and AutoProjectedGradientDescent.
Each runs as its documents say. Ours run in the layout and with the batch that are fastest here, batch norms folded, which is what
`defend bench` does by itself for layout and norms (`--as-is`: the network as it is, contiguous, batches of 256). With a defense, all
differentiate the same pipeline through its declared gradient.

    python tests/perf/attacks.py --dataset mnist --classifier convnet --n 1000 --time-n 200
    python tests/perf/attacks.py --dataset mnist --classifier convnet --defense bitdepth --parts autoattack
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import defend
from defend.classifier import Classifier
from defend.noise import Noise
from defend.purifier import Purifier
from defend.spec import read_value
from defend.stats import difference
from defend.target import Target

PARTS = ("autoattack", "autoattack-bfloat16", "square", "apgd")


class Counted(nn.Module):
    """A model that counts the images it sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.model(x)


@dataclass
class Row:
    what: str
    who: str
    n: int
    right: list[bool]
    evaluations: float  # forward passes for each image
    wall: float
    cpu: float


@dataclass
class Bench:
    classifier: nn.Module  # contiguous: what the references meet, and what scores everybody
    purifier: Purifier
    our_classifier: nn.Module  # the same in our layout, and with our batches
    our_purifier: Purifier
    x: Tensor
    y: Tensor
    eps: float
    norm: str
    queries: int
    seed: int

    @property
    def pipeline(self) -> nn.Module:
        return nn.Sequential(self.purifier.as_module(), self.classifier)

    def right(self, x_adv: Tensor) -> list[bool]:
        """Right clean and right attacked, and attacked within eps."""
        clean, moved = self.x[: len(x_adv)], (x_adv - self.x[: len(x_adv)]).double().flatten(1)
        size = moved.abs().amax(1) if self.norm == "Linf" else moved.norm(dim=1)
        if (size > self.eps + 1e-5).any():
            warnings.warn(
                f"left the ball: eps {self.eps:.6g}, measured {float(size.max()):.6g}", stacklevel=2
            )
        with torch.no_grad():
            seen = torch.stack(
                [
                    torch.cat([self.pipeline(part).argmax(1) for part in z.split(256)])
                    for z in (clean, x_adv)
                ]
            )
        return (seen == self.y[: len(x_adv)]).all(0).tolist()

    def defend(self, spec: str, n: int) -> tuple[Tensor, float]:
        rows = torch.arange(n)
        target = Target(
            self.our_classifier,
            self.our_purifier,
            Noise.of(self.seed, rows).fork("attack"),
            scored=True,
        )
        attack = defend.load(spec, "attack", norm=self.norm)
        x_adv = attack.run(
            target, self.x[:n], self.y[:n], self.eps, Noise.of(self.seed, rows).fork("start")
        )
        return x_adv, target.counts["forwards"] / n

    def autoattack(self, n: int) -> tuple[Tensor, float]:
        from pyautoattack import AutoAttack

        model = Counted(self.pipeline)
        attack = AutoAttack(model, norm=self.norm, eps=self.eps, seed=self.seed)
        return attack.run_standard_evaluation(self.x[:n], self.y[:n])[0].detach(), model.seen / n

    def art(self, name: str, n: int, **fields: object) -> tuple[Tensor, float]:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        model = Counted(self.pipeline)
        estimator = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(self.x.shape[1:]),
            int(self.y.max()) + 1,
            clip_values=(0, 1),
            preprocessing=None,
            device_type="cpu",
        )
        np.random.seed(self.seed)
        attack = getattr(evasion, name)(
            estimator,
            norm=np.inf if self.norm == "Linf" else 2,
            eps=self.eps,
            verbose=False,
            **fields,
        )
        return torch.from_numpy(
            attack.generate(self.x[:n].numpy(), self.y[:n].numpy())
        ), model.seen / n


def pairs(
    bench: Bench,
) -> dict[
    str,
    tuple[str, Callable[[int], tuple[Tensor, float]], str, Callable[[int], tuple[Tensor, float]]],
]:
    q = bench.queries
    step = {
        "max_iter": 100,
        "eps_step": 2 * bench.eps,
        "nb_random_init": 1,
        "batch_size": 250,
        "loss_type": "cross_entropy",
    }
    return {
        "autoattack": (
            "autoattack",
            lambda n: bench.defend("autoattack", n),
            "pyautoattack, standard",
            bench.autoattack,
        ),
        "autoattack-bfloat16": (
            "autoattack:search=bfloat16",
            lambda n: bench.defend("autoattack:search=bfloat16", n),
            "pyautoattack, standard",
            bench.autoattack,
        ),
        "square": (
            f"square, {q} queries",
            lambda n: bench.defend(f"square:queries={q}", n),
            f"ART SquareAttack, max_iter={q}",
            lambda n: bench.art("SquareAttack", n, max_iter=q, nb_restarts=1, batch_size=250),
        ),
        "apgd": (
            "apgd, 100 steps",
            lambda n: bench.defend("apgd", n),
            "ART AutoPGD, max_iter=100",
            lambda n: bench.art("AutoProjectedGradientDescent", n, **step),
        ),
    }


def measured(
    what: str, who: str, run: Callable[[int], tuple[Tensor, float]], n: int, bench: Bench
) -> Row:
    began, cpu = time.perf_counter(), time.process_time()
    x_adv, evaluations = run(n)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Row(what, who, n, bench.right(x_adv), evaluations, wall, cpu)


def compared(ours: Row, theirs: Row) -> None:
    for row in (ours, theirs):
        print(
            f"  {row.who:32} {np.mean(row.right):6.1%} right   {row.evaluations:8.0f} forward passes/image   {row.wall:8.1f} s   {row.cpu:8.1f} s of CPU"
        )
    d, low, high = difference(np.array(ours.right, float), np.array(theirs.right, float))
    print(
        f"  ours - theirs: {100 * d:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}], paired, n = {ours.n};  ",
        end="",
    )
    print(
        f"time {ours.wall / theirs.wall:.2f} of theirs (CPU time {ours.cpu / theirs.cpu:.2f})",
        flush=True,
    )


def seconds(net: nn.Module, x: Tensor, batch: int) -> float:
    """The least time of a forward and backward pass for each image."""

    def once() -> float:
        began = time.process_time()
        for part in x.split(batch):
            z = part.clone().requires_grad_()
            torch.autograd.grad(net(z).logsumexp(1).sum(), z)
        return time.process_time() - began

    return min(once() for _ in range(4))


def fastest(classifier: Classifier, x: Tensor) -> tuple[nn.Module, str, int]:
    some, choices = x[:256].repeat(-(-256 // len(x[:256])), 1, 1, 1)[:256], []
    for layout in ("contiguous", "channels_last"):
        ours = copy.deepcopy(classifier)
        ours.run_as("float32", layout)
        choices += [
            (seconds(ours.network, some, batch), layout, batch, ours.network)
            for batch in (32, 64, 128, 256)
        ]
    _, layout, batch, arranged = min(choices, key=lambda c: c[0])
    return arranged, layout, batch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--classifier", default="convnet")
    parser.add_argument("--defense", default="none")
    parser.add_argument("--norm", default="Linf", choices=("Linf", "L2"))
    parser.add_argument(
        "--eps", help="a number or a fraction; the data set's claim eps where not given"
    )
    parser.add_argument("--n", type=int, default=1000, help="images for the accuracies")
    parser.add_argument("--time-n", type=int, default=200, help="images for the times")
    parser.add_argument("--queries", type=int, default=1000, help="of the square attacks")
    parser.add_argument(
        "--turns",
        type=int,
        default=1,
        help="each attack so many times, by turns; the least time counts: other work on the machine only adds",
    )
    parser.add_argument("--seed", type=int, default=0, help="of both attacks' random draws")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="ours in contiguous layout and batches of 256, nothing folded",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="all rows, behind what this file holds")
    return parser.parse_args()


def prepared(args: argparse.Namespace) -> Bench:
    data = defend.load(args.dataset, "dataset")
    classifier = defend.load(args.classifier, "classifier", dataset=data)
    x, y = data.rows("test", 0, max(args.n, args.time_n))
    eps = float(read_value(args.eps)) if args.eps else data.card.claim[args.norm]
    theirs, ours = (defend.load(args.defense, dataset=data) for _ in range(2))
    arranged, layout, ours.max_batch = (
        (classifier.network, "contiguous", 256) if args.as_is else fastest(classifier, x)
    )
    print(
        f"{args.dataset}, {args.classifier}, {args.defense}, {args.norm} eps {eps:.4g}; torch {torch.__version__}, {args.threads} threads"
    )
    print(f"ours: {layout}, batches of {ours.max_batch}")
    return Bench(
        classifier.network, theirs, arranged, ours, x, y, eps, args.norm, args.queries, args.seed
    )


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    bench, rows = prepared(args), []
    for part in args.components:
        our_name, ours, their_name, theirs = pairs(bench)[part]
        for n in dict.fromkeys((args.time_n, args.n)):
            print(f"{part}, n = {n}")
            turns = [
                (
                    measured(part, our_name, ours, n, bench),
                    measured(part, their_name, theirs, n, bench),
                )
                for _ in range(args.turns)
            ]
            pair = [min(many, key=lambda row: row.cpu) for many in zip(*turns, strict=True)]
            compared(*pair)
            rows += pair
    if args.json:
        keep(args.json, rows)


def keep(file: Path, rows: list[Row]) -> None:
    """Behind what the file holds already: the command, and each row, its images as 0 and 1."""
    there = json.loads(file.read_text()) if file.exists() else []
    command = " ".join(["python", "tests/perf/attacks.py", *sys.argv[1:]])
    made = [asdict(row) | {"right": "".join(str(int(r)) for r in row.right)} for row in rows]
    file.write_text(
        "[\n"
        + ",\n".join(json.dumps(run) for run in [*there, {"command": command, "rows": made}])
        + "\n]\n"
    )


if __name__ == "__main__":
    main()
