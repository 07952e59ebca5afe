"""Is what a purifier's declared gradient reports real? `defend audit`: checks, and a verdict on the evaluation."""

from defend.audit.run import audit as audit
from defend.audit.verdict import AuditReport as AuditReport
from defend.audit.verdict import CheckRow as CheckRow
