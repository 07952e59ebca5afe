"""`defend audit`: checks and a verdict on whether an evaluation of a purifier is real."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from defend.audit.run import audit as audit
from defend.audit.verdict import AuditReport as AuditReport
from defend.audit.verdict import CheckRow as CheckRow


class _CallablePackage(ModuleType):
    """Let `defend.audit(...)` run an audit.

    Importing this package binds the attribute `audit` of `defend` to the package, where callers
    expect the function.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> AuditReport:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
