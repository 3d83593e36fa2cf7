"""What a command says at its end: one sentence, and advice only where it helps."""

import errno
import os

import pytest

from precfm.core.errors import PrecfmError, one_sentence
from precfm.pipeline.experiments import read_recorded


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PrecfmError("steps: 0 should be at least 1"), "precfm: steps: 0 should be at least 1"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "precfm: a: No such file or directory"),
        (OSError(errno.ENOSPC, "No space left", "a"), "precfm: a: No space left; free space is needed"),
        (OSError(errno.EROFS, "Read-only", "a"), "precfm: a: Read-only; permission to read and write there is needed"),
        (OSError("unplugged"), "precfm: unplugged"),
        (ConnectionResetError(), "precfm: ConnectionResetError"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_sentence(error, said):
    with pytest.raises(SystemExit) as end, one_sentence():
        raise error
    assert end.value.code == said


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(KeyError), one_sentence():
        raise KeyError("x")


def test_no_signal_or_exit_is_swallowed():
    with pytest.raises(SystemExit) as end, one_sentence():
        raise SystemExit(os.EX_USAGE)
    assert end.value.code == os.EX_USAGE


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "params.yaml"),
        ("experiments: [a]", "params.yaml: sources: got None"),
        ("experiments: a\nsources: []", "params.yaml: experiments: got 'a'"),
        ("experiments: [3]\nsources: []", r"params.yaml: experiments: got \[3\]"),
        ("[", "params.yaml"),
        ("3", "params.yaml: experiments: got None"),
    ],
)
def test_a_damaged_list_of_what_is_recorded_is_told(tmp_path, monkeypatch, text, match):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(PrecfmError, match=match):
        read_recorded()
