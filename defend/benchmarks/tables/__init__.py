"""Records -> tables, with what a claim misses and what comparing cells shows."""

from defend.benchmarks.tables.build import table as table
from defend.benchmarks.tables.model import Number as Number
from defend.benchmarks.tables.model import Row as Row
from defend.benchmarks.tables.model import Section as Section
from defend.benchmarks.tables.model import Table as Table
from defend.benchmarks.tables.text import print_table as print_table
