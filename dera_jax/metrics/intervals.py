"""Computes confidence intervals of means over documents."""

from collections.abc import Sequence

import numpy as np


def mean_interval(values: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Returns the mean and half the width of its 95 % confidence interval (normal approximation).

    The interval is None for a single document. Samples of one document are not independent, so the
    standard error is computed from the documents' means.

    Args:
        values: [n, K], the values of K samples for each of n documents.
    """
    per_document = np.mean(np.asarray(values, np.float64), axis=1)
    if len(per_document) < 2:
        return float(per_document.mean()), None
    error = per_document.std(ddof=1) / np.sqrt(len(per_document))
    return float(per_document.mean()), float(1.96 * error)
