"""One process of a training under FSDP on a CPU: ``python -m tests.trainer.fsdp_on_cpu FOLDER``.

Torch's FSDP works on a CPU over gloo. Accelerate starts it on accelerators only: here it is told
that the CPU is one.
"""

import os
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    from trainer.launched import main

    sys.exit(main(Path(sys.argv[1])))
