"""The contrastive loop: batches of pairs, a fused optimiser on a schedule, early stopping on the newest pairs."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer import encoders
from trainer.knobs import TuneSettings

Pair = tuple[str, str]
LOOKS = 10  # at the validation slice in one tuning
BUCKET = 50  # batches within which texts are sorted by length
COMPILED = 500  # steps from which compiling pays on a GPU
RATES = {"lora": 5e-4, "adalora": 2e-3}  # of the weights of the model itself: 5e-5
ORTHOGONAL = 0.1  # weight of AdaLoRA's regulariser: at .5 short tunings learn little else


def pass_size(new: Sequence[Any], old: Sequence[Any], settings: TuneSettings) -> int:
    """How many pairs one pass sees."""
    return len(new) + min(len(old), int(settings.replay * len(new)))


def batches(
    new: Sequence[Pair], old: Sequence[Pair], ids: dict[str, list[int]], settings: TuneSettings,
    rng: random.Random,
) -> Iterator[list[Pair]]:  # fmt: skip
    """One pass: the new pairs and a replay of the old ones, shuffled, pairs of about equal length together."""
    replayed = rng.sample(old, pass_size(new, old, settings) - len(new))
    pairs = rng.sample([*new, *replayed], len(new) + len(replayed))
    made = []
    for start in range(0, len(pairs), BUCKET * settings.batch):
        part = pairs[start : start + BUCKET * settings.batch]
        part.sort(key=lambda pair: len(ids[pair[0]]) + len(ids[pair[1]]))
        made += [part[i : i + settings.batch] for i in range(0, len(part), settings.batch)]
    rng.shuffle(made)
    return (batch for batch in made if len(batch) > 1)  # one alone has nothing to be told from


def factor(done: float, settings: TuneSettings) -> float:
    """What of the learning rate is left when this share of the tuning is done.

    >>> settings = TuneSettings(warmup=0.1)
    >>> [round(factor(x, settings), 2) for x in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.53, 0.05]
    """
    if done < settings.warmup:
        return max(done / settings.warmup, 0.01)
    left = 1 - (done - settings.warmup) / max(1 - settings.warmup, 1e-9)
    shape = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[settings.schedule]
    return 0.05 + 0.95 * shape


def optimiser_of(weights: list[Any], settings: TuneSettings) -> Any:
    """AdamW or SGD with momentum over these weights, each in one fused kernel."""
    import torch

    rate = settings.learning_rate or RATES.get(settings.mode, 5e-5)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(weights, lr=rate, weight_decay=settings.weight_decay, fused=True)
    rate = settings.learning_rate or 10 * rate
    return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=settings.weight_decay, fused=True)


class Runner:
    """The loop of one tuning over pairs; the weights that did best on the held-out pairs are kept."""

    def __init__(
        self, model: Any, tokenizer: Any, ids: dict[str, list[int]], settings: TuneSettings, half: bool, steps: int,
        until: float,
    ) -> None:  # fmt: skip
        import torch

        self.model, self.tokenizer, self.ids, self.settings = model, tokenizer, ids, settings
        self.half, self.steps, self.until, self.begun = half, steps, until, time.monotonic()
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.weights] if settings.proximal else []
        self.device = next(model.parameters()).device.type
        paying = settings.compile == "auto" and self.device == "cuda" and steps >= COMPILED
        compiled = settings.compile == "on" or paying
        self.forward = torch.compile(model, dynamic=True) if compiled else model

    def run(self, a_pass: Callable[[], Iterator[list[Pair]]], held_out: list[Pair]) -> dict[str, Any]:
        """Steps until they are done, the time is over or nothing is gained; says what came of it."""
        import torch

        settings, optimiser = self.settings, optimiser_of(self.weights, self.settings)
        rate, every = optimiser.param_groups[0]["lr"], max(1, self.steps // LOOKS)
        losses: list[tuple[int, float]] = []
        looks = [(0, self.loss_on(held_out))] if held_out else []
        best, kept = (looks[0][1] if looks else math.inf), [p.detach().clone() for p in self.weights]
        step, since, stopped, queue = 0, 0, "done", iter(())  # type: int, int, str, Iterator[Any]
        while step < self.steps:
            if time.monotonic() >= self.until:
                stopped = "budget"
                break
            if (batch := next(queue, None)) is None:
                queue = a_pass()
                if (batch := next(queue, None)) is None:
                    break
            spent = (time.monotonic() - self.begun) / max(self.until - self.begun, 1e-9)
            optimiser.param_groups[0]["lr"] = rate * factor(max(step / self.steps, min(spent, 1.0)), settings)
            loss = self.loss(batch) + self.pull()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            optimiser.step()
            step += 1
            if settings.mode == "adalora":
                self.model.base_model.update_and_allocate(step)
            if step % every == 0 or step == self.steps:
                losses.append((step, round(float(loss.detach()), 4)))
                if held_out:
                    looks.append((step, self.loss_on(held_out)))
                    since = 0 if looks[-1][1] < best else since + 1
                    if since == 0:
                        best, kept = looks[-1][1], [p.detach().clone() for p in self.weights]
                    elif settings.patience and since >= settings.patience:
                        stopped = "early"
                        break
        if held_out:
            with torch.no_grad():
                for weight, value in zip(self.weights, kept, strict=True):
                    weight.copy_(value)
        return {"steps": step, "stopped": stopped, "losses": losses, "validation": looks}

    def loss(self, pairs: list[Pair]) -> Any:
        """Cross entropy of each next item against the batch's others; the same text twice is no negative."""
        import torch

        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            here, there = (self._vectors([pair[k] for pair in pairs]) for k in (0, 1))
        logits = here.float() @ there.float().T / self.settings.temperature  # [batch, batch]
        number = {text: i for i, (_, text) in enumerate(pairs)}
        names = torch.tensor([number[b] for _, b in pairs])
        same = (names[:, None] == names[None, :]) & ~torch.eye(len(pairs), dtype=torch.bool)
        logits = logits.masked_fill(same.to(logits.device), -1e4)
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(pairs), device=logits.device))

    def pull(self) -> Any:
        """What keeps the weights near where they began, and AdaLoRA's singular vectors apart."""
        loss: Any = 0.0
        for weight, start in zip(self.weights, self.start, strict=False):
            loss = loss + 0.5 * self.settings.proximal * (weight - start).square().sum()
        if self.settings.mode == "adalora":
            loss = loss + ORTHOGONAL * _orthogonal(self.model)
        return loss

    def loss_on(self, pairs: list[Pair]) -> float:
        """The mean loss on held-out pairs, in batches as in training."""
        import torch

        self.model.eval()
        size, total = self.settings.batch, 0.0
        full = [pairs[i : i + size] for i in range(0, len(pairs) - size + 1, size)]
        with torch.inference_mode():
            for batch in full:
                total += float(self.loss(batch))
        self.model.train()
        return round(total / len(full), 4)

    def _vectors(self, said: list[str]) -> Any:
        batch = encoders.padded(self.tokenizer, [self.ids[text] for text in said], self.device)
        return encoders.pooled(self.forward, batch)


def _orthogonal(model: Any) -> Any:
    """How far AdaLoRA's factors are from orthogonal, on average."""
    import torch

    apart = []
    for name, p in model.named_parameters():
        if p.requires_grad and ("lora_A" in name or "lora_B" in name):
            square = p @ p.T if "lora_A" in name else p.T @ p
            apart.append((square - torch.eye(len(square), device=p.device)).norm())
    return torch.stack(apart).mean() if apart else 0.0
