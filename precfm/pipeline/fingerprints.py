"""Fingerprints of code: what a script and the rooms of precfm that it needs *do*, not how they are written down.

A fingerprint hashes syntax trees without docstrings, comments and formatting. It walks the fields of the trees and
skips empty ones, because `ast.dump` and `ast.unparse` differ between Python versions; the same source has the same
fingerprint under Python 3.11, 3.12 and 3.13. Nothing is imported.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError

PACKAGE = Path(__file__).parents[1]
SCRIPTS = PACKAGE.parent / "workflow_scripts"
EQUIVALENCES = PACKAGE.parent / "config" / "equivalences.json"  # written by `precfm accept`

# These rooms decide what is made, where it comes from (checked by checksums) and where it is kept, never what is
# in it.
WITHOUT_EFFECT = frozenset(
    {
        "precfm",
        "precfm.audit.accept",
        "precfm.audit.comparison",
        "precfm.pipeline.build",
        "precfm.audit.integrity",
        "precfm.cli",
        "precfm.pipeline.schema",
        "precfm.audit.ro_crate",
        "precfm.datasets.manifest",
        "precfm.datasets.origins",
        "precfm.datasets.sources",
        "precfm.core.errors",
        "precfm.pipeline.experiments",
        "precfm.audit.findings",
        "precfm.pipeline.fingerprints",
        "precfm.audit.ledger",
        "precfm.audit.lineage",
        "precfm.core.options",
        "precfm.pipeline.plan",
        "precfm.core.progress",
        "precfm.core.registry",
        "precfm.pipeline.publication",
        "precfm.audit.environment",
    }
)


@cache
def fingerprint(script: Path, targets: tuple[str, ...] = ()) -> str:
    """The fingerprint of a script together with every precfm module that it needs, transitively.

    Code that `precfm accept` has found to make the same bytes as older code has the older code's fingerprint.

    Args:
        script: the script's file.
        targets: import strings `module:name` of what the script loads by name, such as a registry's entry.

    Returns:
        16 hexadecimal digits.

    Raises:
        PrecfmError: config/equivalences.json is damaged.
    """
    own = own_fingerprint(script, targets)
    return equivalences().get(own, own)


def own_fingerprint(script: Path, targets: tuple[str, ...] = ()) -> str:
    """As `fingerprint`, whatever has been accepted."""
    parts = [syntax_hash(script), *targets]
    parts += [f"{name}:{syntax_hash(module_file(name))}" for name in modules(script, targets)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def modules(script: Path, targets: tuple[str, ...] = ()) -> list[str]:
    """Every module of precfm that a script and what it loads by name need and that has an effect; sorted."""
    pending = [*imports(script), *(target.split(":")[0] for target in targets)]
    needed: set[str] = set()
    while pending:
        module = pending.pop()
        if module in needed or module in WITHOUT_EFFECT:
            continue
        needed.add(module)
        pending.extend(imports(module_file(module)))
    return sorted(needed)


@cache
def equivalences() -> Mapping[str, str]:
    """For each accepted fingerprint the older one that it stands for; see `precfm.audit.accept`."""
    return {new: entry["same_as"] for new, entry in read_equivalences().items()}


def read_equivalences() -> dict[str, dict[str, Any]]:
    """What `precfm accept` has recorded, with its evidence: by new fingerprint, the fields of `EVIDENCE`.

    Raises:
        PrecfmError: the file is damaged, or an entry lacks its evidence.
    """
    if not EQUIVALENCES.is_file():  # an installed library has none
        return {}
    try:
        accepted = json.loads(EQUIVALENCES.read_text(encoding="utf-8"))
        problem = _wrong_equivalence(accepted)
    except (OSError, ValueError, RecursionError) as error:
        problem = f"damaged ({' '.join(str(error).split())[:200]})"
    if problem:
        raise PrecfmError(
            f"{EQUIVALENCES}: {problem}; it is kept in git: `git checkout -- config/equivalences.json` brings it back"
        )
    return dict(accepted)


EVIDENCE = ("artifacts", "kind", "made_on", "same_as")


def _wrong_equivalence(accepted: Any) -> str:
    """The first field that is not as `precfm accept` writes it; empty if all are."""
    if not isinstance(accepted, dict):
        return f"got {type(accepted).__name__}; a mapping of fingerprints is needed"
    for new, entry in accepted.items():
        if not _is_hash(new, 16):
            return f"{new!r}: a fingerprint of 16 hexadecimal digits is needed"
        if not isinstance(entry, dict) or sorted(entry) != list(EVIDENCE):
            return f"{new}: got {entry!r}; a mapping with {', '.join(EVIDENCE)} is needed"
        if not _is_hash(entry["same_as"], 16):
            return (
                f"{new}: same_as: got {entry['same_as']!r}; a fingerprint of 16 hexadecimal digits is needed"
            )
        if not isinstance(entry["kind"], str):
            return f"{new}: kind: got {entry['kind']!r}; a kind of artifact is needed"
        if not isinstance(entry["made_on"], dict) or not isinstance(entry["made_on"].get("python"), str):
            return f"{new}: made_on: got {entry['made_on']!r}; the machine that showed it is needed"
        files = entry["artifacts"]
        if not isinstance(files, dict) or not files or not all(map(_is_evidence, files.values())):
            return (
                f"{new}: artifacts: got {files!r}; rebuilt artifacts with their files' checksums are needed"
            )
        if not all(node_id.startswith(f"{entry['kind']}/") for node_id in files):
            return (
                f"{new}: artifacts: got {', '.join(files)}; artifacts of the kind {entry['kind']} are needed"
            )
    return ""


def _is_evidence(files: Any) -> bool:
    return isinstance(files, dict) and bool(files) and all(_is_hash(sha256, 64) for sha256 in files.values())


def _is_hash(text: Any, digits: int) -> bool:
    return isinstance(text, str) and len(text) == digits and set(text) <= set("0123456789abcdef")


@cache
def module_file(module: str) -> Path:
    """The source file of a module of precfm."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    package = base / "__init__.py"
    return package if package.is_file() else base.with_suffix(".py")


@cache
def imports(file: Path) -> tuple[str, ...]:
    """The modules of precfm that a file imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "precfm")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "precfm":
            found.add(node.module)
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(member for member in members if module_file(member).is_file())
    return tuple(sorted(found))


@cache
def syntax_hash(file: Path) -> str:
    """The hash of one file's syntax tree, without docstrings, comments and formatting."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    for token in _tokens(tree):
        digest.update(token.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _tokens(node: object) -> Iterator[str]:
    """A tree as a sequence of words; empty fields leave no trace, since new Pythons add such fields."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in _fields(node):
            if value is None or value == []:
                continue
            yield f".{name}"
            yield from _tokens(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _tokens(item)
        yield "]"
    else:
        yield f"{type(node).__name__}={node!r}"


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.Constant) and name == "kind":  # u"x" is "x"
            continue
        if isinstance(node, ast.JoinedStr) and isinstance(
            value, list
        ):  # Python 3.12 leaves empty strings there
            yield name, [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
        elif documented and name == "body" and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            yield name, value[1:]
        else:
            yield name, value
