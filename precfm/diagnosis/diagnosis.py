"""`precfm.diagnose`: do given latents profit from a preconditioner, and what that answer rests on."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import SkipValidation
from torch import Tensor

from precfm.core.options import Count, Natural, Positive, checked
from precfm.diagnosis.conditioning import Conditioning, measure_raw
from precfm.diagnosis.decoder import Decoder, DecoderUse, measure_decoder
from precfm.diagnosis.maps import MapReport, measure_map, tried_maps
from precfm.diagnosis.recommendation import Recommendation, from_selection, recommend
from precfm.diagnosis.rendering import plot_spectra, text
from precfm.diagnosis.rows import DENSE_FEATURES, array_of, draw
from precfm.diagnosis.training import candidates, measure
from precfm.latents.mistaken import layout_notes
from precfm.latents.reading import Latents


@dataclass(frozen=True)
class Diagnosis:
    """What was found; `str()` shows it, `to_json()` gives it to programs.

    Attributes:
        rows: that there are.
        shape: of one row.
        features: numbers in one row.
        dtype: of the latents as they came.
        classes: how many different labels the read rows have; 0 without labels.
        fit_rows: rows that maps were fitted to.
        held_out_rows: other rows, of which all numbers here are.
        seed: of the split.
        notes: what to look at before anything else: a shape that looks like that of another layout.
        raw: the held-out rows as they are.
        maps: behind each map that was tried, from simple to complex.
        decoder: what a decoder makes of the directions, if one was given.
        selection: record of the short trainings, if they were asked for; see `precfm.Selection`.
        recommendation: what to do.
    """

    rows: int
    shape: tuple[int, ...]
    features: int
    dtype: str
    classes: int
    fit_rows: int
    held_out_rows: int
    seed: int
    notes: tuple[str, ...]
    raw: Conditioning
    maps: tuple[MapReport, ...]
    decoder: DecoderUse | None
    selection: dict[str, Any] | None
    recommendation: Recommendation

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON data; None where a number is infinite or not known."""
        plain: dict[str, Any] = _plain({**asdict(self), "recommendation": asdict(self.recommendation)})
        plain["recommendation"]["verdict"] = str(self.recommendation)
        return plain

    def plot(self, file: str | Path) -> None:
        """Draw the spectra of the held-out rows, raw and behind each map, into a file.

        Raises:
            PrecfmError: matplotlib is not installed, or does not know the file's ending.
        """
        plot_spectra(self, Path(file))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return text(self)


@checked
def diagnose(
    x: Annotated[Tensor | np.ndarray | pd.DataFrame | Latents, SkipValidation],
    labels: Annotated[Tensor | np.ndarray | pd.Series | None, SkipValidation] = None,
    *,
    decoder: Decoder | None = None,
    seed: Natural = 0,
    minutes: Positive | None = None,
    dense_features: Count = DENSE_FEATURES,
) -> Diagnosis:
    """Say whether latents profit from a preconditioner: use one, leave them, or too few rows to tell.

    At most 60,000 rows (fewer, where one has more than 1,118 numbers) are read, at random. Maps are fitted to half of
    them, class by class; every number is of the other half. 60,000 x 512 take half a minute on one core.

    Args:
        x: latents, shape (rows, *dim), floating point: a tensor, an array (also a memory-mapped one), a data frame, or
            a file opened by `precfm.open_latents`.
        labels: classes, integers, shape (rows,), or None; those of the file where None.
        decoder: maps latents (batch, *dim) to images; if given, the directions that it hardly uses are counted, by 64
            images for each of them, unless they are more than `dense_features` or than half of the rows; a slow one is
            asked for fewer, so that it takes about a minute.
        seed: of the choice and the split of rows, and of trainings.
        minutes: of short paired trainings (`precfm.select`) of the maps and of skips, about; None trains nothing, and
            the answer rests on second moments.
        dense_features: with more features no dense covariance is decomposed and no dense map fitted: some seconds each
            at 1,024 features, a minute at 4,096.

    Returns:
        What was found, with the recommendation; without `minutes` a function of the arguments, but for how much a slow
        decoder is asked.

    Raises:
        PrecfmError: an argument is wrong, or the rows are too few (8), not finite, or constant in some direction.

    References:
        Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), https://arxiv.org/abs/2603.02337

    Example:
        >>> import torch
        >>> x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 4)
        >>> found = diagnose(x)
        >>> str(found.recommendation), round(math.log10(found.raw.kappa))
        ('use per_channel', 4)
    """
    parts = draw(array_of(x), array_of(labels), seed, dense_features)
    raw = measure_raw(parts)
    maps = [measure_map(name, parts, raw, seed) for name in tried_maps(parts)]
    use = None if decoder is None else measure_decoder(decoder, parts)
    recommendation, record = recommend(parts, raw, maps, use), None
    known = parts.fit[1]
    if minutes is not None:
        usable = [each.name for each in maps if each.refused is None]
        selection = measure(parts, usable, minutes, seed)
        chosen = candidates(usable)[selection.chosen]
        recommendation = from_selection(selection, chosen, labelled=known is not None)
        record = selection.record
    return Diagnosis(
        rows=parts.total,
        shape=parts.event_shape,
        features=parts.features,
        dtype=parts.dtype,
        classes=0 if known is None else len(torch.unique(known)),
        fit_rows=len(parts.fit[0]),
        held_out_rows=parts.held_out,
        seed=seed,
        notes=layout_notes((parts.total, *parts.event_shape)),
        raw=raw,
        maps=tuple(maps),
        decoder=use,
        selection=record,
        recommendation=recommendation,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
