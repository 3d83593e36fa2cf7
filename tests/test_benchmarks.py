"""The script that measures a GPU works, so that it need not be mended on a machine that is lent for minutes."""

import importlib.util
import sys

import pytest
import torch

from precfm.core.registry import build
from precfm.flows.compute import num_parameters
from precfm.pipeline.components import plain
from precfm.pipeline.experiments import load_experiment
from tests.workflow import ROOT


def test_what_measures_a_gpu_works_in_small_steps_on_the_processor(monkeypatch):
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    for case, name in zip(script.cases(tiny=False), ("church256", "flowers256"), strict=True):
        flow = load_experiment(name).settings["plain"].methods["scalar"].flow
        with torch.device("meta"):
            measured = case.build()
            trained = build("models", plain(flow.model), shape=case.shape, num_classes=script.CLASSES)
        assert type(measured) is type(trained)
        assert num_parameters(measured) == num_parameters(trained)
        assert case.batch == flow.training.batch_size
    report = script.measure(torch.device("cpu"), tiny=True)
    assert report["agreement"]["largest_differences"] == {"MLP": 0, "U-Net": 0}
    assert [each["name"] for each in report["networks"]] == ["DiT", "U-Net"]
    for each in report["networks"]:
        assert each["utilisation"] == pytest.approx(
            1e3 * each["tflops_per_step"] / each["ms_per_step"] / report["matrix_tflops"]
        )
        assert each["name"] in script.text_of(report)
