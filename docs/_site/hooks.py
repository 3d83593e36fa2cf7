"""What the site adds to MkDocs: notebooks, the API reference, repository files that are linked, formulas as MathML."""

import ast
import html
import re
from collections.abc import Iterator
from os.path import relpath
from pathlib import Path
from posixpath import dirname, join, normpath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs/tutorials"
INSIDE = ("audit", "pipeline", "report")  # behind the commands, for no one to import
PACKAGES = [
    stub.parent.name
    for stub in sorted((ROOT / "precfm").glob("*/__init__.pyi"))
    if stub.parent.name not in INSIDE
]
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_MATH = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the first page, the notebooks, a reference of each package, and what pages link to."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for notebook in sorted(TUTORIALS.glob("*.ipynb")):
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=_page_of(notebook)))
    for package in ["precfm", *PACKAGES]:
        files.append(File.generated(config, f"reference/{package}.md", content=_reference(package)))
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        source = ROOT / _in_repository(waiting.pop())
        if source.suffix not in (".md", ".ipynb") or not source.is_file():
            continue
        for _, target in _links(source.read_text(encoding="utf-8"), source):
            uri = _in_site(target)
            if files.get_file_from_path(uri) is None:
                files.append(
                    File.generated(
                        config, uri, abs_src_path=str(ROOT / target), inclusion=InclusionLevel.NOT_IN_NAV
                    )
                )
                waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links to files of the repository links of the site."""
    source = ROOT / _in_repository(page.file.src_uri)
    here = dirname(page.file.src_uri)
    for link, target in {*_links(markdown, source)} if source.is_file() else ():
        markdown = re.sub(
            rf"(?<=\]\(){re.escape(link)}(?=[)#])", relpath(_in_site(target), here or "."), markdown
        )
    return markdown


def on_page_content(html_text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write TeX as MathML, which browsers show without a script."""
    return _MATH.sub(
        lambda found: convert(html.unescape(found[2]), display="block" if found[1] == "[" else "inline"),
        html_text,
    )


def _links(markdown: str, source: Path) -> Iterator[tuple[str, str]]:
    """Each relative link to a file that exists, as written, and that file's path in the repository."""
    folder = source.relative_to(ROOT).parent.as_posix()
    for link in _LINK.findall(markdown):
        target = normpath(join(folder, link))
        if (ROOT / target).is_file():
            yield link, target


def _in_site(path: str) -> str:
    if path.endswith(".ipynb"):
        path = path.removesuffix(".ipynb") + ".md"
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _in_repository(uri: str) -> str:
    """Where a page comes from; what is made here comes from no file."""
    notebook = uri.removesuffix(".md") + ".ipynb"
    places = (f"docs/{uri}", f"docs/{notebook}", "README.md" if uri == "index.md" else uri)
    return next((place for place in places if (ROOT / place).is_file()), uri)


def _page_of(notebook: Path) -> str:
    """A notebook with its outputs as Markdown."""
    text, _ = MarkdownExporter().from_filename(str(notebook))
    return f'{text.rstrip()}\n\n<a href="{notebook.name}" download>This page as a notebook</a>\n'


def _reference(package: str) -> str:
    """A package's docstring and what its front door offers, as mkdocstrings reads it; what others hold as links."""
    name = "precfm" if package == "precfm" else f"precfm.{package}"
    source = (ROOT / name.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    offered, elsewhere = _offered(name), set[str]()
    if package == "precfm":
        elsewhere = {each for other in PACKAGES for each in _offered(f"precfm.{other}")}
    links = [f"- [{each.rpartition('.')[2]}][{each}]" for each in offered if each in elsewhere]
    pages = [f"::: {each}" for each in offered if each not in elsewhere]
    return "\n\n".join([f"# {name}", ast.get_docstring(ast.parse(source)) or "", "\n".join(links), *pages])


def _offered(package: str) -> list[str]:
    """The full names that a front door's stub lists, subpackages left out."""
    stub = ast.parse((ROOT / package.replace(".", "/") / "__init__.pyi").read_text(encoding="utf-8"))
    return [
        f"{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module != "precfm"
        for alias in node.names
    ]
