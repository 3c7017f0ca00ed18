"""The official recipe for the softmax autoencoder: one Adam over logits and decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskbasis.basis.gram import Matrix

RATE, DECAY = 1e-2, 1e-6
FIRST, SECOND, TINY = 0.9, 0.999, 1e-8


def softmax(logits: Matrix) -> Matrix:
    """Down each column: positive, summing to 1.

    >>> softmax(np.zeros((2, 1)))
    array([[0.5],
           [0.5]])
    """
    raised = np.exp(logits - logits.max(axis=0))
    found: Matrix = raised / raised.sum(axis=0)
    return found


def loss_and_gradients(
    gram: Matrix, logits: Matrix, decoder: Matrix, temperature: float
) -> tuple[float, Matrix, Matrix]:
    """``L = tr(EᵀGE) / T²`` with ``E = softmax(A / temperature) W - I``, and its gradients.

    Args:
        gram: [T, T].
        logits: A [T, M].
        decoder: W [M, T].
        temperature: of the softmax over tasks.

    Returns:
        L, its gradient in A [T, M], its gradient in W [M, T].

    >>> loss_and_gradients(np.eye(2), np.zeros((2, 1)), np.zeros((1, 2)), 5.0)
    (0.5, array([[0.],
           [0.]]), array([[-0.25, -0.25]]))
    """
    tasks = len(gram)
    encoder = softmax(logits / temperature)
    error = encoder @ decoder - np.eye(tasks)
    pulled = gram @ error
    loss = float(np.vdot(error, pulled)) / tasks**2
    slope = (2 / tasks**2) * (pulled @ decoder.T)
    in_logits = encoder * (slope - np.sum(encoder * slope, axis=0)) / temperature
    in_decoder = (2 / tasks**2) * (encoder.T @ pulled)
    return loss, in_logits, in_decoder


@dataclass
class _Adam:
    """One parameter under Adam with coupled L2, as in torch.optim.Adam."""

    value: Matrix

    def __post_init__(self) -> None:
        self.first, self.second, self.step = np.zeros_like(self.value), 0.0 * self.value, 0

    def move(self, gradient: Matrix) -> None:
        self.step += 1
        gradient = gradient + DECAY * self.value
        self.first += (1 - FIRST) * (gradient - self.first)
        self.second += (1 - SECOND) * (gradient**2 - self.second)
        unbiased = np.sqrt(self.second / (1 - SECOND**self.step)) + TINY
        self.value -= RATE / (1 - FIRST**self.step) * self.first / unbiased


def solve_adam(
    gram: Matrix, atoms: int, temperature: float, steps: int, seed: int
) -> tuple[Matrix, Matrix]:
    """Encoder B [T, M] and decoder W [M, T] by the recipe of the official code (TVB v4/v5).

    ``A ~ N(0, 1)``, ``W = 0``, Adam with rate 1e-2 and coupled weight decay 1e-6, full matrix at
    each step, temperature fixed. Here in float64 and with NumPy's generator, so a seed gives other
    numbers than torch's. The recipe is not scale-free: on a tiny Gram matrix the weight decay is
    all that Adam sees, and the columns of B collapse to uniform.

    >>> B, W = solve_adam(np.diag([2.0, 1.0]), 1, 5.0, 300, 0)
    >>> B.shape, W.shape, round(float(B.sum()), 12)
    ((2, 1), (1, 2), 1.0)
    """
    draw = np.random.default_rng(seed).standard_normal((len(gram), atoms))
    logits, decoder = _Adam(draw), _Adam(np.zeros((atoms, len(gram))))
    for _ in range(steps):
        _, in_logits, in_decoder = loss_and_gradients(
            gram, logits.value, decoder.value, temperature
        )
        logits.move(in_logits)
        decoder.move(in_decoder)
    return softmax(logits.value / temperature), decoder.value
