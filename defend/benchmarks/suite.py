"""A suite: what to run. TOML files and keyword arguments, validated; nothing is loaded here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from defend.benchmarks.specs import component_text
from defend.benchmarks.suite_files import resolve_local_code
from defend.eps import Eps, parse_eps
from defend.errors import BadParameter, DefendError, suggest_names
from defend.files import user_path
from defend.plain_numbers import plain_scalar, whole_number
from defend.protocols import PROTOCOLS
from defend.tasks.registry import DEFAULT, load_task
from defend.tasks.task import Task
from defend.threat_models import LEVELS, NO_CLASSIFIER, parse_gradients

DRAWS = 20  # by which a stochastic purifier is scored
_SINGULAR = {
    "classifier": "classifiers",
    "defense": "defenses",
    "attack": "attacks",
    "gradient": "gradients",
    "surrogate": "surrogates",
}
_LISTS = ("classifiers", "defenses", "attacks", "knowledge", "gradients", "surrogates")
_WHOLE_NUMBERS = ("seed", "n", "draws", "threads", "eot")


class Suite(BaseModel):
    """The arguments of `defend.bench`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "adhoc"
    task: str = DEFAULT
    dataset: str
    classifiers: tuple[str, ...] = Field(min_length=1)
    defenses: tuple[str, ...] = Field(min_length=1)
    attacks: tuple[str, ...] = ()  # under a protocol: beside its own
    knowledge: tuple[str, ...] | None = None  # None: the default levels of each attack
    gradients: tuple[str, ...] | None = None  # None: the default ones of each defense
    surrogates: tuple[str, ...] = ()
    protocol: str | None = None
    eps: tuple[Eps, ...] | None = None  # None: the claim eps of the data set
    n: int = Field(default=1000, ge=1)
    split: Literal["test", "val"] = "test"
    seed: int = Field(default=0, ge=0, lt=2**64)
    draws: int = Field(default=DRAWS, ge=1)
    eot: int | None = Field(default=None, ge=1)  # None: 1, or 20 for a stochastic pipeline
    shard: int | Literal["auto"] = "auto"  # images in a unit; auto: by the device
    threads: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    layout: Literal["contiguous", "channels_last", "winograd", "auto"] = "contiguous"

    def to_dict(self) -> dict[str, Any]:
        """Return the keys as a suite file would hold them."""
        eps = {"eps": [e.text for e in self.eps]} if self.eps else {}
        return self.model_dump(mode="json", exclude_none=True) | eps

    @property
    def has_every_level(self) -> bool:
        """Return True if `--knowledge all` was asked for, which means every gradient too."""
        return set(LEVELS) <= set(self.knowledge or ())

    @model_validator(mode="after")
    def _check_combination(self) -> Suite:
        self._check_task()
        if self.protocol is None and not self.attacks:
            names = " or ".join(f"protocol = {name!r}" for name in PROTOCOLS)
            raise BadParameter(f"attacks: expected at least one attack, or {names}")
        if self.protocol is not None:
            self._check_protocol()
        if self.gradients and self.knowledge and "adaptive" not in self.knowledge:
            raise BadParameter(
                f"gradients {', '.join(self.gradients)}: attacks at {', '.join(self.knowledge)}"
                " choose none; add knowledge adaptive, or leave gradients out"
            )
        return self

    def _check_task(self) -> None:
        task = load_task(self.task)
        if not task.needs_classifier and self.classifiers != (NO_CLASSIFIER,):
            raise BadParameter(
                f"task {self.task} takes no classifier, got {', '.join(self.classifiers)}: leave"
                " classifiers out"
            )
        if task.needs_classifier:
            self._check_classifiers()
        if task.needs_calibration and self.split == "val":
            raise BadParameter(
                f"task {self.task} has its thresholds from the images of val, so that it cannot"
                " score them too: leave --split out"
            )
        if self.protocol is not None and not task.has_claims:
            raise BadParameter(
                f"protocol {self.protocol} is one of classification, and says nothing of the task"
                f" {self.task}; give attacks instead"
            )

    def _check_classifiers(self) -> None:
        """Raise BadParameter for a pipeline without a classifier."""
        for key in ("classifiers", "surrogates"):
            for spec in getattr(self, key):
                if _ends_without_classifier(spec):
                    raise BadParameter(
                        f"{key}: the task {self.task} needs a classifier, got {spec!r}; name one,"
                        " such as convnet, or give --task reconstruction"
                    )

    def _check_protocol(self) -> None:
        decided = [k for k in ("knowledge", "gradients", "eps", "eot") if getattr(self, k)]
        if decided and not self.attacks:
            raise BadParameter(
                f"protocol {self.protocol} decides {', '.join(decided)}: leave it out, or give"
                " the attack that it is meant for"
            )
        least = PROTOCOLS[str(self.protocol)].min_draws
        if self.draws < least:
            raise BadParameter(
                f"protocol {self.protocol} scores by {least} draws or more, got {self.draws}:"
                " leave draws out"
            )

    @model_validator(mode="before")
    @classmethod
    def _normalise_keys(cls, keys: Any) -> Any:
        """Accept singular names and single values, and suggest near names."""
        plural = {_SINGULAR.get(k, k): v for k, v in keys.items() if v is not None}
        for key in plural:
            if key not in cls.model_fields:
                raise BadParameter(
                    f"a suite has no key {key!r}.{suggest_names(key, cls.model_fields)}"
                    f" It takes {', '.join(cls.model_fields)}."
                )
        task = _task_of(plural)
        if not task.needs_classifier:
            plural.setdefault("classifiers", (NO_CLASSIFIER,))
        for key in _LISTS:
            if key in plural and not isinstance(plural[key], list | tuple):
                plural[key] = (plural[key],)
        if not task.needs_classifier and plural.get("surrogates"):
            plural["surrogates"] = [_without_classifier(s) for s in plural["surrogates"]]
        return plural

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value or value.startswith(".") or any(c in value for c in "/\\\0"):
            raise BadParameter(
                f"name {value!r}: expected the name of a folder below runs/, without / or a"
                " leading dot"
            )
        return value

    @field_validator("task", mode="before")
    @classmethod
    def _check_task_name(cls, value: Any) -> str:
        return str(load_task(component_text(value, "task")))

    @field_validator("dataset", mode="before")
    @classmethod
    def _check_dataset(cls, value: Any) -> str:
        return component_text(value, "dataset")

    @field_validator("classifiers", "attacks", "defenses", "surrogates", mode="before")
    @classmethod
    def _check_components(cls, values: Any, info: Any) -> tuple[str, ...]:
        kind = info.field_name.removesuffix("s")
        return tuple(component_text(v, kind) for v in values)

    @field_validator("knowledge", mode="before")
    @classmethod
    def _check_knowledge(cls, values: Any) -> tuple[str, ...]:
        known = (*LEVELS, "bpda", "all")
        for value in values:
            if value not in known:
                hint = suggest_names(str(value), known)
                raise BadParameter(f"knowledge {value!r}: expected {', '.join(known)}.{hint}")
        return LEVELS if "all" in values else tuple(dict.fromkeys(values))

    @field_validator("gradients", mode="before")
    @classmethod
    def _check_gradients(cls, values: Any) -> tuple[str, ...]:
        gradients: dict[str, None] = {}
        for value in values:
            text = component_text(value, "gradient")
            gradients |= dict.fromkeys(parse_gradients(text))
        return tuple(gradients)

    @field_validator("eps", mode="before")
    @classmethod
    def _check_eps(cls, value: Any) -> tuple[Eps, ...]:
        return parse_eps(value)

    @field_validator(*_WHOLE_NUMBERS, mode="before")
    @classmethod
    def _check_whole_number(cls, value: Any, info: Any) -> Any:
        return whole_number(value, info.field_name)

    @field_validator("shard", mode="before")
    @classmethod
    def _check_shard(cls, value: Any) -> Any:
        value = plain_scalar(value)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value != "auto" and not (is_whole and value >= 1):
            raise BadParameter(f"shard {value!r}: expected a whole number >= 1, or auto")
        return value

    @field_validator("protocol", mode="before")
    @classmethod
    def _check_protocol_name(cls, value: Any) -> Any:
        if value is not None and value not in PROTOCOLS:
            hint = suggest_names(str(value), PROTOCOLS)
            raise BadParameter(f"protocol {value!r}: expected {' or '.join(PROTOCOLS)}.{hint}")
        return value


def _task_of(keys: Mapping[str, Any]) -> Task:
    """Return the task that the keys name. Raises BadParameter, BadSpec."""
    return load_task(component_text(keys.get("task", DEFAULT), "task"))


def _without_classifier(surrogate: Any) -> str:
    """Return a defense alone as the pipeline that records write: DEFENSE+none, once."""
    text = component_text(surrogate, "defense")
    is_pipeline = text != NO_CLASSIFIER and _ends_without_classifier(text)
    return text if is_pipeline else f"{text}+{NO_CLASSIFIER}"


def _ends_without_classifier(pipeline: str) -> bool:
    """Return True if the last member of DEFENSE+...+CLASSIFIER is "none"."""
    return pipeline.rpartition("+")[2] == NO_CLASSIFIER


def make_suite(keys: Mapping[str, Any]) -> Suite:
    """Return the validated suite. Raises BadParameter with one clear line."""
    try:
        return Suite(**keys)
    except ValidationError as e:
        raise _first_error(e) from None


def _first_error(error: ValidationError) -> DefendError:
    """Return what is present and wrong before what is missing."""
    first = min(error.errors(), key=lambda e: e["type"] == "missing")
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, DefendError):
        return raised
    where = ".".join(str(p) for p in first["loc"]) or "suite"
    message = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "missing":
        needs = "a dataset, classifiers, defenses and attacks or a protocol"
        return BadParameter(f"{message}; a suite names {needs}")
    return BadParameter(f"{message}, got {first['input']!r}")


def load_suite(path: str | Path | None = None, trust: bool = False) -> dict[str, Any]:
    """Return the keys of a suite file, or of a suite that ships, by its name.

    None is the embedded suite. trust: the suite may run the files of code that it names. Raises
    BadParameter.
    """
    folder = files("defend.benchmarks").joinpath("suites")
    shipped = {suite.name.removesuffix(".toml"): suite for suite in folder.iterdir()}
    if path is None or (str(path) in shipped and not Path(path).exists()):
        return tomllib.loads(shipped[str(path or "embedded")].read_text())
    file = user_path(path)
    try:
        keys = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise BadParameter(
            f"suite {file}: cannot be read: {e.strerror}. Give a file, or the name of one that"
            f" ships: {', '.join(sorted(shipped))}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadParameter(f"suite {file}: not TOML: {e}") from None
    return {"name": file.stem} | resolve_local_code(keys, file, trust)
