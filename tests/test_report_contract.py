"""One contract for every registered table and figure: what it reads, the same bytes every time, or a reason."""

import re

import matplotlib as mpl
import pytest

from precfm.core.registry import REGISTRY, load
from precfm.report.frames import GRIDS, STATISTICS, sources_of
from precfm.report.products import write_figure, write_table
from precfm.report.reads import declared, handed
from precfm.theory.claim_statistics import theory_statistics
from tests import report_frames, theory_frames

pytestmark = pytest.mark.xdist_group("theory frames")  # which take seconds to make

ENDINGS = {"tables": {"csv", "md", "tex"}, "figures": {"pdf", "png", "md"}}
every_report = pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ENDINGS for name in sorted(REGISTRY[group])]
)


@pytest.fixture(scope="module")
def frames():
    tables = theory_frames.frames()
    of_data = report_frames.frames(seeds=2) | {GRIDS: report_frames.images(("none", "ours"), n=2)}
    return of_data | tables | {STATISTICS: theory_statistics(tables)}


class Recording(dict):
    """Frames that note which of them are read."""

    def __init__(self, frames):
        super().__init__(frames)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)


@every_report
def test_it_reads_what_it_declares_and_changes_no_global_setting(group, name, frames):
    make, before = load(group, name), dict(mpl.rcParams)
    recording = Recording(handed(make, frames))
    make(recording)
    assert recording.read == set(declared(make))
    assert all(sources_of(frame).roles for frame in declared(make)), "or it could not be traced"
    assert dict(mpl.rcParams) == before


def written(group, name, frames, folder):
    """The reason why it was left out, and the bytes of each file."""
    folder.mkdir()
    reason = (write_table if group == "tables" else write_figure)(name, frames, folder, "quick")
    return reason, {path.suffix[1:]: path.read_bytes() for path in folder.glob(f"{name}.*")}


@every_report
def test_it_is_the_same_bytes_whatever_the_users_settings_and_the_order_of_rows(
    group, name, frames, tmp_path
):
    reason, files = written(group, name, frames, tmp_path / "first")
    again = dict(frames)
    if group == "tables":  # the order of statistics is that of the theory table
        again |= {
            key: rows.sample(frac=1, random_state=1) for key, rows in report_frames.frames(seeds=2).items()
        }
    with mpl.rc_context({"font.size": 20.0, "savefig.dpi": 40, "lines.linewidth": 5}):
        assert written(group, name, again, tmp_path / "second") == (reason, files)
    assert reason is None
    assert files.keys() == ENDINGS[group]
    assert b"EXPERIMENT=quick" in files["md"]
    if group == "figures":
        assert b"CreationDate" not in files["pdf"]
        assert b"Matplotlib" not in files["png"]
    else:
        assert files["csv"].count(b"\n") > 1
        blocks = files["tex"].count(rb"\begin{tabular}")
        assert (
            blocks == files["tex"].count(rb"\end{tabular}") == len(re.findall(rb"^\| -", files["md"], re.M))
        )
        assert files["tex"].isascii()


@every_report
def test_without_frames_it_is_left_out_with_its_reason(group, name, tmp_path):
    reason, files = written(group, name, {}, tmp_path / "empty")
    assert reason
    assert list(files) == ["md"]
    assert reason.encode() in files["md"]
