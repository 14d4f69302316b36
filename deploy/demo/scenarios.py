"""What may go on in the simulated shop."""

from __future__ import annotations

import msgspec


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """How long one fashion lasts (None: for ever), and how many crawlers go through the catalogue beside the people."""

    help: str
    fashion_ms: int | None = 20 * 60_000
    bots: int = 0


SCENARIOS = {
    "usual": Scenario(help="what is in fashion changes every 20 minutes of the shop's clock; one crawler", bots=1),
    "steady": Scenario(help="fashion never changes", fashion_ms=None),
    "restless": Scenario(help="fashion changes every 5 minutes", fashion_ms=5 * 60_000),
    "bots": Scenario(help="three crawlers view the catalogue item by item, ten times as fast as people", bots=3),
}
