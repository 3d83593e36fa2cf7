"""A job of several artifacts: where one fails, the others are made, and each says what went wrong."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from precfm.core.errors import PrecfmError
from precfm.pipeline import snakemake_entry
from precfm.pipeline.node import Node
from precfm.pipeline.snakemake_entry import run_job


def test_where_one_fails_the_others_are_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = Node("table_files", "user", "0" * 12, {}, {}, "", "mine")
    nodes = [first, replace(first, label="bug", key="1" * 12), replace(first, label="good", key="2" * 12)]

    def make(job):
        if job.node.label == "user":
            raise PrecfmError("steps: got -1")
        if job.node.label == "bug":
            raise ValueError("two\nlines")
        job.write_json("x.json", 1)

    monkeypatch.setattr(snakemake_entry, "script_of", lambda node: make)
    log = tmp_path / "logs/job.log"
    job = SimpleNamespace(params=SimpleNamespace(nodes=[node.to_json() for node in nodes]), log=[str(log)])
    with pytest.raises(SystemExit) as stopped:
        run_job(job)
    assert [node.exists for node in nodes] == [False, False, True]
    said = str(stopped.value).splitlines()
    assert len(said) == 2
    assert said[0] == f"precfm: {nodes[0].id}: steps: got -1"
    assert nodes[1].id in said[1]
    assert "two lines" in said[1]
    assert log.with_suffix(".error").read_text().splitlines() == said
    assert "Traceback" in capsys.readouterr().err
