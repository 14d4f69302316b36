"""Evidence of the memory and of the texts into calibrated probabilities, "nothing more" among the outcomes."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Floats = NDArray[np.float64]
FEATURES = ("follows", "category", "in_session", "popularity", "text", "bias")
NONE_FEATURES = ("bias", "length", "bought")
WIDTH = len(FEATURES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One session at one instant: candidates [n, features], its own features, and what came (see `target`)."""

    candidates: Floats
    session: Floats
    target: int = -2  # a candidate's place; −1: nothing more; −2: an item that is no candidate


def features(evidence: Floats, cosines: Floats) -> Floats:
    """Logs of the memory's evidence [n, 4] beside the text's cosines [n]: [n, features]."""
    made = np.ones((len(evidence), WIDTH))
    made[:, :2] = np.log(evidence[:, :2] + 1e-3)
    made[:, 2] = evidence[:, 2]
    made[:, 3] = np.log(evidence[:, 3] + 0.1)
    made[:, 4] = cosines
    return made


class Blend(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of a log-linear model over the candidates, "nothing more", and "an item that is none of them"."""

    item: list[float]
    none: list[float]
    other: list[float]

    def probabilities(self, case: Case) -> tuple[Floats, float, float]:
        """Of each candidate, of nothing more, of another item; they sum to one."""
        logits = np.concatenate(
            [case.candidates @ np.asarray(self.item), [case.session @ np.asarray(self.none)], [self._other(case)]]
        )
        made = np.exp(logits - logits.max())
        made /= made.sum()
        return made[:-2], float(made[-2]), float(made[-1])

    def _other(self, case: Case) -> float:
        return float(case.session @ np.asarray(self.other))


def fit(cases: list[Case], *, start: Blend | None = None, ridge: float = 1e-3) -> Blend:
    """Maximum likelihood by L-BFGS with a small ridge; warm from `start`. Needs a case that has candidates."""
    cases = [c for c in cases if len(c.candidates)]
    offsets = np.cumsum([0] + [len(c.candidates) for c in cases])
    x = np.concatenate([c.candidates for c in cases])
    s = np.stack([c.session for c in cases])
    owner = np.repeat(np.arange(len(cases)), np.diff(offsets))
    target = np.array([c.target for c in cases])
    hit = np.flatnonzero(target >= 0)
    chosen = offsets[hit] + target[hit]
    width = s.shape[1]

    def loss(w: Floats) -> tuple[float, Floats]:
        item, none, other = w[:WIDTH], w[WIDTH : WIDTH + width], w[WIDTH + width :]
        a, b, c = x @ item, s @ none, s @ other
        top = np.maximum(np.maximum(b, c), np.maximum.reduceat(a, offsets[:-1]))
        ea, eb, ec = np.exp(a - top[owner]), np.exp(b - top), np.exp(c - top)
        z = np.bincount(owner, ea, len(cases)) + eb + ec
        pa, pb, pc = ea / z[owner], eb / z, ec / z
        log_p = -top - np.log(z)
        log_p[hit] += a[chosen]
        log_p[target == -1] += b[target == -1]
        log_p[target == -2] += c[target == -2]
        da, db, dc = pa.copy(), pb - (target == -1), pc - (target == -2)
        da[chosen] -= 1
        n = len(cases)
        gradient = np.concatenate([x.T @ da, s.T @ db, s.T @ dc]) / n + 2 * ridge * w
        return float(-log_p.mean() + ridge * w @ w), gradient

    before = np.zeros(WIDTH + 2 * width) if start is None else np.concatenate([start.item, start.none, start.other])
    found = optimize.minimize(loss, before, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7}).x
    return Blend(
        item=found[:WIDTH].tolist(), none=found[WIDTH : WIDTH + width].tolist(), other=found[WIDTH + width :].tolist()
    )
