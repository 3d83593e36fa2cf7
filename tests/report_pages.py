"""A page of an experiment made of the small frames of `tests.report_frames`, and how it is laid out."""

import tempfile
from functools import cache
from pathlib import Path

from precfm.pipeline.experiments import CLAIMS, read_yaml
from precfm.report.claims import parse_claims
from precfm.report.claims_document import write_claims
from precfm.report.frames import FRAMES, GRIDS
from precfm.report.page.assembly import Experiment, experiment_page
from precfm.report.products import write_figure, write_table
from precfm.report.verdicts import evaluate_claims
from tests import report_frames
from tests.workflow import ROOT

NAME = "quick"
METHODS = ("none", "scalar", "whitening", "normalizing_flow")
TABLES = ("sides", "conditioning", "metrics", "paired", "methods", "recovery", "training", "time_to_quality")
FIGURES = ("spectra", "path_conditioning", "sample_grids", "steps_against_kappa")


def about(frames):
    """By role of the parents of `frames`, what each stands for; and their ids."""
    runs = frames["records"][["dataset", "method", "seed"]].drop_duplicates().to_dict("records")
    flows = [run for run in runs if run["method"] in METHODS]
    stand_for = {"evaluations": runs, "flows": flows, "diagnostics": flows, "likelihoods": flows}
    ids = {role: [f"{role}/{place:012x}" for place in range(len(each))] for role, each in stand_for.items()}
    return stand_for, ids


def experiment():
    """All that a page is made of; one figure has nothing to show."""
    frames = report_frames.frames(seeds=2, methods=METHODS)
    grids = report_frames.images(METHODS, n=20)
    spec = parse_claims(read_yaml(ROOT / CLAIMS))
    verdicts = evaluate_claims(spec, frames, NAME)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for table in TABLES:
            write_table(table, frames, place, NAME)
        tables = {table: contents(place, table) for table in TABLES}
        for figure in FIGURES:
            write_figure(figure, {**frames, GRIDS: grids}, place, NAME)
        figures = {figure: contents(place, figure, ".csv") for figure in FIGURES}
    roles, ids = about(frames)
    shown = {each: frames[each] for each in FRAMES if each in frames}
    return Experiment(
        NAME, shown, grids, tables, figures, write_claims(verdicts)[1], verdicts, spec, roles, ids
    )


def contents(place, name, without=""):
    return {
        path.suffix: path.read_bytes()
        for path in place.glob(f"{name}.*")
        if path.suffix in {".md", ".csv", ".png"} - {without}
    }


@cache
def made():
    """The experiment and its page, made once."""
    each = experiment()
    return each, experiment_page(each)
