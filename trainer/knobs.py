"""What a tuning of the language model can be told."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["frozen", "lora", "adalora", "top", "full"]


class TuneSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the encoder is tuned, by a contrastive loss (van den Oord et al., arXiv 1807.03748).

    lora: Hu et al., arXiv 2106.09685; adalora: Zhang et al., arXiv 2303.10512; top: the last layers; full: all of it;
    frozen: the encoder stays as it is, and only what is above it is made anew.
    """

    mode: Mode = "lora"
    budget_ms: int = 600_000  # wall clock, of the training itself
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05  # of the adapters; of the model's own layers where those are trained
    layers: int = 2  # that `top` tunes
    frozen: tuple[str, ...] = ()  # parts of the names of weights that are not trained
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float | None = None  # None: lora 5e-4, adalora 2e-3, top and full 5e-5; ten times for SGD
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    batch: int = 32
    epochs: int = 4  # passes at most; the budget may end it earlier
    temperature: float = 0.05
    validation: float = 0.1  # share of the pairs, the newest, that early stopping looks at
    patience: int = 3  # looks without gain before it stops; 0: never
    masked: float = 0.0  # share of the budget for masked-language warm-up on the window's texts
    proximal: float = 0.0  # pull to where it began, which is the last tuning's result (Li et al., arXiv 1812.06127)
    replay: float = 1.0  # pairs of before the last tuning for each new one
    max_steps: int = 2_000
    compile: Literal["auto", "on", "off"] = "auto"
    seed: int = 7
