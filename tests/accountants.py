"""The privacy that DP-SGD spends, by two accountants that share nothing with dp-accounting.

A step is the Gaussian mechanism on examples that each come with probability q. Its worst pair of outputs is
`P = (1 - q) N(0, s^2) + q N(1, s^2)` and `Q = N(0, s^2)`, s the noise multiplier (Abadi et al. 2016; Mironov et al.
2019), for an example that is there or not.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp, ndtr

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)


def renyi_by_binomials(q, s, order):
    """The Renyi divergence of P from Q at a whole order, `log(sum_k C(a, k) (1-q)^(a-k) q^k e^(k(k-1)/2s^2)) / (a-1)`.

    Source: Mironov et al. 2019, section 3.3.
    """
    k = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    rest = np.where(k == order, 0, (order - k) * np.log1p(-q) if q < 1 else -np.inf)
    return logsumexp(choose + rest + k * np.log(q) + k * (k - 1) / (2 * s**2)) / (order - 1)


def renyi_by_quadrature(q, s, order):
    """The same at any order: the integral of `Q (P / Q)^order` by the trapezoidal rule, on the whole line."""
    x = np.linspace(-40 * s, order + 40 * s, 40_001)
    log_Q = -(x**2) / (2 * s**2) - np.log(s * math.sqrt(2 * math.pi))
    return (logsumexp(log_Q + order * log_ratio(x, q, s)) + np.log(x[1] - x[0])) / (order - 1)


def log_ratio(x, q, s):
    """`log P / Q` at x."""
    exponent = (2 * x - 1) / (2 * s**2)
    return exponent if q == 1 else np.logaddexp(np.log1p(-q), np.log(q) + exponent)


def epsilon_by_renyi(renyi, steps, delta):
    """Source: Canonne, Kamath and Steinke 2020, proposition 12, over `renyi`, a divergence for each order."""
    return min(steps * d + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a, d in renyi.items())


def delta_by_quadrature(q, s, epsilon):
    """The smallest delta of one step, `int max(P - e^eps Q, 0)` or that of Q and P."""
    x = np.linspace(-40 * s, 1 + 40 * s, 200_001)
    Q = np.exp(-(x**2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi))
    P = Q * np.exp(log_ratio(x, q, s))
    pairs = ((P, Q), (Q, P))
    return max(np.maximum(a - math.exp(epsilon) * b, 0).sum() * (x[1] - x[0]) for a, b in pairs)


def delta_of_gaussians(s, steps, epsilon):
    """The smallest delta without sampling, q = 1. Source: Balle and Wang 2018, theorem 8."""
    mu = math.sqrt(steps) / s
    return ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)


class PrivacyLoss:
    """The smallest delta of `steps` steps, from the distribution of their privacy loss: a Fourier transform's power.

    The loss of one step lies on a grid of width `h`, split between the two nearest points so that its mean is kept.
    """

    def __init__(self, q, s, steps, reach=40.0, points=2**18):
        x = np.linspace(-14 * s, 1 + 14 * s, 400_001)
        loss = log_ratio((x[1:] + x[:-1]) / 2, q, s)
        Q = np.diff(ndtr(x / s))
        P = q * np.diff(ndtr((x - 1) / s)) + (1 - q) * Q
        self.h = 2 * reach / points
        self.losses = (np.arange(points) - points // 2) * self.h
        self.composed = [self._compose(mass, value, steps) for mass, value in ((P, loss), (Q, -loss))]

    def _compose(self, mass, loss, steps):
        points = len(self.losses)
        at = loss / self.h + points // 2
        below = np.floor(at).astype(int)
        share = at - below
        one = np.bincount(below, mass * (1 - share), points) + np.bincount(below + 1, mass * share, points)
        power = np.fft.rfft(np.fft.ifftshift(one)) ** steps
        return np.fft.fftshift(np.fft.irfft(power, points))

    def delta(self, epsilon):
        above = self.losses > epsilon
        return max(float(mass[above] @ -np.expm1(epsilon - self.losses[above])) for mass in self.composed)

    def epsilon(self, delta):
        return brentq(lambda epsilon: self.delta(epsilon) - delta, 1e-6, self.losses[-1] / 2, xtol=1e-9)
