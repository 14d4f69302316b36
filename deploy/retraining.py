"""One retrain as the trainer's child runs it: from the plain values of a job to the verdict."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import structlog

from deploy import stocking
from deploy.job import Job, Prepared
from featurestore import lake, window
from trainer import encoders, experiments, network, predictor, registry, retrain, staleness, texts, tuning

log = structlog.get_logger()


def judged(job: Job) -> retrain.Verdict:
    """The verdict of one retrain; where the champion is gone, broken or of another nextclick, it starts without."""
    try:
        return _judged(job)
    except Exception as error:
        if job.champion is None or _loads(job):
            raise
        log.warning("The champion cannot be built on; one is trained without it.", champion=job.champion,
                    error=str(error))  # fmt: skip
        return _judged(msgspec.structs.replace(job, champion=None, since={}))


def _judged(job: Job) -> retrain.Verdict:
    the_lake, out = lake.Lake(Path(job.shared), job.name), registry.Registry(Path(job.shared))
    champion = out.verify(job.champion) if job.champion else None
    encoded = str(Path(job.shared) / "encoders" / job.encoded) if job.encoded else None
    recipe = msgspec.structs.replace(_recipe(job), kind="tune" if job.kind == "tune" else "refresh", encoder=encoded)
    policy, words = _policy(job), _texts(job, champion)
    items = stocking.shared(Path(job.shared))

    def run(cover: lake.Cover) -> retrain.Verdict:
        now_ms = int(time.time() * 1000)
        back = staleness.look_back(out, champion, now_ms, lambda path: _loaded(job, path, words))
        return retrain.run(cover, champion, recipe, policy, now_ms, texts=words, out=out, look_back=back, told=items)

    verdict = the_lake.read(run, forgotten=job.forgotten)  # a file may be rewritten without a forgotten user meanwhile
    for wrong in verdict.warnings:
        log.warning("What predictions rest on is not right.", why=wrong)
    try:
        experiments.write(verdict, job.tensorboard, job.mlflow)
    except Exception as error:  # a verdict is not lost because a tracking server is down
        log.warning("A retrain was not told to TensorBoard or MLflow.", error=repr(error))
    return verdict


def prepared(job: Job) -> Prepared:
    """Tune the language model and embed the window's texts by it; whether it is any good is judged elsewhere."""
    the_lake, out = lake.Lake(Path(job.shared), job.name), registry.Registry(Path(job.shared))
    words = _texts(job, out.verify(job.champion) if job.champion else None)
    if words.encoder is None:
        return Prepared(reason="nothing to tune: no language model")
    encoder, recipe, policy = words.encoder, _recipe(job), _policy(job)
    learnt = the_lake.read(lambda cover: retrain.lessons(cover, recipe, policy, encoder), forgotten=job.forgotten)
    if len(learnt.new) < job.policy.n_min:
        return Prepared(reason=f"too few labels: {len(learnt.new)} new pairs, {job.policy.n_min} needed")
    path = tuning.tune(encoder, learnt, job.tune, Path(job.shared) / "encoders")
    made = texts.Texts(path, Path(job.shared), f"{job.name}-tuning")
    made.vectors(learnt.texts)
    made.save()
    told = tuning.told(path)
    if told is not None:
        experiments.write_tuning(told, made.digest, job.tensorboard)
    return Prepared(encoded=made.digest, reason=f"tuned on {len(learnt.new)} new pairs")


def _recipe(job: Job) -> retrain.Recipe:
    made = msgspec.convert(job.network, network.NetworkSettings)
    return retrain.Recipe(tune=job.tune, network=made, ranker=job.ranker)


def _policy(job: Job) -> window.WindowPolicy:
    since = {lake.PartitionKey(t, int(p)): n for t, _, p, n in ((*k.rpartition("|"), n) for k, n in job.since.items())}
    return msgspec.structs.replace(job.policy, since=since)


def _loads(job: Job) -> bool:
    try:
        path = registry.Registry(Path(job.shared)).verify(str(job.champion))
        predictor.Predictor.load(path, _texts(job, path))
    except Exception:
        return False
    return True


def _loaded(job: Job, path: Path, words: texts.Texts) -> predictor.Predictor:
    own = encoders.encoder_of(path, Path(job.shared), job.encoder)
    return predictor.Predictor.load(path, words if own == words.encoder else _texts(job, path))


def _texts(job: Job, champion: Path | None) -> texts.Texts:
    encoder = encoders.encoder_of(champion, Path(job.shared), job.encoder)
    return texts.Texts(encoder, Path(job.shared), f"{job.name}-trainer")
