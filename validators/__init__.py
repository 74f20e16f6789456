"""Great Expectations suites, one per table, run at every boundary between stages.

```
results = [validate_part(PAIRS, part) for part in parts] + [validate_table(PAIRS, paths, others)]
require_valid(results, where="after pairing")   # raises when a `must` is broken
merge(results)                                  # rows of the VALIDATIONS table
```
"""

from validators.boundaries import merge, require_valid, validate_part, validate_table

__all__ = ["merge", "require_valid", "validate_part", "validate_table"]
