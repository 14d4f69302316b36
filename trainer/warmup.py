"""Language first: the encoder reads the shop's own texts, without labels, before it learns what follows what."""

from __future__ import annotations

import random
import time
from typing import Any

from trainer import contrastive, encoders
from trainer.knobs import TuneSettings

MASKED = 0.15  # of the tokens, as BERT was trained (Devlin et al., arXiv 1810.04805)


def warm_up(
    base: Any, tokenizer: Any, said: list[str], settings: TuneSettings, until: float, half: bool, rng: random.Random
) -> list[float]:
    """Guess masked tokens, or where the tokenizer has no mask (GPT-2) the next one; returns the loss of each pass.

    Only the weights of `base` that are trainable move, in place; the head above them is dropped. `until`: monotonic.
    """
    import torch
    import transformers

    if not settings.masked or len(said) < 2:
        return []
    masking = tokenizer.mask_token is not None
    kind = transformers.AutoModelForMaskedLM if masking else transformers.AutoModelForCausalLM
    model = kind.from_config(base.config).to(base.device)
    setattr(model, model.base_model_prefix, base)
    model.tie_weights()
    model.train()
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=masking, mlm_probability=MASKED)
    optimiser = contrastive.optimiser_of([p for p in model.parameters() if p.requires_grad], settings)
    ids = encoders.tokens(tokenizer, said)
    losses: list[float] = []
    for _ in range(settings.epochs):
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), rng.random()))  # equal lengths together
        starts = list(range(0, len(order), settings.batch))
        rng.shuffle(starts)
        seen: list[float] = []
        for start in starts:
            if time.monotonic() >= until:
                break
            part = [{"input_ids": ids[i]} for i in order[start : start + settings.batch]]
            batch = {name: value.to(base.device) for name, value in collate(part).items()}
            with torch.autocast(base.device.type, torch.bfloat16, enabled=half):
                loss = model(**batch).loss
            if not torch.isfinite(loss):  # nothing was masked
                continue
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            seen.append(float(loss.detach()))
        if seen:
            losses.append(round(sum(seen) / len(seen), 4))
        if time.monotonic() >= until:
            break
    return losses
