"""The textbook's way, on its own, to be measured beside ours: a language model reads the whole session as one text.

Both ask the language model anew for every session, where the product asks it once for every distinct text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.events import Row
from trainer import encoders
from trainer.texts import row_text

ROWS = 8  # of a session, the newest
BATCH = 16


def session_text(rows: Sequence[Row]) -> str:
    """A session as one text, newest row first, so that what is cut off is what lies furthest back."""
    return " ; ".join(f"{row.event.type} {row_text(row)}" for row in reversed(rows[-ROWS:]))


class _Textbook:
    """What both ways share: passes over sessions within CPU seconds, and the shares of all candidates."""

    names: list[str]
    _model: Any
    _optimiser: Any
    _rng: random.Random
    _asked: tuple[str, Any] = ("", None)  # the session of the last answer, and the answer

    def learn(self, said: Sequence[str], targets: Sequence[str], cpu_seconds: float, epochs: int = 1) -> int:
        """Passes over session texts and what came next, until the CPU seconds are spent; returns how many were seen."""
        import torch

        until, seen = time.process_time() + cpu_seconds, 0
        self._model.train()
        self._asked = ("", None)
        for _ in range(epochs):
            for part in _batches(len(said), self._rng):
                if time.process_time() >= until:
                    return seen
                loss = self._loss([said[i] for i in part], [targets[i] for i in part])
                self._optimiser.zero_grad()
                torch.autograd.backward(loss)
                self._optimiser.step()
                seen += len(part)
        return seen

    def ranked(self, said: str, n: int) -> list[str]:
        """The n most probable candidates after a session."""
        return [self.names[i] for i in np.argsort(-self.shares(said), kind="stable")[:n]]

    def probability(self, said: str, name: str) -> float:
        """Its share of what all candidates get."""
        return float(self.shares(said)[self.names.index(name)])

    def shares(self, said: str) -> Any:
        """Of the candidates in the order of `names`, [names], together one."""
        import torch

        if self._asked[0] != said or self._asked[1] is None:
            self._model.eval()
            with torch.inference_mode():
                self._asked = (said, self._weighed(said).float().cpu().numpy())
        return self._asked[1]

    def _loss(self, said: list[str], targets: list[str]) -> Any:
        raise NotImplementedError

    def _weighed(self, said: str) -> Any:
        """The shares of the candidates after a session, a tensor [names]."""
        raise NotImplementedError


class Classifier(_Textbook):
    """One label a sequence, binary cross-entropy a candidate, the encoder trained with the head above it."""

    def __init__(self, encoder: str, names: Sequence[str], *, learning_rate: float = 5e-5, seed: int = 7) -> None:
        import torch

        torch.manual_seed(seed)
        self.names = list(names)
        self._place = {name: i for i, name in enumerate(self.names)}
        self._tokenizer, self._model = encoders.load(encoder)
        width = int(self._model.config.hidden_size)
        self._head = torch.nn.Linear(width, len(self.names)).to(self._model.device)
        groups = [
            {"params": list(self._model.parameters()), "lr": learning_rate},
            {"params": list(self._head.parameters()), "lr": 20 * learning_rate},
        ]
        self._optimiser, self._rng = torch.optim.AdamW(groups, fused=True), random.Random(seed)

    def _loss(self, said: list[str], targets: list[str]) -> Any:
        import torch

        logits = self._logits(said)
        wanted = torch.zeros_like(logits)
        wanted[range(len(said)), [self._place[name] for name in targets]] = 1.0
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(said)

    def _weighed(self, said: str) -> Any:
        import torch

        each = torch.sigmoid(self._logits([said]))[0]
        return each / each.sum()

    def _logits(self, said: list[str]) -> Any:
        ids = self._tokenizer(said, truncation=True, max_length=4 * encoders.TOKENS)["input_ids"]
        return self._head(encoders.pooled(self._model, encoders.padded(self._tokenizer, ids, self._model.device.type)))


class Generator(_Textbook):
    """A decoder that goes on with the session as text; a candidate's score is the likelihood of its name."""

    def __init__(self, decoder: str, names: Sequence[str], *, learning_rate: float = 5e-4, seed: int = 7) -> None:
        import torch
        import transformers

        torch.manual_seed(seed)
        self.names, self._rng = list(names), random.Random(seed)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._model = transformers.AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
        self._optimiser = torch.optim.AdamW(self._model.parameters(), lr=learning_rate, fused=True)
        self._ends = {name: [*self._ids(f" => {name}"), int(self._tokenizer.eos_token_id)] for name in self.names}

    def _loss(self, said: list[str], targets: list[str]) -> Any:
        return self._surprise(said, targets).mean()  # over the tokens of what came next alone

    def _weighed(self, said: str) -> Any:
        import torch

        made = torch.cat([
            self._surprise([said] * len(part), part)
            for part in (self.names[i : i + 4 * BATCH] for i in range(0, len(self.names), 4 * BATCH))
        ])  # fmt: skip
        return torch.softmax(-made, 0)

    def _surprise(self, said: list[str], names: list[str]) -> Any:
        """Negative log likelihood of each name after its session, [n]."""
        import torch

        begun = [self._ids(text)[-2 * encoders.TOKENS :] for text in said]
        ends = [self._ends[name] for name in names]
        batch = encoders.padded(self._tokenizer, [a + b for a, b in zip(begun, ends, strict=True)], "cpu")
        logits = torch.log_softmax(self._model(**batch).logits[:, :-1].float(), -1)
        each = -logits.gather(2, batch["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)  # [n, longest - 1]
        place = torch.arange(1, each.shape[1] + 1).unsqueeze(0)
        first = torch.tensor([len(a) for a in begun]).unsqueeze(1)
        last = first + torch.tensor([len(b) for b in ends]).unsqueeze(1)
        return (each * ((place >= first) & (place < last))).sum(1)

    def _ids(self, text: str) -> list[int]:
        made: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return made


def _batches(n: int, rng: random.Random) -> list[list[int]]:
    order = rng.sample(range(n), n)
    return [order[i : i + BATCH] for i in range(0, n, BATCH)]
