"""The baselines by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer import texts
from trainer.baselines import classifier, counts, knn, sequence, texts_alone
from trainer.baselines.baseline import Baseline


class UnknownBaseline(ValueError):
    """There is no such baseline; the message names those there are."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What answers for items, and for categories where it has a way of its own: else its items' shares are summed."""

    items: Baseline
    categories: Baseline | None = None

    @property
    def parts(self) -> list[Baseline]:
        """What learns."""
        return [self.items, *([self.categories] if self.categories is not None else [])]


ARMS: dict[str, Callable[[texts.Texts], Arm]] = {
    "last": lambda words: Arm(items=counts.LastItems(), categories=counts.LastCategory()),
    "popular": lambda words: Arm(items=counts.Popularity("item"), categories=counts.Popularity("category")),
    "markov1": lambda words: Arm(items=counts.Markov(1, "item"), categories=counts.Markov(1, "category")),
    "markov2": lambda words: Arm(items=counts.Markov(2, "item"), categories=counts.Markov(2, "category")),
    "vmis-knn": lambda words: Arm(items=knn.Vmis()),
    "vmis-knn-listings": lambda words: Arm(items=knn.Vmis(listings=True)),
    "zero-shot": lambda words: Arm(items=texts_alone.ZeroShot(words)),
    "gru4rec": lambda words: Arm(items=sequence.SequenceModel(sequence.Gru)),
    "sasrec": lambda words: Arm(
        items=sequence.SequenceModel(sequence.Attention, sequence.SequenceSettings(dropout=0.4))
    ),
    "textbook": lambda words: Arm(items=classifier.TextbookClassifier(str(words.encoder))),
}
CHEAP = ("last", "popular", "markov1", "markov2", "vmis-knn", "vmis-knn-listings", "zero-shot")  # nothing is trained


def check(names: Sequence[str], encoder: str | None) -> None:
    """Raises `UnknownBaseline` where one of them cannot be had."""
    if unknown := [name for name in names if name not in ARMS]:
        raise UnknownBaseline(f"there is no baseline {unknown[0]!r}: cheap, all, none, or of {', '.join(ARMS)}")
    if "textbook" in names and encoder is None:
        raise UnknownBaseline("the textbook's classifier is a language model: set `encoder`, or leave `textbook` out")


def build(names: Sequence[str], words: texts.Texts) -> dict[str, Arm]:
    """Fresh baselines by name. Raises `UnknownBaseline`."""
    check(names, words.encoder)
    return {name: ARMS[name](words) for name in names}
