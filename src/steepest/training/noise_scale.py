"""The gradient noise scale: how large a batch is worth its samples.

A gradient over b samples is the true gradient G plus noise of the covariance Σ / b. As long as b is
well below

    B = tr(Σ) / |G|²

twice the batch makes the step almost twice as good; well above it, hardly better. Both parts are
estimated from gradients that training computes anyway, those of micro-batches and of their mean.
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from steepest.fields import count, real

__all__ = ["NoiseScale"]

_DECAY = "a number in [0, 1)", lambda x: 0 <= x < 1
_FINITE = "a finite number, 0 or more", lambda x: 0 <= x < math.inf


class NoiseScale:
    """The simple noise scale, from squared norms of gradients over few and over many samples.

        |G|²  ≈ (B |g_B|² - b |g_b|²) / (B - b)
        tr(Σ) ≈ (|g_b|² - |g_B|²) / (1/b - 1/B)
        value = tr(Σ) / |G|²                          in samples

    where g_b is a gradient over b samples, g_B one over B > b. Each of the two is free of bias, but
    not their ratio; so each is smoothed by itself, as a moving average with the decay given,
    corrected for its start from zero.

    decay: in [0, 1); 0.99 averages over about a hundred updates.

    >>> noise = NoiseScale(decay=0.9)
    >>> noise.value
    nan
    >>> noise.update(small_sq=7.0, big_sq=4.0, small=8, big=32)    # |G|² = 3, tr(Σ) = 32
    >>> noise.signal, noise.noise, round(noise.value, 4)
    (3.0, 32.0, 10.6667)
    >>> noise
    NoiseScale(10.67 samples, decay=0.9, 1 update)

    Raises ValueError for numbers that cannot be. McCandlish et al. 2018, arXiv:1812.06162, appendix
    A.1. For samples that are drawn from a data set without putting them back, the estimates hold
    for the population that the data set is itself a sample of.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = real("decay", decay, *_DECAY)
        self.count = 0
        self._signal = 0.0
        self._noise = 0.0

    def __repr__(self) -> str:
        updates = f"{self.count} update{'s' * (self.count != 1)}"
        return f"NoiseScale({self.value:.4g} samples, decay={self.decay}, {updates})"

    def update(self, small_sq: float, big_sq: float, small: float, big: float) -> None:
        """Takes in squared norms: of a gradient over `small` samples, and over `big` ones.

        `small_sq` may be a mean over several gradients; where these are over different numbers of
        samples, `small` is the harmonic mean of the numbers.
        """
        small, big = (real(name, x, *_FINITE) for name, x in (("small", small), ("big", big)))
        small_sq = real("small_sq", small_sq, *_FINITE)
        big_sq = real("big_sq", big_sq, *_FINITE)
        if not 0 < small < big:
            raise ValueError(f"small = {small:g}, big = {big:g}: expected 0 < small < big")
        signal = (big * big_sq - small * small_sq) / (big - small)
        noise = (small_sq - big_sq) / (1 / small - 1 / big)
        self._signal = self.decay * self._signal + (1 - self.decay) * signal
        self._noise = self.decay * self._noise + (1 - self.decay) * noise
        self.count += 1

    def observe(self, norms: Sequence[float], sizes: Sequence[float], norm: float) -> None:
        """Takes in the norms of micro-batches' gradients, the numbers of their samples, and the
        norm of the mean over all these samples.

        A single micro-batch gives no estimate and is ignored, and so are norms that are not finite.

        >>> noise = NoiseScale()
        >>> noise.observe(norms=[3.0, 1.0], sizes=[4, 4], norm=2.0)
        >>> noise.signal, noise.noise
        (3.0, 8.0)
        """
        small_sq = reduce(add, (x * x for x in norms), 0.0) / len(norms)
        big_sq = norm * norm
        if len(norms) > 1 and math.isfinite(small_sq + big_sq):
            small = len(sizes) / reduce(add, (1 / b for b in sizes))
            self.update(small_sq, big_sq, small, reduce(add, sizes))

    @property
    def signal(self) -> float:
        """The estimate of |G|²; NaN before the first update. It can be below 0 while unsure."""
        return self._corrected(self._signal)

    @property
    def noise(self) -> float:
        """The estimate of tr(Σ); NaN before the first update. It can be below 0 while unsure."""
        return self._corrected(self._noise)

    def _corrected(self, average: float) -> float:
        return average / (1 - self.decay**self.count) if self.count else math.nan

    @property
    def value(self) -> float:
        """The noise scale in samples: NaN before the first update, infinite where no gradient shows
        through the noise, and never below 0."""
        if not self.count:
            return math.nan
        return max(self.noise / self.signal, 0.0) if self.signal > 0 else math.inf

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update needs, as plain numbers."""
        return {
            "decay": self.decay,
            "count": self.count,
            "signal": self._signal,
            "noise": self._noise,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave. Raises KeyError, TypeError or ValueError for
        anything else, and is then as before."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state = {state!r}: expected a dict")
        decay, number = real("decay", state["decay"], *_DECAY), count("count", state["count"], 0)
        signal, noise = (
            real(name, state[name], "a finite number", math.isfinite)
            for name in ("signal", "noise")
        )
        self.decay, self.count, self._signal, self._noise = decay, number, signal, noise
