"""What the tests of models share."""

import pytest


@pytest.fixture(scope="module")
def on_the_cpu():
    """Numbers are compared closely: with fp32 on the CPU, also where there is a GPU."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        torch.set_num_threads(1)
        yield
