"""Units of one layer scored by what they send on, and the next layer solved anew without some of them.

Activations are (samples, units), kernels (units, out); everything is reckoned in float64.
"""

import numpy as np

from secateur.errors import SecateurError

RIDGE = 3e-3  # of the mean squared activation; chosen on validation images of MNIST


def unit_scores(activations: np.ndarray, outgoing: np.ndarray) -> np.ndarray:
    """Score units by RMS activation x L2 norm of the outgoing weights; float64, larger = keep.

    Raises `SecateurError` when the numbers of units differ.

    >>> unit_scores(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [5.0, 2.0]
    """
    activations, outgoing = np.asarray(activations, float), np.asarray(outgoing, float)
    _require_units(activations, outgoing)
    rms = np.sqrt(np.mean(np.square(activations), axis=0))
    return rms * np.linalg.norm(outgoing, axis=1)


def resolve_next(
    inputs: np.ndarray,
    kept: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    targets: np.ndarray | None = None,
    ridge: float = RIDGE,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the next layer's kernel for the kept units alone, (kept, out), and its bias.

    Least squares for the change of the kept rows, so that they give what all units gave; the ridge
    holds that change small, so nothing removed changes nothing. Kernel and bias keep their dtypes.

    Args:
        inputs: activations of all units, (samples, units).
        kept: bool, (units,), True = kept.
        kernel: of the next layer, (units, out).
        bias: of the next layer, (out,); None: it has none, and gets none.
        targets: what to give, (samples, out); None: what all units give now.
        ridge: weight of the change against the error, of the mean squared activation; 0: none.

    Raises `SecateurError` for shapes that do not fit, when no unit is kept, and for NaN.

    >>> inputs = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])  # the second is twice the first
    >>> kept = np.array([True, False])
    >>> resolve_next(inputs, kept, np.array([[1.0], [1.0]]), ridge=0.0)[0].round(6).tolist()
    [[3.0]]
    """
    h, kept = np.asarray(inputs, np.float64), np.asarray(kept)
    old = np.asarray(kernel, np.float64)
    _require_units(h, old)
    if kept.dtype != bool or kept.shape != (len(old),) or not kept.any():
        raise SecateurError(
            f"kept of {kept.dtype}, shape {kept.shape}, {int(kept.sum())} kept, received, expected "
            f"bool of shape ({len(old)},) that keeps a unit or more; fix: True where a unit stays"
        )
    if not ridge >= 0.0:
        raise SecateurError(f"ridge {ridge!r} received, expected 0 or more; fix: {RIDGE:g}")
    offset = 0.0 if bias is None else np.asarray(bias, np.float64)
    wanted = h @ old + offset if targets is None else np.asarray(targets, np.float64)
    if wanted.shape != (len(h), old.shape[1]):
        raise SecateurError(
            f"targets of shape {wanted.shape} received, expected {(len(h), old.shape[1])}; fix: "
            "give the next layer's outputs before its activation"
        )
    if not (np.isfinite(h).all() and np.isfinite(wanted).all()):
        raise SecateurError(
            "activations with NaN or infinity received, expected finite numbers; fix: load a sound "
            "model, or check the samples"
        )
    h, rows = h[:, kept], old[kept]
    missing = wanted - h @ rows - offset
    # With a bias the intercept is free: both sides are centred, and it takes up the means.
    middle = np.zeros(h.shape[1]) if bias is None else h.mean(axis=0)
    rest = np.zeros(old.shape[1]) if bias is None else missing.mean(axis=0)
    change = _ridge(h - middle, missing - rest, ridge)
    new = (rows + change).astype(np.asarray(kernel).dtype)
    if bias is None:
        return new, None
    return new, (offset + rest - middle @ change).astype(np.asarray(bias).dtype)


def _ridge(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """The smallest change w with x w near y."""
    gram = x.T @ x
    weight = ridge * float(np.trace(gram)) / len(gram)
    if weight == 0.0:  # no ridge, or no unit is ever active
        return np.linalg.lstsq(x, y, rcond=None)[0]
    return np.linalg.solve(gram + weight * np.eye(len(gram)), x.T @ y)


def _require_units(activations: np.ndarray, kernel: np.ndarray) -> None:
    if activations.ndim != 2 or kernel.ndim != 2 or activations.shape[1] != len(kernel):
        raise SecateurError(
            f"activations of shape {activations.shape} received for a kernel of shape "
            f"{kernel.shape}, expected (samples, units) and (units, out); fix: give those of the "
            "layer whose outputs the kernel takes in"
        )
    if not len(activations):
        raise SecateurError(
            "no activation received, expected those of 1 sample or more; fix: give samples"
        )
