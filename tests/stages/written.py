"""A format's bytes of rows, as the export task writes them shard by shard."""

import io

from stages.export_formats import COMPANIONS, FORMATS, UNPAIRED
from stages.unpaired import unpaired_rows


def encode(rows, name, *more):
    """Return the file's bytes of one shard's pairs, or of several shards'."""
    sink = io.BytesIO()
    writer = FORMATS[name].writer(sink)
    for shard in (rows, *more):
        writer.write(unpaired_rows(shard) if name == UNPAIRED else shard)
    writer.close()
    return sink.getvalue()


def companion(name):
    """Return the bytes of a format's companion that states no facts."""
    return COMPANIONS[name].content(lambda: None)
