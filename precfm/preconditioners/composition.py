"""Composition: several preconditioners one after the other, for example whitening and then a flow."""

from typing import Any

from torch import Tensor, nn

from precfm.core.components import spec_of
from precfm.core.errors import PrecfmError
from precfm.core.options import checked
from precfm.core.seeds import derived_seed
from precfm.geometry.frequencies import frequency_variances
from precfm.geometry.large_spectra import MOST_FEATURES
from precfm.geometry.shrinkage import LARGEST_CONDITION_NUMBER
from precfm.geometry.spectra import covariance, eigen_spectrum
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData, FitRows
from precfm.preconditioners.inputs import summary
from precfm.preconditioners.nested import NestedMaps, nested_map
from precfm.preconditioners.round_trip import fitting_error


class Composition(Preconditioner):
    """Applies several preconditioners in order; each is fitted to what the ones before it make of the data.

    Labels go to every stage that needs them. The fit measures the round trip of the whole, on the data and
    its tails, because the error of a late stage grows through the inverses of the early ones.

    Stages that come fitted are not fitted again; if all do, so does the composition. A fit takes all to its device, in
    float64.

    Arguments:
        stages: the stages in order: preconditioners, or registered names, alone or as the `name` in a mapping with
            options.

    Example:
        >>> import torch
        >>> from precfm.preconditioners.whitening import Whitening
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 4.0)
        >>> composition = Composition(["per_channel", Whitening(exponent=0.25)]).fit(x)
        >>> bool(torch.allclose(composition.inverse(composition.forward(x)), x, atol=1e-4))
        True
    """

    uses_seed = True  # some stages do; the plan asks the class, which does not know its stages

    @checked
    def __init__(self, stages: NestedMaps = ({"name": "whitening"}, {"name": "normalizing_flow"})) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nested_map("stages", position, stage) for position, stage in enumerate(stages)
        )
        self.stages = tuple(
            dict(stage) if isinstance(stage, dict) else spec_of("preconditioners", stage, Preconditioner)
            for stage in stages
        )
        self.needs_labels = any(stage.needs_labels for stage in self._maps)
        self.uses_seed = any(stage.uses_seed for stage in self._maps)
        self.has_log_det = all(stage.has_log_det for stage in self._maps)
        self.round_trip_tolerance = max(stage.round_trip_tolerance for stage in self._maps)
        self._came_fitted = [stage.fitted for stage in self._maps]
        self._as_given = stages
        if all(self._came_fitted):
            places = {(stage.anchor.device, stage.anchor.dtype) for stage in self._maps}
            if len(places) > 1:
                found = " and ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
                raise PrecfmError(f"stages: are {found}; one dtype and one device are needed")
            self.to(*places.pop())
            self.event_shape = self._maps[0].event_shape
            self.classes = next((stage.classes for stage in self._maps if stage.needs_labels), ())
            for position, stage in enumerate(self._maps):
                self._check_fitted(position, stage)
            self.fitted = True

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options as they were given, as scikit-learn needs them."""
        return {"stages": self._as_given}

    def _check_fitted(self, position: int, stage: Preconditioner) -> None:
        """Refuse a stage that was fitted to something else."""
        classes = self.classes if stage.needs_labels else stage.classes
        if (stage.event_shape, stage.classes) != (self.event_shape, classes):
            raise PrecfmError(
                f"stages.{position}: was fitted to rows of shape {stage.event_shape} of {len(stage.classes)} classes; "
                f"this composition needs {self.event_shape} and the classes {summary(classes) or 'of none'}"
            )

    def _expect_labels(self, given: bool) -> None:
        for stage, came_fitted in zip(self._maps, self._came_fitted, strict=True):
            if not came_fitted:
                stage._expect_labels(given)
        self.needs_labels = any(stage.needs_labels for stage in self._maps)

    @property
    def _maps(self) -> list[Preconditioner]:
        return [stage for stage in self.maps if isinstance(stage, Preconditioner)]

    @property
    def num_parameters(self) -> int:
        """Sum over the stages."""
        return sum(stage.num_parameters for stage in self._maps)

    def _allocate(self) -> None:
        for stage in self._maps:
            stage.to(self.anchor)
            stage.allocate(self.event_shape, self.classes if stage.needs_labels else ())

    def _fit(self, data: FitData) -> int:
        rows = data.rows()
        (x, labels), validation = rows.as_given(self.event_shape, self.classes)
        for position, (stage, came_fitted) in enumerate(zip(self._maps, self._came_fitted, strict=True)):
            if came_fitted:
                self._check_fitted(position, stage)
            else:
                stage.fit(
                    x,
                    labels,
                    validation=validation,
                    seed=derived_seed(data.seed, "stage", position),
                    scratch=None if data.scratch is None else data.scratch / f"stage-{position}",
                )
            self.notes.extend(
                f"stage {position} ({self.stages[position]['name']}): {note}" for note in stage.notes
            )
            x = stage.forward(x, labels)
            if validation is not None:
                validation = stage.forward(*validation), validation[1]
        self.flops_per_fit = sum(stage.flops_per_fit for stage in self._maps)  # paid for, even if refused now
        self._check_round_trip(rows)
        return self.flops_per_fit

    def _check_round_trip(self, data: FitRows) -> None:
        """Refuse a whole that is less reversible than its stages claim to be."""
        if self.features > MOST_FEATURES:
            eigenvalues = frequency_variances(data.x.reshape(-1, *self.event_shape))
        else:
            eigenvalues = eigen_spectrum(covariance(data.x)).eigenvalues
        varying = eigenvalues[eigenvalues * LARGEST_CONDITION_NUMBER > eigenvalues[-1]]
        error = fitting_error(self, data, float(varying[0].sqrt()))
        if not error <= self.round_trip_tolerance / 2:
            raise PrecfmError(
                f"stages: the round-trip error on the data and its tails is {error:.2g} smallest standard "
                f"deviations; at most {self.round_trip_tolerance / 2:.2g} is accepted: put an approximate "
                "stage first or lower its tolerance"
            )

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        for stage in self._maps:
            x = stage._forward(x, classes)
        return x

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        for stage in reversed(self._maps):
            z = stage._inverse(z, classes)
        return z

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        total = x.new_zeros(len(x))
        for stage in self._maps:
            total = total + stage._log_abs_det(x, classes)
            x = stage._forward(x, classes)
        return total

    def _log_abs_det_deviations(self, x: Tensor, classes: Tensor | None) -> Tensor:
        total = super()._log_abs_det_deviations(x, classes)
        for stage in self._maps:
            found = stage._log_abs_det_deviations(x, classes)
            total = found if not len(total) else total + found if len(found) else total
            x = stage._forward(x, classes)
        return total
