"""Steps of the store's schema, in order; a step that was released never changes."""

from featurestore.migrations import m001_events, m002_erased, m003_bots

STEPS: tuple[tuple[str, str], ...] = (
    ("m001_events", m001_events.SQL), ("m002_erased", m002_erased.SQL), ("m003_bots", m003_bots.SQL),
)  # fmt: skip
