"""What every model must beat."""

from trainer.baselines.arms import ARMS, CHEAP, Arm, UnknownBaseline, build, check

__all__ = ["ARMS", "CHEAP", "Arm", "UnknownBaseline", "build", "check"]
