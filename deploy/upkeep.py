"""What only the trainer that leads does to shared files: merge, expire and erase in the lake, let old versions go."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable

import structlog

from deploy import child
from deploy import settings as dials
from featurestore import lake
from streams import control
from trainer import encoders, registry, staleness

log = structlog.get_logger()

TIDY_S = 60.0
COMPACT_AFTER_MS = 600_000
SPANS = 8  # merged segments in `lake.keep`, at least: rows stay an eighth of it longer


class Upkeep:
    """Of one trainer; it does nothing while another one leads."""

    def __init__(
        self, settings: dials.Settings, lake_: lake.Lake, versions: registry.Registry, following: control.ControlLog,
        leads: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.settings, self.lake, self.registry, self.following = settings, lake_, versions, following
        self.leads = leads
        self.files = threading.Lock()  # whoever takes the lake's files away

    def erase(self) -> None:
        """Take the forgotten out of the lake's files; a retrain that runs meanwhile does not hold it up."""
        self._keep(lambda now_ms: self.lake.keep_forgotten(self.following.state.forgotten, now_ms))

    def tidy(self) -> None:
        """Merge the lake's old segments and let old ones go, however seldom anything is trained."""
        keep_ms = self.settings["lake.keep"]
        self._keep(lambda now_ms: self.lake.compact(COMPACT_AFTER_MS, now_ms, keep_ms // SPANS))
        self._keep(lambda _: self.lake.expire(keep_ms))

    def _keep(self, work: Callable[[int], int]) -> None:
        """What only who leads does to the lake's files, one at a time."""
        if not self.leads() or not self.files.acquire(blocking=False):
            return
        try:
            work(int(time.time() * 1000))
        except Exception:
            log.exception("Stopping: the lake could not be kept.")
            os._exit(3)
        finally:
            self.files.release()

    def prune(self, settings: dials.Settings, encoded: str | None) -> None:
        """Let old versions and what was theirs go, but for `encoded`, a language model that waits for its judgement."""
        now_ms = int(time.time() * 1000)
        state = self.following.state
        kept = {v for v in (state.champion, state.predecessor, *state.pins) if v}
        kept |= staleness.ladder(staleness.versions(self.registry), now_ms)
        gone = [f"versions/{v}" for v in self.registry.prune(settings["models.keep"], kept)]
        used = {self.encoder_digest, *([encoded] if encoded is not None else [])}
        gone += self.registry.sweep(used, 1000 * int(child.limit_s("prepare", settings["tune.budget"])), now_ms)
        if gone:
            log.info("Removed what no kept version needs.", gone=gone)

    @functools.cached_property
    def encoder_digest(self) -> str:
        """Of the encoder that the settings name: workers without a champion use it."""
        return encoders.digest(self.settings.encoder())
