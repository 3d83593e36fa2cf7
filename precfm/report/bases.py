"""What variances and condition numbers are of, in words, where they are not those of a covariance of all features."""

import pandas as pd

from precfm.report.rows import ALL

# By a frame's column `basis` (`precfm.geometry.large_spectra.Basis`); of features that are no maps there is one kind.
_TEXTS = {
    "frequencies": (
        "variances and κ are those of the channels' covariance at each spatial frequency, all frequencies together, "
        "since rows are too few or features too many for a covariance of all features; of a split or class with fewer "
        "than ten rows per channel, those of single channels there"
    ),
    "features": (
        "variances and κ are those of single features, since rows are too few or features too many for a covariance"
    ),
}

_NOTED = "at each spatial frequency"  # in a note of `precfm.geometry.large_spectra.known_condition`


def basis_text(rows: pd.DataFrame) -> str:
    """The sentences of a caption on what is not of a covariance of all features; empty where everything is.

    Args:
        rows: of spectra or of path conditioning, columns dataset and scope, and basis where an artifact has it.

    Example:
        >>> maps = pd.DataFrame({"dataset": "d", "scope": ["all", "class-0"], "basis": ["covariance", "frequencies"]})
        >>> basis_text(maps).startswith(" In d (single classes) variances and κ are those of the channels' covariance")
        True
    """
    if "basis" not in rows.columns:
        return ""
    texts = []
    for basis, text in _TEXTS.items():
        of_basis = rows[rows["basis"] == basis]
        if len(of_basis):
            texts.append(
                f" In {', '.join(sorted(of_basis['dataset'].unique()))}{_of_which(of_basis, rows)} {text}."
            )
    if texts and (rows["scope"] != ALL).any():
        texts.append(" So κ of a class and κ over all classes can be different quantities.")
    return "".join(texts)


def has_covariances(rows: pd.DataFrame) -> bool:
    """Whether any of the rows is of a covariance of all features."""
    return "basis" not in rows.columns or not rows["basis"].isin(list(_TEXTS)).all()


def residual_basis_text(fitted: pd.DataFrame) -> str:
    """The same of residual condition numbers, whose artifacts say it in a note.

    Args:
        fitted: the frame `preconditioners`.
    """
    noted = fitted["notes"].map(lambda note: isinstance(note, str) and _NOTED in note).astype(bool)
    names = sorted(fitted[noted]["dataset"].unique())
    return f" In {', '.join(names)} residual κ is that of the channels {_NOTED}." if names else ""


def _of_which(of_basis: pd.DataFrame, rows: pd.DataFrame) -> str:
    """All classes or single ones, in brackets, where only these have the basis and there are others."""
    whole, others = of_basis["scope"] == ALL, rows["scope"] == ALL
    if whole.all() and not others.all():
        return " (all classes together)"
    return " (single classes)" if not whole.any() and others.any() else ""
