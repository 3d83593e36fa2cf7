"""The catalogue: every experiment, table and figure, with configuration, command and minutes. Writes docs/catalogue.md.

It is made of the configurations, the registry, the first line of each module's docstring, and what is published. README
repeats in short those experiments that have minutes or GPU-hours. Tests hold both files to it. `make catalogue` calls
it in the project's root.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from precfm.core.registry import REGISTRY, import_string
from precfm.gpu_hours import gpu_hours
from precfm.pipeline.costs import read_costs
from precfm.pipeline.experiments import parts_of, read_yaml
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.plan import load_plan

CATALOGUE = Path("docs/catalogue.md")
README = Path("README.md")
NO_EXPERIMENT = ("claims",)
SHOWN = {"tables": "md", "figures": "png"}  # what a link leads to
MADE = {
    "tables": "csv",
    "figures": "png",
}  # what is there unless the product was left out, which its .md says
HEAD = """\
# Catalogue

<!-- Written by `make catalogue`; a test holds it to configurations, registry and results/published. -->

Each experiment is one file in `config/` and one command; its tables and figures are made in `results/<experiment>/`.

*Minutes of jobs* are those of the published run, as it recorded them: the times of all jobs added up, on two cores
without a GPU, where two jobs run at a time. A run there takes about half as long. *GPU-hours* are estimates of
experiments that nobody has run, by `precfm gpu-hours EXPERIMENT`: counted operations of trainings, searches and
samples at 0.3 of the peak of an H100 or H200; fits of maps, encoding, judging and likelihoods come on top. Any name
with `-tiny` behind it, as in `paper-mnist-tiny`, is that experiment in 12 steps.

## Experiments

| experiment | what | command | minutes of jobs | GPU-hours |
| --- | --- | --- | ---: | ---: |
"""


def catalogue() -> str:
    """The text of docs/catalogue.md."""
    text = HEAD + "".join(_experiments())
    for group, (title, file) in {
        "tables": ("Tables", "CSV with all digits, Markdown and LaTeX"),
        "figures": ("Figures", "PDF and PNG, with a caption"),
    }.items():
        text += f"\n## {title}\n\nEach as {file}. Where it is published, the experiment is a link to it.\n\n"
        text += f"| {group.removesuffix('s')} | what | published by |\n| --- | --- | --- |\n" + "".join(
            _products(group)
        )
    return text


def with_experiments(readme: str, catalogue: str) -> str:
    """README with its table of experiments made anew, from rows of the catalogue: its numbers take long to make."""
    rows = re.findall(
        r"^\| \[`(.+?)`\]\(\.\./(.+?)\) \| (.+?) \| `make .+?` \| (.+?) \| (.+?) \|$", catalogue, re.MULTILINE
    )
    known = [row for row in rows if row[3].isdigit() or row[4].isdigit()]
    known.sort(key=lambda row: (not row[3].isdigit(), int(row[3] if row[3].isdigit() else row[4])))
    text = "| experiment | what | minutes of jobs | GPU-hours |\n| --- | --- | ---: | ---: |\n"
    for name, file, what, minutes, hours in known:
        first = re.split(r"[:;.](?= |$)", what)[0]
        text += f"| [`{name}`]({file}) | {first} | {minutes if minutes.isdigit() else '–'} | {hours} |\n"
    return re.sub(
        r"(<!-- experiments: .*? -->\n).*?(<!-- end -->)", rf"\g<1>{text}\g<2>", readme, flags=re.DOTALL
    )


def _experiments() -> Iterator[str]:
    for file in sorted(Path("config").glob("*.yaml")):
        name = file.stem
        if name in NO_EXPERIMENT:
            continue
        what = " ".join(read_yaml(file)["description"].split())
        costs = read_costs(PUBLISHED / name)
        hours = sum(map(_gpu_hours, parts_of(name)))
        minutes = f"{sum(cost.seconds for cost in costs.values()) / 60:.0f}" if costs else "not recorded"
        command = f"`make reproduce EXPERIMENT={name}`"
        estimate = f"{hours:.0f}" if hours else "–"
        yield f"| [`{name}`](../{file.as_posix()}) | {what} | {command} | {minutes} | {estimate} |\n"


@cache  # an experiment is also a part of others
def _gpu_hours(name: str) -> float:
    """Of an experiment that asks for a GPU; 0 of any other."""
    plan = load_plan(name)
    return sum(stage.hours for stage in gpu_hours(plan)) if plan.device == "cuda" else 0.0


def _products(group: str) -> Iterator[str]:
    for name in sorted(REGISTRY[group]):
        made = sorted(PUBLISHED.glob(f"*/{group}/{name}.{MADE[group]}"))
        links = (
            f"[{file.parents[1].name}](../{file.with_suffix(f'.{SHOWN[group]}').as_posix()})" for file in made
        )
        yield f"| `{name}` | {_about(import_string(group, name))} | {', '.join(links) or '–'} |\n"


def _about(attribute: str) -> str:
    """The first line of a module's docstring, without what sort of thing it is."""
    spec = find_spec(attribute.partition(":")[0])
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    about = docstring.partition("\n")[0].partition(": ")[2]
    return about[:1].upper() + about[1:]


if __name__ == "__main__":
    written = catalogue()
    CATALOGUE.write_text(written, encoding="utf-8")
    README.write_text(with_experiments(README.read_text(encoding="utf-8"), written), encoding="utf-8")
