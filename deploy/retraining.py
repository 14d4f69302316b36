"""One retrain as the trainer's child runs it: from the plain values of a job to the verdict."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import structlog

from deploy.job import Job
from featurestore import lake
from trainer import network, predictor, registry, retrain, texts

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
    since = {lake.PartitionKey(t, int(p)): n for t, _, p, n in ((*k.rpartition("|"), n) for k, n in job.since.items())}
    champion = out.verify(job.champion) if job.champion else None
    recipe = retrain.Recipe(kind=job.kind, tune=job.tune, network=network.NetworkSettings(epochs=job.epochs))
    policy, words = msgspec.structs.replace(job.policy, since=since), _texts(job, champion)

    def run(cover: lake.Cover) -> retrain.Verdict:
        return retrain.run(cover, champion, recipe, policy, int(time.time() * 1000), texts=words, out=out)

    return the_lake.read(run, forgotten=job.forgotten)  # a file may be rewritten without a forgotten user meanwhile


def _loads(job: Job) -> bool:
    try:
        path = registry.Registry(Path(job.shared)).verify(str(job.champion))
        predictor.Predictor.load(path, _texts(job, path))
    except Exception:
        return False
    return True


def _texts(job: Job, champion: Path | None) -> texts.Texts:
    encoder = texts.encoder_of(champion, Path(job.shared), job.encoder)
    return texts.Texts(encoder, Path(job.shared), f"{job.name}-trainer")
