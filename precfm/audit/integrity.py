"""The audit: is everything in results/ what its checksums, the plan, the ledger and this machine say?

Whether its numbers agree with those of another run is asked of `precfm.audit.agreement`.
Errors make it fail; warnings say what may change the last digits of a rebuild, or is not committed yet. Logs, benchmark
files and stamps in `results/<experiment>/records/` change from run to run and are left out.
"""

from collections.abc import Sequence

from precfm.audit.environment import check_commit, check_machine, check_versions
from precfm.audit.equivalences import check_equivalences
from precfm.audit.ledger import check_ledger
from precfm.audit.local import LocalExperiment
from precfm.audit.models import check_models
from precfm.audit.published import MERGED, check_merged_claims, check_published
from precfm.audit.records import check_artifact
from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.core.options import suggestion
from precfm.pipeline.experiments import check_name
from precfm.pipeline.node import MODELS, PUBLISHED, RECORD, RESULTS, homes


def audit(experiments: Sequence[str] = ()) -> Report:
    """Check results/ and data/models/: what this machine made, what is published and pinned, plan, ledger, machine.

    Args:
        experiments: which ones; none means all that this machine made something of, or that are published.

    Returns:
        The report.

    Raises:
        PrecfmError: an experiment has no results.
    """
    local = {home.name for home in homes()}
    published = {home.name for home in PUBLISHED.glob("*") if home.is_dir()}
    chosen = list(experiments) or sorted(local | published)
    for name in chosen:
        check_name(name)
        if name not in local | published:
            others = suggestion(name, sorted(local | published))
            raise PrecfmError(
                f"{RESULTS / name}: not there{others}; `make reproduce EXPERIMENT={name}` or `make pull` makes it"
            )
    if not chosen:
        raise PrecfmError(f"{RESULTS}: holds no experiment; run `make reproduce` or `make pull` first")
    report = Report(chosen)
    made = [LocalExperiment(report, name) for name in chosen if name in local]
    for name in chosen:
        if name in published:
            check_published(report, name)
    if not experiments:
        _check_strays(report)
    for file in sorted((RESULTS / ".attic").glob(f"*/*/{RECORD}")):  # it comes back when a plan wants it
        check_artifact(report, file.parent)
    check_merged_claims(report)
    check_models(report)
    check_equivalences(report)
    check_versions(report)
    for experiment in made:
        check_machine(report, experiment.home, experiment.records)
    check_ledger(report, [experiment.name for experiment in made], experiments)
    for folder in (PUBLISHED, MODELS):
        check_commit(report, folder)
    return report


def _check_strays(report: Report) -> None:
    """What lies in results/ and in results/published/ beside the experiments."""
    for place in sorted(RESULTS.iterdir()):
        hidden = place.name.startswith(".") and place.name not in (".attic", ".work")
        if not place.is_dir() or place.is_symlink() or hidden:
            report.error("plan", place, "is no experiment", "delete it")
    for place in sorted(PUBLISHED.glob("*")):
        if place.is_symlink() or not (place.is_dir() or place in MERGED):
            report.error("plan", place, "is neither an experiment nor the merged verdicts", "delete it")
