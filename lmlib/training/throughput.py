"""How fast a run is: tokens a second, and the share of the device's peak that the model's FLOPs take (MFU).

Chowdhery et al. 2022, arXiv:2204.02311, appendix B, with attention counted as the causal mask leaves it. A
device that is not in the table of ``lmlib.resources.hardware`` gives no MFU rather than a wrong one.
"""

import time
from typing import Any

import torch

from lmlib.resources import flops, hardware
from lmlib.training.precision import Precision


def flops_per_token(config: Any, context_length: int) -> float | None:
    """Model FLOPs of training, for one token; ``None`` for a config that cannot say its sizes."""
    if not hasattr(config, "resources"):
        return None
    return float(flops.training(config.resources(), 1, context_length, mask="causal").total) / context_length


def peak_flops(device: torch.device, policy: Precision) -> float | None:
    """Dense FLOP/s of a GPU in the policy's products; ``None`` where the table does not know it."""
    if device.type != "cuda":
        return None
    known = hardware.identify(torch.cuda.get_device_name(device))
    return None if known is None else known.peak.get(policy.peak)


class Stopwatch:
    """Seconds that are summed over starts and stops."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """The sum so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def running(self) -> bool:
        """Whether it is counting."""
        return self._since is not None

    def start(self) -> None:
        """Go on; does nothing if it is running."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause; does nothing if it is not running."""
        self._before, self._since = self.seconds, None
