"""How an error of the velocity is measured: as e^T M e / trace(M) for a constant matrix M.

With J = dx/dz, the Jacobian of the preconditioner's inverse (x in data space, z in the flow's), M is

- `flow`: I, the plain recipe;
- `latent`: J^T J, since an error e in the flow's space is an error J e in data space;
- `decoder`: J^T G J, with the decoder's pull-back metric G in data space;
- `inverse_variance`: the inverse covariance of the data in the flow's space, its spectrum floored at 1e-6 of the
  largest eigenvalue: it weighs the directions as whitening would, without changing coordinates.

So path and metric are chosen apart. Up to constant factors the four cells of {path of the data, of white data} x {error
measured in the data's coordinates, in white ones} are

- data, data: the map `scalar` and `flow` (or `latent`, the same there);
- data, white: `scalar` and `inverse_variance`;
- white, data: `whitening` and `latent`;
- white, white: `whitening` and `flow`.
"""

import math
from typing import Literal, TypeAlias

from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.spectra import covariance, eigen_spectrum, floored_spectrum

LossMetric: TypeAlias = Literal["flow", "latent", "decoder", "inverse_variance"]


def loss_metric_root(
    metric: LossMetric, z1: Tensor, inverse_jacobian: Tensor | None, decoder_metric: Tensor | None
) -> Tensor | None:
    """R with R^T R = M / trace(M).

    Args:
        metric: the name of M.
        z1: training data in the flow's space, shape (n, *dim).
        inverse_jacobian: J, constant, shape (dim_x, dim); for `latent` and `decoder`.
        decoder_metric: G, symmetric and positive semi-definite, shape (dim_x, dim_x); for `decoder`.

    Returns:
        R in the type and on the device of `z1`, shape (rows, dim); None for M = I.

    Raises:
        PrecfmError: what the metric needs is missing or does not fit, or the data have no variance.
    """
    if metric == "flow":
        return None
    root = _root(metric, z1, inverse_jacobian, decoder_metric)
    trace = float(root.square().sum())
    if not 0 < trace < math.inf:
        raise PrecfmError(
            f"metric: '{metric}' has trace {trace} for these data; a positive, finite one is needed"
        )
    return (root / math.sqrt(trace)).to(z1)


def _root(
    metric: LossMetric, z1: Tensor, inverse_jacobian: Tensor | None, decoder_metric: Tensor | None
) -> Tensor:
    if metric == "inverse_variance":
        spectrum = floored_spectrum(covariance(z1))
        return (spectrum.eigenvectors / spectrum.eigenvalues.sqrt()).T
    if inverse_jacobian is None or inverse_jacobian.shape[1:] != (z1[0].numel(),):
        shape = None if inverse_jacobian is None else tuple(inverse_jacobian.shape)
        raise PrecfmError(
            f"inverse_jacobian: got {shape}; metric '{metric}' needs one of shape (dim_x, {z1[0].numel()})"
        )
    jacobian = inverse_jacobian.double()
    if metric == "latent":
        return jacobian
    rows = len(jacobian)
    if decoder_metric is None or decoder_metric.shape != (rows, rows):
        shape = None if decoder_metric is None else tuple(decoder_metric.shape)
        raise PrecfmError(
            f"decoder_metric: got {shape}; metric 'decoder' needs one of shape ({rows}, {rows})"
        )
    spectrum = eigen_spectrum(decoder_metric.to(jacobian))
    return (spectrum.eigenvectors * spectrum.eigenvalues.clamp(min=0).sqrt()).T @ jacobian
