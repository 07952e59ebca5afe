"""Write docs/record.schema.json, the JSON schema of one record.

python docs/record_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

from defend.records import json_schema

if __name__ == "__main__":
    text = json.dumps(json_schema(), indent=1)
    (Path(__file__).parent / "record.schema.json").write_text(text + "\n")
