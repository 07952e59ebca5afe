"""ART's preprocessor classes: which of them can be used, and with which parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from art.defences import preprocessor as art_preprocessors
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorTensorFlowV2

from defend.errors import BadParameter, one_line, suggest_names

# Parameters of ART's classes that a spec does not contain: the adapter decides them.
RESERVED = frozenset(
    {"clip_values", "channels_first", "augmentation", "apply_fit", "apply_predict", "device_type"}
)
MAX_ERROR = 200  # characters of ART's messages that an error repeats


def find_class(name: str) -> type[Preprocessor]:
    """Return ART's class of this name. Raises BadParameter if there is none that can be used."""
    classes = preprocessor_classes()
    usable = sorted(key for key, cls in classes.items() if is_usable(cls))
    if name in usable:
        return classes[name]
    reason = f"ART has no preprocessor {name!r}"
    if name in classes:
        reason = f"{name} is abstract, or written for TensorFlow"
    raise BadParameter(
        f"art: {reason}.{suggest_names(name, usable)} Expected one of {', '.join(usable)}."
    )


def preprocessor_classes() -> dict[str, type[Preprocessor]]:
    """Return all preprocessor classes of ART by name."""
    return {
        name: value
        for name, value in vars(art_preprocessors).items()
        if inspect.isclass(value) and issubclass(value, Preprocessor)
    }


def is_usable(cls: type[Preprocessor]) -> bool:
    """Return True if the class can be instantiated without TensorFlow."""
    return not issubclass(cls, PreprocessorTensorFlowV2) and not inspect.isabstract(cls)


def check_parameters(
    name: str, signature: Mapping[str, inspect.Parameter], parameters: Mapping[str, Any]
) -> None:
    """Raise BadParameter if a parameter is unknown to the class, or a required one is missing."""
    own = [key for key in signature if key not in RESERVED]
    for key in parameters:
        if key not in own:
            raise BadParameter(
                f"art: {name} has no parameter {key!r} of its own.{suggest_names(key, own)}"
                f" Expected {', '.join(own) or 'none'}."
            )
    required = [key for key in own if signature[key].default is inspect.Parameter.empty]
    missing = [key for key in required if key not in parameters]
    if missing:
        raise BadParameter(
            f"art: {name} needs {', '.join(missing)}: write art:name={name},{missing[0]}=..."
        )


def describe_error(e: Exception) -> str:
    """Return ART's message, which often has several lines, on one line of limited length."""
    text = one_line(e)[:MAX_ERROR] or type(e).__name__
    if isinstance(e, ImportError) and e.name:
        return f"{text} (pip install {e.name})"
    return text
