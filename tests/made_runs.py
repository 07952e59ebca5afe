"""Run folders made by hand: records with units that hold the outcomes a test wants."""

import json
from io import StringIO

import numpy as np
import torch
from rich.console import Console

from defend.benchmarks.units import ranges, write_unit
from defend.hashing import cache_key
from defend.results import print_table
from defend.stats import interval

PLAIN = {
    "dataset": "digits-m",
    "classifier": "convnet",
    "defense": "median",
    "attack": "pgd",
    "knowledge": "oblivious",
    "gradient": None,
    "surrogate": None,
    "norm": "Linf",
    "eps": 16 / 255,
    "eps_text": "16/255",
    "split": "test",
    "seed": 0,
    "draws": 1,
    "eot": 1,
    "access": "gradient",
    "stochastic": False,
    "declared_gradient": "approximate",
    "flags": [],
    "trained_on": None,
    "protocol": None,
    "seconds": 1.5,
    "purify_images_per_second": 4000.0,
    "forwards": 20.0,
    "backwards": 20.0,
    "settings": {"attack": {"steps": 20}, "defense": {}, "classifier": {}},
    "weights": {"convnet-digits-m": "ab" * 32},
    "versions": {"defend": "0.1.0", "torch": "2.11.0"},
    "commit": "c0ffee",
    "device": "cpu",
    "error": None,
    "units": [],
}


def record(right, n=200, clean=None, **over):
    """A record alone, `right` of n images; without units."""
    low, high = interval(np.repeat([[1], [0]], [right, n - right], axis=0))
    clean = n if clean is None else clean
    numbers = {
        "clean_accuracy": clean / n,
        "robust_accuracy": right / n,
        "ci_low": low,
        "ci_high": high,
        "all_draws_correct": right / n,
        "majority": right / n,
    }
    return PLAIN | {"n": n} | numbers | over


def failed(reason="RuntimeError: out of memory", n=200, **over):
    measured = (
        "clean_accuracy",
        "robust_accuracy",
        "ci_low",
        "ci_high",
        "all_draws_correct",
        "majority",
        "flags",
        "seconds",
        "purify_images_per_second",
    )
    return (
        PLAIN
        | {"n": n, "error": reason}
        | dict.fromkeys((*measured, "forwards", "backwards"))
        | over
    )


def cell(
    run_dir,
    score,
    clean=None,
    select=None,
    clean_select=None,
    x_adv="",
    samples=None,
    shard=3,
    **over,
):
    """A record and its unit files. score: (n,) for a deterministic purifier, (n, K) for a stochastic one."""
    score = np.asarray(score, np.uint8)
    score = score[:, None] if score.ndim == 1 else score
    clean = (
        np.ones_like(score) if clean is None else np.asarray(clean, np.uint8).reshape(score.shape)
    )
    tensors = {"score": score, "clean_score": clean}
    if select is not None:
        tensors["select"] = np.asarray(select, np.uint8)
        tensors["clean_select"] = (
            np.ones_like(tensors["select"])
            if clean_select is None
            else np.asarray(clean_select, np.uint8)
        )
        over = {"stochastic": True, "draws": score.shape[1]} | over
    made = PLAIN | {"n": len(score)} | over
    keys = [
        _unit(run_dir, made, start, stop, tensors, x_adv, samples)
        for start, stop in ranges(len(score), shard)
    ]
    low, high = interval(score)
    means = score.mean(1)
    return made | {
        "clean_accuracy": clean.mean(),
        "robust_accuracy": means.mean(),
        "ci_low": low,
        "ci_high": high,
        "units": keys,
        "all_draws_correct": (score.min(1) == 1).mean(),
        "majority": (means > 0.5).mean(),
    }


def _unit(run_dir, made, start, stop, tensors, x_adv, samples):
    what = {
        k: made[k]
        for k in (
            "dataset",
            "classifier",
            "defense",
            "attack",
            "knowledge",
            "gradient",
            "surrogate",
            "eps",
            "seed",
        )
    }
    key_inputs = what | {"range": [start, stop], "x_adv": x_adv}
    body = {name: torch.from_numpy(t[start:stop].copy()) for name, t in tensors.items()}
    body |= samples or {} if start == 0 else {}
    name = x_adv or repr(what)
    write_unit(
        run_dir,
        cache_key(key_inputs),
        body,
        {"made_of": key_inputs, "start": start, "stop": stop, "x_adv_sha256": f"{name}-{start}"},
    )
    return cache_key(key_inputs)


def keep(run_dir, records):
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "records.json").write_text(json.dumps(records))
    return run_dir


def printed(records, run_dirs=(), width=160):
    out = StringIO()
    print_table(records, Console(file=out, width=width, color_system=None), run_dirs)
    return out.getvalue()


# the records of a whole ladder

IDENTITY = {"knowledge": "adaptive", "gradient": "identity"}
DECLARED = {"knowledge": "adaptive", "gradient": "declared"}
LEARNED = {"knowledge": "adaptive", "gradient": "learned"}
TRANSFER = "transfer from a pipeline with the same purifier, by APGD-CE and PGD-40"
COMPLETE = {"n": 1000, "protocol": "ladder-1", "eps": 16 / 255}


def apgd(knowledge, gradient, loss, **over):
    settings = {"attack": {"loss": loss, "steps": 100, "targets": 9}}
    return record(
        10,
        attack="apgd",
        knowledge=knowledge,
        gradient=gradient,
        settings=settings,
        **(COMPLETE | over),
    )


def unbounded(gradient, right=0, **over):
    """PGD at eps 1 from the clean image."""
    settings = {"attack": {"steps": 40, "random_start": False}}
    return record(
        right,
        knowledge="adaptive",
        gradient=gradient,
        settings=settings,
        **(COMPLETE | {"eps": 1.0, "eps_text": "1"} | over),
    )


def complete():
    return [
        apgd("oblivious", None, "ce"),
        record(10, knowledge="oblivious", settings={"attack": {"steps": 40}}, **COMPLETE),
        *(
            apgd("adaptive", g, loss)
            for g in ("declared", "identity", "learned")
            for loss in ("ce", "dlr-targeted")
        ),
        record(
            10,
            knowledge="transfer",
            surrogate="median+resnet20",
            settings={"attack": {"steps": 40}},
            **COMPLETE,
        ),
        apgd("transfer", None, "ce", surrogate="median+resnet20"),
        *(unbounded(g) for g in ("declared", "identity", "learned")),
        record(
            10,
            attack="square",
            knowledge="query",
            access="scores",
            settings={"attack": {"queries": 5000}},
            **COMPLETE,
        ),
    ]
