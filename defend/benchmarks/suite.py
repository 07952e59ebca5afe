"""A suite: what to run. TOML files and keyword arguments, validated; nothing is loaded here."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from defend.errors import BadParameter, DefendError, near
from defend.spec import Spec, of_table, parse, parse_single, read

Level = Literal["oblivious", "transfer", "query", "adaptive"]
Gradient = Literal["declared", "identity", "learned"]
LEVELS: tuple[Level, ...] = ("oblivious", "transfer", "query", "adaptive")
GRADIENTS: tuple[Gradient, ...] = ("declared", "identity", "learned")
PROTOCOLS = ("ladder-1",)
_SINGULAR = {
    "classifier": "classifiers",
    "defense": "defenses",
    "attack": "attacks",
    "gradient": "gradients",
    "surrogate": "surrogates",
}
_LISTS = ("classifiers", "defenses", "attacks", "knowledge", "gradients", "surrogates")
DRAWS = 20  # by which a stochastic purifier is scored; a protocol asks for no fewer
MANY_EPS = 1000  # a range of more is a slip of the pen
_RUNTIME = (
    "seed",
    "device",
    "clip_values",
    "channels_first",
)  # how a purifier runs: not for a spec in a bench


class Eps(BaseModel):
    """One eps, as typed and as a number."""

    model_config = ConfigDict(frozen=True)
    text: str
    value: float

    @classmethod
    def of(cls, value: float) -> Eps:
        """As a paper would write it: 0.3, or 8/255."""
        short, levels = f"{value:.6g}", round(value * 255)
        return cls(
            text=f"{levels}/255" if float(short) != value == levels / 255 else short, value=value
        )


class Suite(BaseModel):
    """The arguments of `defend.bench`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "adhoc"
    dataset: str
    classifiers: tuple[str, ...] = Field(min_length=1)
    defenses: tuple[str, ...] = Field(min_length=1)
    attacks: tuple[str, ...] = ()  # under a protocol: beside it
    knowledge: tuple[str, ...] | None = None  # None: the defaults of each attack
    gradients: tuple[Gradient, ...] | None = None
    surrogates: tuple[str, ...] = ()
    protocol: Literal["ladder-1"] | None = None
    eps: tuple[Eps, ...] | None = None  # None: the claim eps of the data set
    n: int = Field(default=1000, ge=1)
    split: Literal["test", "val"] = "test"
    seed: int = Field(default=0, ge=0, lt=2**64)
    draws: int = Field(default=DRAWS, ge=1)
    eot: int | None = Field(default=None, ge=1)  # None: 1, or 20 if stochastic
    shard: int = Field(default=256, ge=1)
    threads: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    layout: Literal["contiguous", "channels_last", "auto"] = "contiguous"

    def spelled(self) -> dict[str, Any]:
        """The keys as a suite file would hold them."""
        eps = {"eps": [e.text for e in self.eps]} if self.eps else {}
        return self.model_dump(mode="json", exclude_none=True) | eps

    @property
    def every_level(self) -> bool:
        """Was `--knowledge all` asked for? Then through every gradient."""
        return set(LEVELS) <= set(self.knowledge or ())

    @model_validator(mode="after")
    def _whole_protocol(self) -> Suite:
        if self.protocol is None and not self.attacks:
            raise BadParameter("attacks: expected at least one attack, or protocol = 'ladder-1'")
        decided = [
            key
            for key in ("knowledge", "gradients", "eps", "eot")
            if getattr(self, key) is not None
        ]
        if self.protocol and not self.attacks and decided:
            raise BadParameter(
                f"protocol {self.protocol} decides {', '.join(decided)}: leave it out, or give the attack that it is meant for"
            )
        if self.gradients and self.knowledge and "adaptive" not in self.knowledge:
            raise BadParameter(
                f"gradients {', '.join(self.gradients)}: attacks at {', '.join(self.knowledge)} choose none; add knowledge adaptive, or leave it out"
            )
        if self.protocol and self.draws < DRAWS:
            raise BadParameter(
                f"protocol {self.protocol} scores by {DRAWS} draws or more, not {self.draws}: leave draws out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, keys: Any) -> Any:
        """Singulars, single values, near names."""
        plural = {_SINGULAR.get(k, k): v for k, v in keys.items() if v is not None}
        for key in plural:
            if key not in cls.model_fields:
                raise BadParameter(
                    f"a suite has no key {key!r}.{near(key, cls.model_fields)} It takes {', '.join(cls.model_fields)}."
                )
        for key in _LISTS:
            if key in plural and not isinstance(plural[key], list | tuple):
                plural[key] = (plural[key],)
        return plural

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value or value.startswith(".") or any(c in value for c in "/\\\0"):
            raise BadParameter(
                f"name {value!r}: expected the name of a folder below runs/, without / or a leading dot"
            )
        return value

    @field_validator("dataset", mode="before")
    @classmethod
    def _dataset(cls, value: Any) -> str:
        return component(value, "dataset")

    @field_validator("classifiers", "attacks", "defenses", "surrogates", mode="before")
    @classmethod
    def _components(cls, values: Any, info: Any) -> tuple[str, ...]:
        kind = info.field_name.removesuffix("s")
        return tuple(component(v, kind) for v in values)

    @field_validator("knowledge", mode="before")
    @classmethod
    def _knowledge(cls, values: Any) -> tuple[str, ...]:
        known = (*LEVELS, "bpda", "all")
        for value in values:
            if value not in known:
                raise BadParameter(
                    f"knowledge {value!r}: expected {', '.join(known)}.{near(str(value), known)}"
                )
        return LEVELS if "all" in values else tuple(dict.fromkeys(values))

    @field_validator("gradients", mode="before")
    @classmethod
    def _gradients(cls, values: Any) -> Any:
        for value in values:
            if value not in GRADIENTS:
                raise BadParameter(
                    f"gradient {value!r}: expected {' or '.join(GRADIENTS)}.{near(str(value), GRADIENTS)}"
                )
        return tuple(dict.fromkeys(values))

    @field_validator("eps", mode="before")
    @classmethod
    def _eps(cls, value: Any) -> tuple[Eps, ...]:
        return parse_eps(value)

    @field_validator("seed", "n", "draws", "shard", "threads", "eot", mode="before")
    @classmethod
    def _whole(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadParameter(f"{info.field_name} {value!r}: expected a whole number")
        return value

    @field_validator("protocol", mode="before")
    @classmethod
    def _protocol(cls, value: Any) -> Any:
        if value not in (None, *PROTOCOLS):
            raise BadParameter(
                f"protocol {value!r}: expected {' or '.join(PROTOCOLS)}.{near(str(value), PROTOCOLS)}"
            )
        return value


def make_suite(keys: Mapping[str, Any]) -> Suite:
    """Raises BadParameter with one clear line."""
    try:
        return Suite(**keys)
    except ValidationError as e:
        first = min(
            e.errors(), key=lambda error: error["type"] == "missing"
        )  # what is there and wrong, before what is not there
        if isinstance(ours := first.get("ctx", {}).get("error"), DefendError):
            raise ours from None
        where = ".".join(str(p) for p in first["loc"]) or "suite"
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        hint = (
            "; a suite names a dataset, classifiers, defenses and attacks or a protocol"
            if first["type"] == "missing"
            else ""
        )
        raise BadParameter(
            f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}{got}{hint}"
        ) from None


def load_suite(path: str | Path | None = None) -> dict[str, Any]:
    """The keys of a suite file, or of a suite that ships, by its name; of the embedded one where none is given. Raises BadParameter."""
    shipped = {
        suite.name.removesuffix(".toml"): suite
        for suite in files("defend.benchmarks").joinpath("suites").iterdir()
    }
    if path is None or (str(path) in shipped and not Path(path).exists()):
        return tomllib.loads(shipped[str(path or "embedded")].read_text())
    file = Path(path)
    try:
        keys = tomllib.loads(file.read_text())
    except OSError as e:
        raise BadParameter(
            f"suite {file}: cannot be read: {e.strerror}. Give a file, or the name of one that ships: {', '.join(sorted(shipped))}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadParameter(f"suite {file}: not TOML: {e}") from None
    return {"name": file.stem} | keys


def component(value: Any, kind: str) -> str:
    """A spec as typed, or as a table writes it. Refused: fields that say how a purifier runs, and weights that nothing trained."""
    if not isinstance(value, str | Mapping):
        raise BadParameter(
            f'{kind} {value!r}: expected name:key=value,... or a table with name = "..."'
        )
    text = value if isinstance(value, str) else str(of_table(dict(value)))
    specs = (
        (parse_single(text, kind),) if kind in ("classifier", "attack", "dataset") else parse(text)
    )
    for spec in specs:
        of = ("classifier" if spec is specs[-1] else "defense") if kind == "surrogate" else kind
        for key, _ in spec.params:
            if of == "defense" and key in _RUNTIME:
                raise BadParameter(
                    f"{kind} {text!r}: {key}= says how a purifier runs, not what it is: leave it out (--seed and --device are options)"
                )
            if (key, "untrained") in spec.params and key == "weights":
                raise BadParameter(
                    f"{of} {text!r}: weights=untrained measures nothing; train it with `defend train {of} {spec.name}` or name its weights"
                )
    return text


def too_wide(eps: str) -> str:
    return f"eps {eps}: pixels are in [0, 1], so that an L-inf eps is at most 1; for grey levels write {eps}/255"


def parse_eps(value: Any) -> tuple[Eps, ...]:
    """Numbers, fractions, lists, and ranges with both ends: 0.1, "8/255", "0,8/255", "0:0.3:0.02", [0, "8/255"]."""
    items = value if isinstance(value, list | tuple) else [value]
    found: list[Eps] = []
    for item in items:
        for part in str(item).split(",") if isinstance(item, str) else [item]:
            found += (
                [part]
                if isinstance(part, Eps)
                else _eps_range(part)
                if isinstance(part, str) and ":" in part
                else [one_eps(part)]
            )
    if not found:
        raise BadParameter("eps: expected at least one number, as 8/255 or 0:0.3:0.02")
    return tuple({e.value: e for e in found}.values())


def one_eps(item: Any) -> Eps:
    value = read(item) if isinstance(item, str) else item
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | Fraction)
        or not math.isfinite(value)
    ):
        raise BadParameter(
            f"eps {item!r}: expected a number >= 0, as 0.1, 8/255, a list 0,8/255 or a range 0:0.3:0.02"
        )
    if value < 0:
        raise BadParameter(f"eps {item}: expected a number >= 0")
    return Eps(text=str(item).strip(), value=float(value))


def _eps_range(text: str) -> list[Eps]:
    """start:stop:step, both ends included, in exact arithmetic."""
    components = text.split(":")
    if len(components) != 3:
        raise BadParameter(f"eps {text!r}: a range is start:stop:step, as 0:0.3:0.02")
    for part in components:
        one_eps(part)
    start, stop, step = (Fraction(p.strip()) for p in components)
    if step <= 0 or stop < start:
        raise BadParameter(f"eps {text!r}: expected start <= stop and step > 0")
    if (stop - start) / step >= MANY_EPS:
        raise BadParameter(f"eps {text!r}: more than {MANY_EPS} values; give a larger step")
    values = [start + i * step for i in range(int((stop - start) / step) + 1)]
    decimal = not any("/" in p for p in components)
    return [Eps(text=f"{float(v):g}" if decimal else str(v), value=float(v)) for v in values]


def take_eps(text: str) -> tuple[Spec, Eps | None]:
    """An attack's spec without its eps, which is no field of an attack."""
    spec, value = parse_single(text, "attack").without("eps")
    given = dict(parse_single(text, "attack").params)
    return spec, one_eps(
        value if not isinstance(value, Fraction) else str(value)
    ) if "eps" in given else None
