from precfm.selection.candidates import Candidate as Candidate
from precfm.selection.candidates import default_candidates as default_candidates
from precfm.selection.contest import Judge as Judge
from precfm.selection.select import DEFAULT_SETTINGS as DEFAULT_SETTINGS
from precfm.selection.select import Selection as Selection
from precfm.selection.select import select as select
from precfm.selection.standings import Standing as Standing
