"""Great Expectations suites, one per table, run at every boundary between stages.

```
measured = added([measure_rows(PAIRS, frame) for frame in parts])     # numbers, no rows
measured += measure_table(PAIRS, paths, {"candidates": other_paths})  # unique keys, references
results = judge(PAIRS, measured)                                      # rows of VALIDATIONS
require_valid([results], where="after pairing")                       # a broken `must` raises
```
"""

from validators.boundaries import judge, require_valid, validate_part, validate_table
from validators.measuring import Measured, added, measure_rows
from validators.table_wide import measure_table

__all__ = [
    "Measured",
    "added",
    "judge",
    "measure_rows",
    "measure_table",
    "require_valid",
    "validate_part",
    "validate_table",
]
