"""How numbers are computed: precision, layout, threads, determinism; and the fastest choice."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from defend.errors import BadParameter
from defend.files import cache_folder, write_file
from defend.hashing import cache_key

ROUNDS = 3  # measured rounds of each candidate, after one that warms up; the best round counts
# An option is not measured further if its warm-up takes HOPELESS times as long as the fastest one,
# and WARM_UP_SECONDS more: a first call may do once what later calls need not do.
HOPELESS = 3
WARM_UP_SECONDS = 1.0
BFLOAT16_GAIN = 1.1  # bfloat16 rounds, so it is chosen only where it is this much faster


@dataclass(frozen=True, kw_only=True)
class NumericSettings:
    """What decides the last bits of a result beside the code and its inputs."""

    precision: str  # "float32" or "bfloat16"
    layout: str  # "contiguous", "channels_last" or "winograd" (see winograd.py)
    threads: int
    device: str  # its type: "cpu" or "cuda"


def set_determinism(settings: NumericSettings) -> None:
    """Set the threads; on a GPU also turn TF32 off and deterministic algorithms on.

    On a CPU, freed memory is kept for the next forward pass.
    """
    torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        keep_freed_memory()
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.set_deterministic_debug_mode("warn")


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_HEAP_BLOCK = 32 * 2**20  # the largest threshold that glibc accepts
_KEPT_FREE = 512 * 2**20


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks of up to 32 MiB instead of returning them to the system.

    Otherwise the activations of each forward pass are mapped anew: 17,000 page faults for a batch
    of 256 images of MNIST, which took a third of the time. It holds for the whole process, and
    up to 512 MiB of freed memory stay with it. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def start_device(device: torch.device) -> None:
    """Begin to start a GPU in a thread, which takes seconds, while the caller loads data."""
    if device.type == "cuda":
        threading.Thread(target=torch.zeros, args=(1,), kwargs={"device": device}).start()


@contextmanager
def numerics_applied(settings: NumericSettings) -> Iterator[None]:
    """Apply the settings to this process, and restore the caller's own at the end."""
    # use_deterministic_algorithms would do the same, but imports the compiler: over a second.
    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_determinism(settings)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(deterministic)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@dataclass(frozen=True)
class Candidate:
    """One precision with one memory layout."""

    precision: str
    layout: str


def candidates(precision: str, layout: str, has_winograd: bool) -> list[Candidate]:
    """Return what may be chosen: "auto" allows both precisions, or all layouts.

    has_winograd: whether the layout "winograd" changes anything for the network and its device. It
    computes in float32 alone.
    """
    precisions = ("float32", "bfloat16") if precision == "auto" else (precision,)
    layouts = ("contiguous", "channels_last", "winograd") if layout == "auto" else (layout,)
    every = [Candidate(p, m) for p in precisions for m in layouts]
    if layout == "auto" and not has_winograd:
        every = [option for option in every if option.layout != "winograd"]
    return [option for option in every if option != Candidate("bfloat16", "winograd")]


def check_winograd(precision: str, layout: str, device_type: str) -> None:
    """Raise BadParameter for the layout "winograd" in bfloat16, or on a GPU."""
    if layout == "winograd" and (precision == "bfloat16" or device_type != "cpu"):
        raise BadParameter(
            "layout=winograd computes in float32 on a CPU: expected precision=float32 and"
            f" device=cpu, got {precision} and {device_type}; choose layout=auto"
        )


def fastest(
    options: Sequence[Candidate], run: Callable[[Candidate], object], device: torch.device
) -> Candidate:
    """Return the option for which `run`, a forward and a backward pass, takes least time.

    The options take turns, so that whatever else the machine does hits all of them alike. An option
    that is hopeless in the warm-up, as bfloat16 is without silicon for it, is not measured further.
    """
    if len(options) == 1:
        return options[0]

    def measure(option: Candidate) -> float:
        return _time(lambda: run(option), device)

    warm_up = {option: measure(option) for option in options}
    longest = HOPELESS * min(warm_up.values()) + WARM_UP_SECONDS
    seconds: dict[Candidate, list[float]] = {o: [] for o in options if warm_up[o] <= longest}
    for _ in range(ROUNDS):
        for option in seconds:
            seconds[option].append(measure(option))

    def cost(option: Candidate) -> float:
        best = min(seconds[option])
        return best * BFLOAT16_GAIN if option.precision == "bfloat16" else best

    return min(seconds, key=cost)


def choose_once(facts: Mapping[str, Any], measure: Callable[[], Candidate]) -> Candidate:
    """Return what this user's cache says for these facts on this machine, else measure and keep it.

    facts: all that decides the choice beside the machine and torch. A choice rests on timings, so
    that a second measurement might give another one.
    """
    machine = [platform.processor(), torch.backends.cpu.get_cpu_capability(), os.cpu_count()]
    key = cache_key({**facts, "processor": machine, "torch": str(torch.__version__)})
    file = cache_folder() / "tune" / f"{key[:16]}.json"
    with suppress(OSError, ValueError, TypeError):
        return Candidate(**json.loads(file.read_text()))
    choice = measure()
    with suppress(OSError):  # where nothing can be kept, it is measured again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(asdict(choice)))
    return choice


def _time(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def check_device(device: str | torch.device) -> torch.device:
    """Return the device. Raise BadParameter if this machine does not have it."""
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise BadParameter(f"device {device!r}: expected auto, cpu, cuda or cuda:N") from None
    cuda_names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    count = len(cuda_names) if parsed.type == "cuda" else 1
    if parsed.type not in ("cpu", "cuda") or (parsed.index or 0) >= count:
        raise BadParameter(
            f"device {device!r} is not there: this machine has {', '.join(['cpu', *cuda_names])}"
        )
    return parsed
