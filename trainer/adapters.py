"""Low-rank adapters beside frozen weights: how they are made, saved alone and merged.

LoRA adds (alpha / rank) B A to a weight and trains A and B alone (Hu et al. 2021, arXiv 2106.09685,
section 4.1); QLoRA keeps the frozen weights in 4 bits (Dettmers et al. 2023, arXiv 2305.14314).
B starts at zero, so the policy starts as its base.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pydantic

from stages.configuration import NOT_EMPTY, Config
from stages.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER = "adapter"
"""In the trained model's folder."""

WEIGHTS = "adapter_model.safetensors"
"""As PEFT names it, in that folder and in a checkpoint."""


HEADS = ("score", "classifier")
"""What a sequence classifier's head may be called, to Transformers and to PEFT."""

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


class AdapterConfig(Config):
    """Small matrices that are trained instead of the weights; these stay as they are."""

    kind: Literal["lora", "qlora"] = "lora"
    """`qlora` holds the frozen weights in 4 bits (bitsandbytes, CUDA only)."""
    rank: pydantic.PositiveInt = 16
    """Rank of the update of each weight; 8 to 64 is usual."""
    alpha: Annotated[float, pydantic.Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Nothing but 0: TRL switches every dropout off."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], NOT_EMPTY] = "all-linear"
    """The layers that get an update, by the last part of their name (`q_proj`); `all-linear` is all
    but the head, which gets none."""

    @pydantic.model_validator(mode="after")
    def _without_dropout(self) -> Self:
        if self.dropout:
            raise ValueError(
                f"dropout {self.dropout:g} would be ignored: TRL sets it to 0, as the policy would "
                "otherwise be compared with its reference through noise"
            )
        return self


def require_adapter(config: AdapterConfig) -> None:
    """Pass when this machine can train such adapters.

    Raises:
        ConfigError: QLoRA without a CUDA device or without bitsandbytes.
    """
    if config.kind != "qlora":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "adapter.kind is qlora, and there is no CUDA device",
            expected="a CUDA device: 4-bit weights are computed with there",
            where="training.adapter.kind",
            remedy="choose lora",
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "adapter.kind is qlora, and bitsandbytes is not installed",
            expected="the package",
            where="training.adapter.kind",
            remedy=".venv/bin/pip install -c constraints.txt -e '.[qlora]'",
        )


def load_in_4_bits(folder: Path, device: Any) -> Any:
    """Return the model in ``folder`` on ``device``, its linear layers in 4 bits (NF4).

    What is not quantised is fp32; products are taken in bf16.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=quantisation,
        device_map={"": device},
        trust_remote_code=False,
    )


def lora_config(config: AdapterConfig, model: Any, task: Task = "CAUSAL_LM") -> Any:
    """Return PEFT's settings of the adapters of ``model``, which does ``task``.

    The head of a classifier (`SEQ_CLS`) is trained whole, and lies with the adapters.

    Raises:
        ConfigError: ``model`` has no such linear layer, or it is the head.
    """
    from peft import LoraConfig

    targets = config.target_modules
    if targets != "all-linear":
        known = sorted({name.rpartition(".")[2] for name in _linear_layers(model)})
        unknown = sorted(set(targets) - set(known))
        if unknown:
            raise ConfigError(
                f"{type(model).__name__} has no linear layers called {unknown}",
                expected=f"names among {known}, or all-linear",
                where="training.adapter.target_modules",
            )
    return LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=targets if targets == "all-linear" else list(targets),
    )


def _linear_layers(model: Any) -> Iterator[str]:
    """Yield the names of the linear layers of ``model`` but its head.

    A language model's TRL applies itself, a classifier's is trained whole.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    heads = (model.get_output_embeddings(), *(getattr(model, name, None) for name in HEADS))
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and not any(module is head for head in heads):
            yield name


def base_of(model: Any) -> Any:
    """Return what ``model`` adapts; itself where it has no adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def train_in_fp32(model: Any) -> None:
    """Make the adapters of ``model`` fp32.

    TRL makes those of a quantised model bf16, in which most steps of a small learning rate round to
    nothing.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class WithoutAdapters:
    """The base of ``model`` as a model of its own, for as long as it computes: a reference."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, **inputs: Any) -> Any:
        """Return what the base returns."""
        with self.model.disable_adapter():
            return self.model(**inputs)

    def eval(self) -> None:
        """Leave training mode."""
        self.model.eval()


def merged(model: Any, base: Any) -> Any:
    """Return ``base``, freshly loaded from what ``model`` adapts, with its adapters merged in.

    ``model`` is not touched. Its adapters were trained on top of weights that may have been rounded
    to 4 bits, so it is these that they are added to, in fp32.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    base = rounded_as(model, base).to(model.device)
    with torch.random.fork_rng():  # the adapters begin with random numbers
        adapted = get_peft_model(base, copy.deepcopy(model.peft_config["default"]))
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(model))
    return adapted.merge_and_unload()


def rounded_as(model: Any, base: Any) -> Any:
    """Return ``base`` with the weights that the base of ``model`` was rounded to, if it was."""
    quantised = model.get_base_model()
    if not getattr(quantised, "is_loaded_in_4bit", False):
        return base
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, module in quantised.named_modules():
        layer = getattr(module, "base_layer", module)
        if isinstance(layer, Linear4bit) and not name.endswith(".base_layer"):
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            target = base.get_submodule(name).weight
            target.data = weight.to(target.device, target.dtype)
    return base


class MergedPolicy:
    """A policy whose adapters are merged when it is saved, and saved beside it too."""

    def __init__(self, model: Any, base: Any) -> None:
        """Save ``model``; ``base`` is what it adapts, freshly loaded."""
        self.model = model
        self.base = base

    def save_pretrained(self, folder: Path) -> None:
        """Write the merged policy into ``folder``, and its adapters into a folder within."""
        merged(self.model, self.base).save_pretrained(folder)
        save_adapter(self.model, folder / FOLDER)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapters of ``model`` alone, as PEFT does, but without the path of its base."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = None, True
    # A set by itself, whose order differs from process to process.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    state = get_peft_model_state_dict(model)
    weights = {name: part.contiguous().cpu() for name, part in state.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def restore_adapter(model: Any, checkpoint: Path) -> None:
    """Give ``model`` the adapters of a checkpoint."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint / WEIGHTS))
