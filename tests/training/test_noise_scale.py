import doctest
import math

import numpy as np
import pytest

import steepest as st
from steepest.training import fit
from steepest.training import noise_scale as noise
from steepest.training.noise_scale import NoiseScale

# Gradients G + noise of covariance Σ = diag(SIGMA²): |G|² = 5, tr(Σ) about 133.
G = np.concatenate([[2.0, -1.0], np.zeros(38)])
SIGMA = np.linspace(0.5, 3.0, 40)
TRACE = float((SIGMA**2).sum())


def gradients(rng, size, repeats):
    """Means over `size` samples; their noise is drawn with the variance that it then has."""
    return G + rng.normal(size=(repeats, 40)) * SIGMA / math.sqrt(size)


def spread(small, repeats, decay, updates):
    """The standard deviations of the two smoothed estimates, for normal noise.

    tr(Σ) is estimated as by a sample variance: 2 tr(Σ²) / (m - 1). |G|² is |g_B|² less tr(Σ) / B,
    and the two are independent: 4 GᵀΣG / B + 2 tr(Σ²) / B², and the above divided by B². A moving
    average corrected for its start multiplies them by the sum of its squared weights.
    """
    big, square = small * repeats, 2 * float((SIGMA**4).sum())
    of_noise = square / (repeats - 1)
    of_signal = 4 * float((G**2 * SIGMA**2).sum()) / big + square / big**2 + of_noise / big**2
    weights = (1 - decay) / (1 + decay) * (1 + decay**updates) / (1 - decay**updates)
    return math.sqrt(of_signal * weights), math.sqrt(of_noise * weights)


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
@pytest.mark.parametrize(("small", "repeats"), [(1, 16), (8, 2), (4, 5)])
def test_known_noise_is_recovered(small, repeats, decay) -> None:
    rng = np.random.default_rng(7)
    scale = NoiseScale(decay)
    updates = 1500
    for _ in range(updates):
        micro = gradients(rng, small, repeats)
        norms = np.linalg.norm(micro, axis=1)
        scale.observe(norms.tolist(), [small] * repeats, float(np.linalg.norm(micro.mean(axis=0))))
    of_signal, of_noise = spread(small, repeats, decay, updates)
    # Five standard deviations each way: exceeded once in two million draws.
    assert abs(scale.signal - 5.0) < 5 * of_signal
    assert abs(scale.noise - TRACE) < 5 * of_noise
    low = (TRACE - 5 * of_noise) / (5.0 + 5 * of_signal)
    high = (TRACE + 5 * of_noise) / (5.0 - 5 * of_signal) if of_signal < 1 else math.inf
    assert low < scale.value < high


def test_unequal_micro_batches() -> None:
    """The mean over batches of 1, 2 and 5 samples, weighted, has no more bias than others."""
    rng = np.random.default_rng(8)
    scale, sizes = NoiseScale(0.9999), [1, 2, 5]
    for _ in range(4000):
        micro = np.concatenate([gradients(rng, b, 1) for b in sizes])
        big = np.average(micro, axis=0, weights=sizes)
        norms = np.linalg.norm(micro, axis=1)
        scale.observe(norms.tolist(), sizes, float(np.linalg.norm(big)))
    # The noise of an estimate is at most that of three batches of one sample each: m - 1 = 2.
    of_signal, of_noise = spread(1, 3, 0.9999, 4000)
    assert abs(scale.signal - 5.0) < 5 * of_signal
    assert abs(scale.noise - TRACE) < 5 * of_noise
    assert 5 * of_noise < 0.1 * TRACE  # so that the arithmetic mean of the sizes would not pass


def test_estimates_without_noise_are_exact() -> None:
    scale = NoiseScale(0.75)
    for _ in range(9):
        scale.update(small_sq=4.0, big_sq=4.0, small=2, big=16)
    assert (scale.signal, scale.noise, scale.value) == (4.0, 0.0, 0.0)


def test_no_gradient_through_the_noise() -> None:
    scale = NoiseScale()
    scale.update(small_sq=8.0, big_sq=1.0, small=1, big=4)
    assert scale.signal < 0
    assert scale.value == math.inf
    odd = NoiseScale()
    odd.update(small_sq=1.0, big_sq=2.0, small=1, big=4)
    assert odd.noise < 0
    assert odd.value == 0.0


def test_the_first_update_counts_in_full() -> None:
    one, many = NoiseScale(0.0), NoiseScale(0.99)
    for scale in (one, many):
        scale.update(7.0, 4.0, 8, 32)
    # 0.01 x / (1 - 0.99) rounds twice.
    assert math.isclose(one.signal, many.signal, rel_tol=1e-14)
    assert math.isclose(one.value, many.value, rel_tol=1e-14)


def test_state_goes_on_with_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    given = [(2 + x, 1 + x, 4, 16) for x in rng.random(20)]
    whole, first, second = NoiseScale(0.9), NoiseScale(0.9), NoiseScale()
    for update in given[:9]:
        first.update(*update)
    second.load_state_dict(first.state_dict())
    for update in given[9:]:
        second.update(*update)
    for update in given:
        whole.update(*update)
    assert second.state_dict() == whole.state_dict()
    assert second.value == whole.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small": 8, "big": 8}, "small = 8, big = 8: expected 0 < small < big"),
        ({"small": 0}, "small = 0"),
        ({"big": math.inf}, "big = inf"),
        ({"small_sq": -1.0}, r"small_sq = -1\.0: expected a finite number, 0 or more"),
        ({"big_sq": math.nan}, "big_sq = nan"),
    ],
)
def test_numbers_that_cannot_be(change, message) -> None:
    scale = NoiseScale()
    with pytest.raises(ValueError, match=message):
        scale.update(**({"small_sq": 2.0, "big_sq": 1.0, "small": 2, "big": 8} | change))
    assert scale.count == 0
    with pytest.raises(ValueError, match=r"decay = 1\.0: expected a number in \[0, 1\)"):
        NoiseScale(1.0)


def test_windows_that_say_nothing_are_passed_over() -> None:
    scale = NoiseScale()
    scale.observe([2.0], [8], 2.0)
    scale.observe([2.0, math.inf], [8, 8], math.inf)
    scale.observe([2.0, math.nan], [8, 8], math.nan)
    assert (scale.count, math.isnan(scale.value)) == (0, True)


# In fit


def cloud(w, x):
    """Half the mean squared distance: the gradient of a sample is w - x, so Σ is that of x."""
    return 0.5 * ((w - x) ** 2).sum(axis=1).mean(), (w - x).mean(axis=0)


def test_fit_records_the_noise_scale() -> None:
    x = np.random.default_rng(3).normal(size=(4000, 40)) * SIGMA
    w = G.copy()
    scale = NoiseScale(0.99)
    history = fit(
        None, w, x, st.SGD(w, lr=0.0), epochs=3, batch_size=4, accumulate=5,
        value_and_grad=cloud, noise_scale=scale,
    )  # fmt: skip
    of_signal, of_noise = spread(4, 5, 0.99, 600)
    assert scale.count == 600
    assert abs(scale.signal - 5.0) < 5 * of_signal  # as above
    assert abs(scale.noise - TRACE) < 5 * of_noise
    assert history["noise_scale"][-1] == scale.value
    assert history.columns.index("noise_scale") < history.columns.index("seconds")


def test_the_noise_scale_is_that_of_the_norms_written_out() -> None:
    x = np.random.default_rng(3).normal(size=(11, 40))
    w, expected = np.ones(40), NoiseScale(0.9)
    for parts in ((x[0:3], x[3:6]), (x[6:9], x[9:11])):
        grads = [cloud(w, part)[1] for part in parts]
        sizes = [len(part) for part in parts]
        big = np.average(grads, axis=0, weights=sizes)
        norms = [float(np.linalg.norm(g)) for g in grads]
        expected.observe(norms, sizes, float(np.linalg.norm(big)))
        w = w - 0.5 * big
    v = np.ones(40)
    history = fit(
        None, v, x, st.SGD(v, lr=0.5), epochs=1, batch_size=3, accumulate=2, shuffle=False,
        value_and_grad=cloud, noise_scale=NoiseScale(0.9),
    )  # fmt: skip
    # Norms summed in another order, and differences of their squares.
    assert math.isclose(history["noise_scale"][0], expected.value, rel_tol=1e-11)


def test_the_noise_scale_needs_micro_batches() -> None:
    w = np.zeros(40)
    with pytest.raises(ValueError, match="noise_scale needs several micro-batches"):
        fit(
            None, w, np.ones((9, 40)), st.SGD(w), epochs=1, batch_size=3, noise_scale=True,
            value_and_grad=cloud,
        )  # fmt: skip


def test_examples() -> None:
    assert doctest.testmod(noise).failed == 0
