"""Models that FSDP or DeepSpeed spreads over processes, so that no process has a whole one.

What looks at the policy as a whole, before or during a training, can't be had for them; what
replaces it is here. Imports torch at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from stages.errors import ModelError
from trainer.adapters import lora_config, restore_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.adapters import AdapterConfig


class FirstMargins(TrainerCallback):  # type: ignore[misc]
    """Looks at the first step's rewards, which must be 0 where the reference is the policy."""

    def __init__(self, limit: float) -> None:
        """Allow a mean reward and a mean margin of up to ``limit``."""
        self.limit = limit

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Stop at the first step, before it is saved, if the margins are not 0."""
        del args, control
        names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
        if state.global_step != 1 or not logs or "loss" not in logs:
            return
        largest = max(abs(logs[name]) for name in names)
        if not largest <= self.limit:  # NaN fails
            raise ModelError(
                f"at the first step the mean implicit rewards and margin are up to {largest:.3g}, "
                "though policy and reference have the same weights hash",
                expected=f"at most {self.limit:.3g}",
                remedy="the trainer holds another reference than it was given: report this",
            )


def whole_policy(checkpoint: Path, fresh: Any, adapter: AdapterConfig | None) -> Any:
    """Return the policy of a ``checkpoint`` in fp32 on the CPU.

    Args:
        checkpoint: as FSDP (full state) or DeepSpeed (fp32 partitions beside it) has written it.
        fresh: the policy before training, whole.
        adapter: its adapters' settings.
    """
    from safetensors.torch import load_file

    if adapter:
        from peft import get_peft_model

        fresh = get_peft_model(fresh, lora_config(adapter, fresh))
        restore_adapter(fresh, checkpoint)
        return fresh
    if (checkpoint / "latest").is_file():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    else:
        state = {}
        for path in sorted(checkpoint.glob("model*.safetensors")):
            state |= load_file(path)
    fresh.load_state_dict(state, strict=False)
    fresh.tie_weights()
    return fresh
