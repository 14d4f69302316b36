"""One retrain, top to bottom: the window, cases as they were before their labels were known, fit, judge, publish."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from featurestore import database, window
from featurestore.catalogue import Item
from featurestore.events import Row
from featurestore.lake import Cover
from trainer import blend, categories, heads, judge, knobs, lambdarank, learning, memory, network, registry, tuning
from trainer.cases import replay, scores, summary, window_rows
from trainer.endings import Endings
from trainer.memory import current_item, token
from trainer.network import Network, NetworkSettings
from trainer.predictor import Predictor, Trained
from trainer.staleness import LookBack
from trainer.texts import NAMED, Texts, row_text

Cuts = window.Ints  # numbers of cuts
PURCHASE_CUTS = 20_000


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What is made: a refresh of the same model on newer data, or one whose language model was tuned."""

    kind: Literal["refresh", "tune"] = "refresh"
    tune: knobs.TuneSettings = knobs.TuneSettings()
    encoder: str | None = None  # a folder that `tune` made beforehand; None: it is tuned on the way
    network: NetworkSettings = NetworkSettings()
    ranker: bool = False  # whether LambdaRank orders what the blend weighs
    fit_cuts: int = 10_000  # the newest training cuts that the blend is fitted on
    judge_cuts: int = 5_000


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a retrain came to, and why; kept whether the candidate passed or not."""

    kind: str
    accepted: bool
    reason: str
    version: str | None = None
    champion: str | None = None
    n: int = 0
    n_train: int = 0
    metrics: dict[str, dict[str, Any]] = {}
    bounds: dict[str, judge.Bound] = {}
    data_offsets: dict[str, int] = {}  # `topic|partition` → what the version's memory has seen; the rest is fresh to it
    cpu_seconds: float = 0.0
    wall_ms: int = 0
    warnings: tuple[str, ...] = ()  # what is not right with the data or the settings
    staleness: LookBack = LookBack()  # older versions on the same slice; its CPU is part of `cpu_seconds`


def lessons(cover: Cover, recipe: Recipe, policy: window.WindowPolicy, encoder: str) -> tuning.Lessons:
    """What the window teaches a language model; no cut that the blend or the judge would take now is in it."""
    made = window.examples(cover, policy)
    rows = rows_of(made)
    return tuning.lessons(made, rows, parts(made, recipe, policy)[0], encoder)


def run(
    cover: Cover,
    champion: Path | None,
    recipe: Recipe,
    policy: window.WindowPolicy,
    now_ms: int,
    *,
    texts: Texts,
    out: registry.Registry,
    look_back: Callable[[window.Examples, list[Row], Cuts, Predictor], LookBack] | None = None,
    told: Sequence[Item] = (),
) -> Verdict:
    """Train a candidate on the window, judge it on cuts that no model has seen, publish it where it passes.

    The first champion needs no gate; a refresh must not be worse, a tuned recipe must be better.
    `now_ms` is told in the version's meta only: every decision is a function of data. `told` is the catalogue in the
    order in which it was told, nothing of it later than the data.
    """
    wall, cpu = time.monotonic(), time.process_time()
    old = Predictor.load(champion, texts) if champion is not None else None
    made = window.examples(cover, policy)
    offsets = {f"{key.topic}|{key.partition}": nxt for key, nxt in made.begins.items()}
    said: dict[str, Any] = {
        "kind": recipe.kind,
        "champion": champion.name if champion else None,
        "data_offsets": offsets,
        "n": int(made.judge.sum()),
        "n_train": int(made.train.sum()),
    }

    def verdict(accepted: bool, reason: str, **more: Any) -> Verdict:
        more |= {"cpu_seconds": time.process_time() - cpu, "wall_ms": int(1000 * (time.monotonic() - wall))}
        return Verdict(accepted=accepted, reason=reason, **said, **more)

    if said["n_train"] < policy.n_min or (old is not None and said["n"] < policy.n_min):
        few = f"too few labels: {said['n_train']} to train, {said['n']} to judge, {policy.n_min} needed"
        return verdict(False, few)
    if recipe.kind == "tune" and (old is None or texts.encoder is None):
        why = "no champion yet" if old is None else "no language model"
        return verdict(False, f"nothing to tune: {why}")

    rows = rows_of(made)
    early, fit, held = parts(made, recipe, policy)
    words, until_ms = tuned(texts, made, rows, early, recipe) if recipe.kind == "tune" else (texts, -1)
    fit, held = fit[made.at_ms[fit] > until_ms], held[made.at_ms[held] > until_ms]  # unknown to the encoder too
    if len(held) < policy.n_min and old is not None:
        return verdict(False, f"too few labels: {len(held)} are new to the tuned encoder, {policy.n_min} needed")
    unread = words.broken_up() if old is None or recipe.kind == "tune" else None
    said["warnings"] = tuple(filter(None, (unread, *map(str, made.outages))))
    start = old.trained.network if old is not None and old.trained and words is texts else None
    past = old.memory if old is not None else memory.Memory()  # it remembers longer than the window
    if past.endings.horizon_ms != policy.horizon_next_ms:
        past.endings = Endings(policy.horizon_next_ms)
    past.endings.lateness_ms = policy.lateness_ms
    net = network_of(made, rows, early, words, start, recipe.network)
    candidate = Predictor(past, words, trained=Trained(net, blend.Blend.flat()))
    arms = {"candidate": candidate, **({"champion": old} if old is not None else {})}
    cases = replay(made, rows, np.concatenate([fit, held]), arms, told)
    mixed = old.trained.blend if old is not None and old.trained else None
    known = [cases["candidate"][i] for i in fit]
    fitted = blend.fit(known, start=mixed)
    ranker = lambdarank.fit(known, fitted) if recipe.ranker else None
    mixture = categories.fit(fitted, known, start=old.trained.categories if old is not None and old.trained else None)
    candidate.trained = Trained(net, fitted, purchase_head(made, rows, policy), mixture, ranker)

    session = made.session_key[held]
    judged = {
        name: scores(arm.trained.blend, [cases[name][i] for i in held], arm.trained.ranker, arm.trained.categories)
        for name, arm in arms.items()
        if arm.trained
    }
    metrics = {name: summary(s, [cases[name][i] for i in held], session) for name, s in judged.items()}
    accepted, reason = True, "the first champion needs no gate"
    bounds: dict[str, judge.Bound] = {}
    if "champion" in judged:
        gate = judge.recipe_gate if recipe.kind == "tune" else judge.refresh_gate
        accepted, reason, bounds = gate(judged["candidate"], judged["champion"], session)
    newest = candidate if accepted or old is None else old
    aged = look_back(made, rows, held, newest) if look_back is not None else LookBack()
    if not accepted:
        if words.digest != texts.digest:
            out.discard(words.digest)  # several may come in an hour
        return verdict(False, reason, metrics=metrics, bounds=bounds, staleness=aged)
    words.save()
    words.keep()
    meta = {**said, "made_ms": now_ms, "metrics": metrics, "items": len(past.items), "format": 2}
    meta |= {"encoder": words.digest, "limits": said["warnings"]}
    version = out.publish(candidate.save, meta)
    return verdict(True, reason, version=version, metrics=metrics, bounds=bounds, staleness=aged)


def parts(made: window.Examples, recipe: Recipe, policy: window.WindowPolicy) -> tuple[Cuts, Cuts, Cuts]:
    """Cuts for the network, for the blend above it, and for the judge: each part's labels end before the next begins.

    The blend learns from predictions of a network and a memory that have not seen their outcome; so it takes the
    newest cuts, and the network is trained up to where they begin.
    """
    train = np.flatnonzero(made.train & made.fresh)
    n = min(recipe.fit_cuts, max(policy.n_min, int(0.3 * len(train))))
    fit = train[len(train) - min(n, len(train)) :]
    held = np.flatnonzero(made.judge)[-recipe.judge_cuts :]
    begins = made.at_ms[fit].min() if len(fit) else np.iinfo(np.int64).max
    label_ms = np.where(made.next_row >= 0, window.ints(made.rows, "ts_ms")[made.next_row], made.at_ms)
    return np.flatnonzero(made.train & (label_ms < begins)), fit, held


def tuned(words: Texts, made: window.Examples, rows: list[Row], early: Cuts, recipe: Recipe) -> tuple[Texts, int]:
    """The texts of an encoder that was tuned, on these cuts or beforehand, and the newest label that it learnt from."""
    path = recipe.encoder
    if path is None:
        learnt = tuning.lessons(made, rows, early, words.encoder)
        path = str(tuning.tune(str(words.encoder), learnt, recipe.tune, words.shared / "encoders"))
    told = tuning.told(Path(path)) if path != words.encoder else None
    return Texts(path, words.shared, words.writer), told.until_ms if told is not None else -1


def network_of(
    made: window.Examples, rows: list[Row], early: Cuts, words: Texts, start: Network | None, settings: NetworkSettings
) -> Network:
    """The network trained on what is new to it among these cuts, with a replay of what it knows."""
    labelled = early[made.next_row[early] >= 0]
    known_ms = start.trained_ms if start is not None else -1
    new = labelled[made.at_ms[labelled] > known_ms][-settings.cuts :]
    if start is not None and len(new) < settings.batch:
        return start  # too little to move it by
    before = labelled[made.at_ms[labelled] <= known_ms]
    again = min(len(before), int(settings.replay * len(new)))
    chosen = np.sort(np.r_[new, np.random.default_rng(settings.seed).choice(before, again, replace=False)])

    until_ms = max((rows[i].event.ts_ms for i in made.next_row[labelled]), default=0)
    past = [row for row in rows if row.event.ts_ms <= until_ms]
    items: dict[str, str] = {}
    for row in past:
        if row.event.item_id and (row.event.title or row.event.item_id not in items):
            items[row.event.item_id] = row_text(row)
    counts = Counter(token(row) for row in past)
    common = [w for w, n in counts.most_common() if n >= settings.word_rows or items.get(w, "").startswith(NAMED)]
    vectors = words.vectors(list(items.values()))
    if start is not None:
        net, epochs = start.grown(common), settings.epochs
    else:
        if len(items) > settings.full_softmax:
            settings = msgspec.structs.replace(settings, width=settings.wide)
        net, epochs = Network(words.dim, common, settings), settings.first * settings.epochs
        net.start_at(vectors)
    if not len(chosen):
        return net
    sessions = [window_rows(made, rows, i) for i in chosen]
    columns = {name: column for column, name in enumerate(items)}
    current = [current_item(session) for session in sessions]
    lessons = learning.Lessons(
        said=network.sequences(sessions, made.at_ms[chosen].tolist(), words, net.words),
        target=np.array([columns[str(rows[made.next_row[i]].event.item_id)] for i in chosen]),
        current=np.array([columns.get(item, -1) if item else -1 for item in current]),
        names=list(items),
        vectors=vectors,
    )
    net = learning.train(net, lessons, epochs)
    net.trained_ms = int(made.at_ms[labelled].max())
    return net


def purchase_head(made: window.Examples, rows: list[Row], policy: window.WindowPolicy) -> heads.Purchase | None:
    """Fitted on cuts whose purchase horizon ends before the held-out part begins; no cut of that part plays a role.

    They are taken evenly from the whole window: buyers are few, and the newest cuts may hold hardly one.
    """
    begins = made.at_ms[made.judge].min() if made.judge.any() else np.iinfo(np.int64).max
    cuts: Cuts = np.flatnonzero((made.purchase >= 0) & (made.at_ms + policy.horizon_purchase_ms < begins))
    cuts = cuts[:: -(-len(cuts) // PURCHASE_CUTS)] if len(cuts) else cuts
    x = [heads.features(window_rows(made, rows, i), int(made.at_ms[i])) for i in cuts]
    return heads.fit(np.array(x), made.purchase[cuts] == 1, made.session_key[cuts]) if x else None


def rows_of(made: window.Examples) -> list[Row]:
    """The rows that the cuts of a window point into."""
    return database.rows(made.rows)
