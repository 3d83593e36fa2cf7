"""Which judges of images a data set has, and which metric of theirs stands for the Frechet distance.

Two classifiers that were trained on a data set's own kind judge digits; networks of published weights, or pixels, judge
photographs. Where sets are too small, or features too many, for a Frechet distance of all features, there is the one in
principal coordinates, and the KID.
"""

from collections.abc import Collection, Sequence
from typing import TypeAlias

import pandas as pd

from precfm.core.metric_names import COMPONENTS, FRECHET_IN_COMPONENTS
from precfm.report.vocabulary import decoded, is_decoded, is_judge, spaces_in_order, undecoded

FRECHET = "frechet"
WHITENED = "latent-whitened"
DISTANCES = (FRECHET, FRECHET_IN_COMPONENTS)
TRAINED = "classifier-"
_WIDE = "1,024"  # features, as `precfm.metrics.principal.WIDE`
_STANDING_IN = f", {COMPONENTS} components"

Place: TypeAlias = tuple[str, str]
"""A metric and the space in which it is measured."""


def places(records: pd.DataFrame) -> set[Place]:
    """The metrics and spaces of some records."""
    return set(zip(records["metric"], records["space"], strict=True))


def by_judges(records: pd.DataFrame) -> pd.DataFrame:
    """The Frechet distances of judges, to held-out images as they are."""
    own = records["space"].map(lambda space: is_judge(space) and not is_decoded(space)).astype(bool)
    return records[records["metric"].isin(DISTANCES) & own]


def meant(metric: str, spaces: Sequence[str], found: Collection[Place]) -> list[Place]:
    """Where a data set has what a claim asks for.

    Claims name the two trained classifiers. A data set with a fixed judge is judged by all that it has instead; and
    where its sets are too small or its features too many for a Frechet distance, by the one in principal coordinates.

    Args:
        metric: that a claim asks for.
        spaces: in which it is asked for.
        found: the metrics and spaces of the data set.

    Example:
        >>> meant("frechet", ["classifier-0", "classifier-1"], {("frechet_pca64", "imagenet"), ("kid", "imagenet")})
        [('frechet_pca64', 'imagenet')]
    """
    wanted = list(spaces)
    judges = {undecoded(space) for _, space in found if is_judge(space)}
    if all(map(is_judge, spaces)) and not all(judge.startswith(TRAINED) for judge in judges):
        asked = sorted({is_decoded(space) for space in spaces})
        own = spaces_in_order(judges)
        wanted = [decoded(judge) if behind_decoder else judge for behind_decoder in asked for judge in own]
    return [(_stand_in(metric, space, found), space) for space in wanted]


def place_text(metric: str, space: str) -> str:
    """How a space is written behind the name of a statistic; with the components, where these stand in."""
    return space + _STANDING_IN if metric == FRECHET_IN_COMPONENTS else space


def place_of(metric: str, text: str) -> Place:
    """The inverse of `place_text`, for a statistic that asks for a metric.

    Example:
        >>> place_of("frechet", "imagenet, 64 components"), place_of("kid", "imagenet")
        (('frechet_pca64', 'imagenet'), ('kid', 'imagenet'))
    """
    space = text.removesuffix(_STANDING_IN)
    return (metric if space == text else FRECHET_IN_COMPONENTS), space


def _stand_in(metric: str, space: str, found: Collection[Place]) -> str:
    small = metric == FRECHET and (FRECHET, space) not in found and (FRECHET_IN_COMPONENTS, space) in found
    return FRECHET_IN_COMPONENTS if small else metric


def judges_text(rows: pd.DataFrame, which: str = "") -> str:
    """The perceptual side in words, by the judges and metrics that these rows have.

    Args:
        rows: with columns metric and space.
        which: what to call two trained classifiers.
    """
    spaces = {undecoded(space) for space in rows["space"] if is_judge(space)}
    if all(space.startswith(TRAINED) for space in spaces):
        return f"Fréchet distance in the features of two {which}classifiers (judges)"
    text = f"Fréchet distance in the eyes of each judge ({', '.join(spaces_in_order(spaces))})"
    if FRECHET_IN_COMPONENTS not in set(rows["metric"]):
        return text
    return (
        f"{text}, where it has more than {_WIDE} features, or at least as many as there are samples or held-out rows, "
        f"in the first {COMPONENTS} principal coordinates of the train split (beside the unbiased KID)"
    )


def whitened_text(rows: pd.DataFrame) -> str:
    """The Frechet distance in whitened latent coordinates in words: of which directions it is.

    Args:
        rows: with columns dataset, metric and space.
    """
    text = "Fréchet distance in whitened latent coordinates"
    of_few = rows[(rows["metric"] == FRECHET_IN_COMPONENTS) & (rows["space"] == WHITENED)]
    if of_few.empty:
        return text
    return (
        f"{text} (of {', '.join(sorted(of_few['dataset'].unique()))} in the {COMPONENTS} principal directions of "
        "largest variance alone, so that directions of low variance do not count in it)"
    )
