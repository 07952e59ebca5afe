"""Is what a purifier's declared gradient reports real? `defend audit`: checks, and a verdict on the evaluation."""

from defend.benchmarks.audit.model import Check as Check
from defend.benchmarks.audit.model import Report as Report
from defend.benchmarks.audit.run import audit as audit
