"""Run folders made by hand: records with units that hold the outcomes that a test needs."""

from io import StringIO

import numpy as np
import torch
from rich.console import Console

from defend.hashing import cache_key
from defend.protocols import LADDER_1
from defend.record_parts import ClassShares, ImageSample
from defend.records import FILE_NAME, Record
from defend.results import print_table, table
from defend.results.claim_text import format_claim
from defend.spec import parse
from defend.stats import interval, per_cluster, wilson
from defend.unit_files import write_unit

# What the cards of data sets say: (data set, norm) -> eps, (data set, split) -> images.
CLAIM_EPS = {
    ("digits-m", "Linf"): 16 / 255,
    ("digits", "Linf"): 0.2,
    ("mnist", "Linf"): 0.3,
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
}
DISTINCT_IMAGES = {("digits-m", "test"): 575}
EVEN = ClassShares(present=10, label=0, share=0.1, expected=0.1, against="train", p=1.0)

PLAIN = Record(
    dataset="digits-m",
    classifier="convnet",
    defense="median",
    attack="pgd",
    knowledge="oblivious",
    gradient=None,
    surrogate=None,
    norm="Linf",
    eps=16 / 255,
    eps_text="16/255",
    n=200,
    split="test",
    seed=0,
    draws=1,
    eot=1,
    protocol=None,
    access="gradient",
    stochastic=False,
    declared_gradient="approximate",
    relaxation=None,
    trained_on=(),
    classifier_trained_on=({"kind": "clean"},),
    images=1150,
    classes=10,
    claim_eps=16 / 255,
    distinct_images=200,
    settings={"attack": {"steps": 20}},
    weights={"convnet-digits-m": "ab" * 32},
    scored_weights={"classifier": {"convnet-digits-m": "ab" * 32}},
    pipeline={},
    precision="float32",
    layout="contiguous",
    threads=1,
    versions={"defend": "0.1.0", "torch": "2.11.0"},
    commit="c0ffee",
    device="cpu",
    flags=(),
    seconds=1.5,
    purify_images_per_second=4000.0,
    forwards=20.0,
    backwards=20.0,
    units=(),
)
MEASURED = (
    "clean_accuracy",
    "robust_accuracy",
    "ci_low",
    "ci_high",
    "all_draws_correct",
    "majority",
    "flags",
    "seconds",
    "purify_images_per_second",
    "forwards",
    "backwards",
)


def change(original, **changes):
    """Return the record with other fields, checked, and with what the data set's card says."""
    fields = original.model_dump() | changes
    distinct = DISTINCT_IMAGES.get((fields["dataset"], fields["split"]), fields["n"])
    fields["claim_eps"] = CLAIM_EPS.get((fields["dataset"], fields["norm"]))
    fields["distinct_images"] = min(fields["n"], distinct)
    fields["sample"] = sample_of(fields["n"], distinct)
    if fields["gradient"] == "learned" and fields["error"] is None:
        fields["gradient_error"] = 0.5
    return Record.model_validate(fields | changes)


def sample_of(n, distinct, classes=EVEN):
    """Return what is said of n images that show so many things in turn."""
    if distinct >= n:
        return ImageSample(distinct=n, classes=classes)
    return ImageSample(distinct=n, copies=[(distinct, n, 0)], classes=classes)


def record(right, n=200, clean=None, **changes):
    """Return a record of which `right` of n images are right; it has no units.

    The interval is over the things that the images show.
    """
    described = change(PLAIN, n=n, **changes)
    things = described.distinct_images if described.sample else n
    low, high = wilson(right / n * things, things)
    numbers = {
        "clean_accuracy": (n if clean is None else clean) / n,
        "robust_accuracy": right / n,
        "ci_low": low,
        "ci_high": high,
        "all_draws_correct": right / n,
        "majority": right / n,
    }
    return change(PLAIN, n=n, **numbers | changes)


def failed(reason="RuntimeError: out of memory", n=200, **changes):
    """Return the record of a failed cell."""
    return change(PLAIN, n=n, error=reason, **dict.fromkeys(MEASURED) | changes)


def cell(
    run_dir,
    score,
    clean=None,
    select=None,
    clean_select=None,
    x_adv="",
    samples=None,
    shard=3,
    inputs=None,
    **changes,
):
    """Return a record, and write its unit files. inputs: more of what their keys are made of.

    score: (n,) for a deterministic purifier, (n, K) for a stochastic one, which needs `select`.
    """
    tensors = make_tensors(score, clean, select, clean_select)
    score = tensors["score"]
    if select is not None:
        changes = {"stochastic": True, "draws": score.shape[1]} | changes
    changes = {"settings": typed_settings(changes.get("attack", "pgd"))} | changes
    described = change(PLAIN, n=len(score), **changes)
    keys = []
    for start in range(0, len(score), shard):
        stop = min(start + shard, len(score))
        part = {name: values[start:stop] for name, values in tensors.items()}
        keys.append(write_part(run_dir, described, start, stop, part, x_adv, samples, inputs))
    numbers = measure(score, tensors["clean_score"], described.clusters)
    return change(described, units=keys, **changes | numbers)


def typed_settings(attack):
    """Return the settings in force of an attack without eps: 20 steps, and the fields typed."""
    (typed,) = parse(attack)
    return {"attack": {"steps": 20} | dict(typed.without("eps")[0].params)}


def make_tensors(score, clean, select, clean_select):
    """Return the outcomes as a unit holds them; without `clean` every clean image is right."""
    score = np.asarray(score, np.uint8)
    if score.ndim == 1:
        score = score[:, None]
    clean = np.ones_like(score) if clean is None else np.asarray(clean, np.uint8)
    tensors = {"score": score, "clean_score": clean.reshape(score.shape)}
    if select is not None:
        select = np.asarray(select, np.uint8)
        clean_select = np.ones_like(select) if clean_select is None else clean_select
        tensors |= {"select": select, "clean_select": np.asarray(clean_select, np.uint8)}
    return tensors


def measure(score, clean, clusters=None):
    """Return what a record says of these outcomes (n, K)."""
    score, clean = per_cluster(score, clusters), per_cluster(clean, clusters)
    low, high = interval(score)
    means = score.mean(1)
    return {
        "clean_accuracy": clean.mean().item(),
        "robust_accuracy": means.mean().item(),
        "ci_low": low,
        "ci_high": high,
        "all_draws_correct": (score.min(1) == 1).mean().item(),
        "majority": (means > 0.5).mean().item(),
    }


def write_part(run_dir, described, start, stop, part, x_adv, samples, inputs=None):
    """Write one unit and return its key. Samples are in the first unit alone."""
    names = ("dataset", "classifier", "defense", "attack", "knowledge")
    names += ("gradient", "surrogate", "eps", "seed")
    facts = {name: getattr(described, name) for name in names}
    key_inputs = facts | {"range": [start, stop], "x_adv": x_adv} | (inputs or {})
    tensors = {name: torch.from_numpy(values.copy()) for name, values in part.items()}
    if start == 0 and samples:
        tensors |= samples
    header = {
        "key_inputs": key_inputs,
        "start": start,
        "stop": stop,
        "x_adv_sha256": f"{x_adv or facts!r}-{start}",
        "costs": make_costs(described, stop - start),
    }
    key = cache_key(key_inputs)
    write_unit(run_dir, key, tensors, header)
    return key


def make_costs(described, images):
    """Return the costs of a unit of so many images, whose sums are those of the record."""
    return {
        "seconds": (described.seconds or 0) * images / described.n,
        "purify_images_per_second": described.purify_images_per_second,
        "forwards": (described.forwards or 0) * images,
        "backwards": (described.backwards or 0) * images,
        "zero_gradients": 0,
        "undefined_gradients": 0,
        "unchanged": 0,
        "loss_before": 0.0,
        "loss_after": 1.0,
        "draws_differ": True,
    }


def keep(run_dir, records):
    """Write the records into the folder and return it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(r.to_json() for r in records)
    (run_dir / FILE_NAME).write_text(f"[\n{lines}\n]\n")
    return run_dir


def printed(records, run_dirs=(), width=160):
    """Return what a terminal of this width shows."""
    out = StringIO()
    print_table(records, Console(file=out, width=width, color_system=None), run_dirs)
    return out.getvalue()


# The records of a whole ladder.

IDENTITY = {"knowledge": "adaptive", "gradient": "identity"}
DECLARED = {"knowledge": "adaptive", "gradient": "declared"}
LEARNED = {"knowledge": "adaptive", "gradient": "learned"}
RELAXED = {"knowledge": "adaptive", "gradient": "relaxed:temperature=0.3"}
EVERY_GRADIENT = ("declared", "identity", "learned")
COMPLETE = {"n": 1000, "protocol": "ladder-1", "eps": 16 / 255}


def apgd(knowledge, gradient, loss, **changes):
    """Return APGD of 100 steps, as the protocol runs it."""
    return record(
        10,
        attack="apgd",
        knowledge=knowledge,
        gradient=gradient,
        settings={"attack": {"loss": loss, "steps": 100, "targets": 9}},
        **COMPLETE | changes,
    )


def pgd(knowledge, steps=40, **changes):
    """Return PGD of so many steps."""
    settings = {"attack": {"steps": steps}}
    return record(10, knowledge=knowledge, settings=settings, **COMPLETE | changes)


def square(queries, **changes):
    """Return Square with so many queries."""
    settings = {"attack": {"queries": queries}}
    fixed = {"attack": "square", "knowledge": "query", "access": "scores"}
    return record(10, settings=settings, **fixed | COMPLETE | changes)


def unbounded(gradient, right=0, **changes):
    """Return PGD at eps 1 from the clean image."""
    return record(
        right,
        knowledge="adaptive",
        gradient=gradient,
        settings={"attack": {"steps": 40, "random_start": False}},
        **COMPLETE | {"eps": 1.0, "eps_text": "1"} | changes,
    )


def complete():
    """Return everything that ladder-1 needs of a deterministic purifier."""
    records = [apgd("oblivious", None, "ce"), pgd("oblivious")]
    for gradient in EVERY_GRADIENT:
        records += [apgd("adaptive", gradient, loss) for loss in ("ce", "dlr-targeted")]
    records.append(pgd("transfer", surrogate="median+resnet20"))
    records.append(apgd("transfer", None, "ce", surrogate="median+resnet20"))
    records += [unbounded(gradient) for gradient in EVERY_GRADIENT]
    records.append(square(5000))
    return records


def persist(right=10, **changes):
    """Return the persistent search, as ladder-2 runs it."""
    amounts = {"steps": 100, "targets": 9, "queries": 500, "rounds": 20}
    settings = {"attack": {**amounts, "gradients": "every", "idle_rounds": 2, "gain": 0.005}}
    fixed = {"attack": "persist", "settings": settings, "protocol": "ladder-2"}
    return record(right, **DECLARED | COMPLETE | fixed | changes)


def eot_attacks():
    """Return what ladder-1 adds for a stochastic purifier."""
    records = [pgd("adaptive", 200, gradient=gradient, eot=20) for gradient in EVERY_GRADIENT]
    records += [apgd("adaptive", gradient, "ce", eot=20) for gradient in EVERY_GRADIENT]
    records.append(square(1000, eot=20))
    return records


def change_all(records, **changes):
    """Return all records with other fields."""
    return [change(r, **changes) for r in records]


def change_where(records, condition, **changes):
    """Return the records, with other fields in those that meet the condition."""
    changed = []
    for r in records:
        changed.append(change(r, **changes) if condition(r) else r)
    return changed


def missing_codes(records, relatives=(), protocol=LADDER_1):
    """Return what keeps the records of one pipeline in one norm from a claim."""
    return [requirement.code for requirement in protocol.missing(records, relatives)]


def claim_line(records, run_dirs=()):
    """Return the one claim of all rows, as it is printed."""
    (line,) = {format_claim(row.claim) for row in table(records, run_dirs).rows}
    return line
