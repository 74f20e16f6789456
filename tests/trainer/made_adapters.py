"""Models as a training of adapters leaves them, without one: the adapters are drawn at random."""

from __future__ import annotations

import functools
import json

from stages.content_ids import weights_hash
from trainer.adapters import AdapterConfig, MergedPolicy, lora_config


def make_adapted(base_folder, folder, config: AdapterConfig, seed=0, spread=0.2):
    """Save in ``folder`` the model in another with adapters merged into it, and return it."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load = functools.partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    model = get_peft_model(load(base_folder), lora_config(config, load(base_folder)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    MergedPolicy(model, load(base_folder)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)
    manifest = {
        "settings": {"adapter": config.model_dump(mode="json")},
        "weights_hash": weights_hash(folder),
        "base_weights_hash": weights_hash(base_folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
