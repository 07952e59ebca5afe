"""`defend audit`: checks and a verdict on whether an evaluation of a purifier is real."""

from defend.auditing.run import audit as audit
from defend.auditing.verdict import AuditReport as AuditReport
from defend.auditing.verdict import CheckRow as CheckRow
