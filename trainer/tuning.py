"""The language model itself, tuned on what people engaged with next, within a time budget."""

from __future__ import annotations

import os
import random
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import msgspec

from trainer import registry, texts

Mode = Literal["lora", "adalora", "top", "full"]
ADAPTERS = ("lora", "adalora")


class TuneSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the encoder is tuned, by a contrastive loss (van den Oord et al., arXiv 1807.03748).

    lora: Hu et al., arXiv 2106.09685; adalora: Zhang et al., arXiv 2303.10512; top: the last layers; full: all of it.
    """

    mode: Mode = "lora"
    budget_ms: int = 600_000  # wall clock, of the training itself
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    layers: int = 2  # that `top` tunes
    learning_rate: float | None = None  # None: 5e-4 for adapters, 5e-5 for the model's own weights
    weight_decay: float = 0.01
    batch: int = 32
    temperature: float = 0.05
    max_steps: int = 2_000
    seed: int = 7


def tune(encoder: str, pairs: list[tuple[str, str]], settings: TuneSettings, out: Path) -> Path:
    """Pull what was looked at and what was engaged with next together; returns the new encoder's folder.

    `pairs` are (text at hand, text of the next item), at least one batch of them. The folder below `out` is named by
    the digest of its weights, is loadable by `AutoModel.from_pretrained`, and appears whole or not at all.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(settings.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = transformers.AutoModel.from_pretrained(encoder, dtype=torch.float32)
    half = texts.half_is_faster(tokenizer, base.to(device).eval())
    model = adapted(base, settings).to(device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    rate = settings.learning_rate or (5e-4 if settings.mode in ADAPTERS else 5e-5)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=settings.weight_decay)
    rng, until = random.Random(settings.seed), time.monotonic() + settings.budget_ms / 1000

    def vectors(said: list[str]) -> Any:  # [n, d], unit length
        batch = tokenizer(said, padding=True, truncation=True, max_length=texts.TOKENS, return_tensors="pt").to(device)
        return texts.pooled(model, batch)

    for step in range(settings.max_steps):
        if time.monotonic() >= until:
            break
        chosen = rng.sample(pairs, min(settings.batch, len(pairs)))
        with torch.autocast(device, torch.bfloat16, enabled=half):
            here, there = vectors([a for a, _ in chosen]), vectors([b for _, b in chosen])
        logits = here.float() @ there.float().T / settings.temperature  # [batch, batch]
        names = [b for _, b in chosen]
        same = torch.tensor([[i != j and a == b for j, b in enumerate(names)] for i, a in enumerate(names)])
        logits = logits.masked_fill(same.to(device), -1e4)  # the same item twice is no negative
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(chosen), device=device))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if settings.mode == "adalora":
            model.base_model.update_and_allocate(step)
    whole = model.merge_and_unload() if settings.mode in ADAPTERS else model
    return _save(whole.to("cpu"), tokenizer, out)


def adapted(base: Any, settings: TuneSettings) -> Any:
    """The encoder with what is to be trained made trainable, and nothing else."""
    import peft
    import torch

    shape: dict[str, Any] = {
        "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, "target_modules": "all-linear",
        "exclude_modules": r".*pooler.*",  # what the vectors do not pass through
    }  # fmt: skip
    if settings.mode == "lora":
        return peft.get_peft_model(base, peft.LoraConfig(r=settings.rank, **shape))
    if settings.mode == "adalora":
        steps = settings.max_steps
        config = peft.AdaLoraConfig(
            init_r=settings.rank * 3 // 2, target_r=settings.rank, tinit=steps // 10, tfinal=steps // 2, deltaT=10,
            total_step=steps, **shape,
        )  # fmt: skip
        return peft.get_peft_model(base, config)
    base.requires_grad_(settings.mode == "full")
    if settings.mode == "top":
        stack = max((m for m in base.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        for layer in stack[-settings.layers :]:
            layer.requires_grad_(True)
    return base


def _save(model: Any, tokenizer: Any, out: Path) -> Path:
    temporary = out / f".{uuid.uuid4().hex}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    path = out / texts.digest(str(temporary))
    if path.exists():
        shutil.rmtree(temporary)
    else:
        registry.settle(temporary, path)
    return path
