"""Fingerprints of code: what a script and the modules that it needs *do*, not how they are written down.

A fingerprint hashes syntax trees (`precfm.pipeline.syntax`); nothing is imported. Imports are followed to the modules
that define what is imported; a package's `__init__` only re-exports, so it is part of no fingerprint, and code that
imports from one is refused.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, sentence
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.node import PINNED
from precfm.pipeline.syntax import once_per_state, syntax_hash

PACKAGE = Path(__file__).parents[1]
SCRIPTS = PACKAGE.parent / "workflow_scripts"
EQUIVALENCES = PACKAGE.parent / "config" / "equivalences.json"  # written by `precfm accept`

# Packages and modules that decide what is made, where it comes from (checked by checksums) and where it is kept, never
# what is in it.
WITHOUT_EFFECT = (
    "precfm.pipeline",
    "precfm.audit",
    "precfm.cli",
    "precfm.core.errors",
    "precfm.core.options",
    "precfm.core.registry",
    "precfm.datasets.manifest",
    "precfm.datasets.origins",
    "precfm.datasets.sources",
)

TEMPLATES = (".css", ".html", ".js")  # what fills a page counts as code of the modules beside it

# By script, what has no effect on what it makes although a module that it loads by name imports it: weights that come
# trained do not depend on the code that trains.
WITHOUT_EFFECT_ON = {PINNED: ("precfm.training",)}

WITHOUT_BYTES = ("filelock", "pydantic", "tqdm")  # check options, wait, show how far a job is


def fingerprint(script: Path, targets: tuple[str, ...] = ()) -> str:
    """The fingerprint of a script together with all code of precfm that it needs, transitively.

    Code that `precfm accept` has found to make the same bytes as older code has the older code's fingerprint. Of a
    target that another package defines, all of that package's sources count, and its version.

    Args:
        script: the script's file.
        targets: import strings `module:name` of what the script loads by name, such as a registry's entry.

    Returns:
        16 hexadecimal digits.

    Raises:
        PrecfmError: config/equivalences.json is damaged, a target's package is not installed, or code imports a name
            from a package's `__init__`.
    """
    own = own_fingerprint(script, targets)
    return equivalences().get(own, own)


def own_fingerprint(script: Path, targets: tuple[str, ...] = ()) -> str:
    """As `fingerprint`, whatever has been accepted."""
    parts = [syntax_hash(script), *targets]
    parts += [package_code(name) for name in foreign_modules(targets)]
    needed = modules(script, targets)
    parts += [f"{name}:{syntax_hash(module_file(name))}" for name in needed]
    parts += [
        f"{file.name}:{file_sha256(file)}"
        for folder in sorted({module_file(name).parent for name in needed})
        for file in sorted(folder.iterdir())
        if file.suffix in TEMPLATES
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def modules(script: Path, targets: tuple[str, ...] = ()) -> list[str]:
    """Every module of precfm that a script and what it loads by name need and that has an effect; sorted."""
    pending = [*imports(script), *(target.split(":")[0] for target in targets if is_own(target))]
    for name in foreign_modules(targets):
        pending += _imports_of_package(name)
    without = (*WITHOUT_EFFECT, *WITHOUT_EFFECT_ON.get(script.name, ()))
    needed: set[str] = set()
    while pending:
        module = pending.pop()
        if module not in needed and has_effect(module, without):
            needed.add(module)
            pending += imports(module_file(module))
    return sorted(needed)


def libraries(script: Path, targets: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Packages other than precfm that a script and what it loads by name import, without torch; sorted.

    They are in no fingerprint; an artifact's record names their versions.
    """
    files = [script, *map(module_file, modules(script, targets))]
    found = {name for file in files for name in _imported_packages(file)}
    found.update(module.partition(".")[0] for module in foreign_modules(targets))
    return tuple(sorted(found - {"torch", *WITHOUT_BYTES}))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """By distribution, the versions of packages, which are import names; those that are not installed are left out."""
    return {name: version(name) for package in packages for name in _distributions().get(package, ())}


@cache
def _distributions() -> Mapping[str, tuple[str, ...]]:
    return {package: tuple(sorted(set(names))) for package, names in packages_distributions().items()}


@once_per_state
def _imported_packages(file: Path) -> tuple[str, ...]:
    """Top-level packages that a file imports anywhere, which are neither precfm nor of Python itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return tuple(sorted(found - sys.stdlib_module_names - {PACKAGE.name}))


def has_effect(module: str, without: tuple[str, ...] = WITHOUT_EFFECT) -> bool:
    """Whether a module of precfm may change what is in an artifact: it is none of these, and in none of them."""
    return not any(module == name or module.startswith(f"{name}.") for name in without)


def is_own(target: str) -> bool:
    """Whether a module or import string is of precfm."""
    return target.split(":")[0].split(".")[0] == PACKAGE.name


def foreign_modules(targets: tuple[str, ...]) -> list[str]:
    """The modules of other packages that targets stand in; sorted."""
    return sorted({target.split(":")[0] for target in targets if not is_own(target)})


def module_file(module: str) -> Path:
    """The source file of a module of precfm; of a package its `__init__.py`."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    package = base / "__init__.py"
    return package if package.is_file() else base.with_suffix(".py")


@once_per_state
def imports(file: Path) -> tuple[str, ...]:
    """The modules of precfm that a file imports anywhere, inside functions too.

    Raises:
        PrecfmError: it imports a name from a package's `__init__`, relatively, or from a module that does not exist.
    """
    found = set()
    for module, line in _imported(file):
        source = module_file(module)
        if not source.is_file():
            raise PrecfmError(f"{file}:{line}: imports {module}, which is no module of precfm")
        if source.name == "__init__.py":
            raise PrecfmError(
                f"{file}:{line}: imports from the package {module}; the module that defines the name is needed, "
                "since keys follow imports"
            )
        found.add(module)
    return tuple(sorted(found))


def _imported(file: Path) -> Iterator[tuple[str, int]]:
    """Modules and packages of precfm that a file imports or imports from, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if is_own(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.level and file.is_relative_to(PACKAGE):
            yield "." * node.level + (node.module or ""), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and is_own(node.module):
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                is_module = module_file(member).is_file()
                yield (member if is_module else node.module), node.lineno


@cache
def package_code(module: str) -> str:
    """What identifies the code of another package: distribution, version, and a hash of all its Python sources."""
    top = module.partition(".")[0]
    distributions = sorted(set(packages_distributions().get(top, ())))
    digest = hashlib.sha256()
    for name, file in _sources(module):
        digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    named = " ".join(f"{name}=={version(name)}" for name in distributions)
    return f"{top} {named} {digest.hexdigest()}"


def _sources(module: str) -> list[tuple[str, Path]]:
    """The Python sources of the top-level package that a module belongs to, with their paths inside it."""
    top = module.partition(".")[0]
    spec = find_spec(top)
    if spec is None:
        raise PrecfmError(f"{module}: got a module that cannot be found; an installed package is needed")
    if spec.submodule_search_locations is None:
        return [(f"{top}.py", Path(spec.origin))] if spec.origin and spec.origin.endswith(".py") else []
    places = [Path(place) for place in spec.submodule_search_locations]
    return [
        (file.relative_to(place).as_posix(), file) for place in places for file in sorted(place.rglob("*.py"))
    ]


@cache
def _imports_of_package(module: str) -> tuple[str, ...]:
    """The modules of precfm that another package imports; where it imports from a package, all modules in there."""
    found: set[str] = set()
    for _, file in _sources(module):
        if PACKAGE.name.encode() not in file.read_bytes():
            continue
        for name, _ in _imported(file):
            source = module_file(name)
            inside = source.parent.rglob("*.py") if source.name == "__init__.py" else [source]
            found.update(_module_name(path) for path in inside if path.name != "__init__.py")
    return tuple(sorted(found))


def _module_name(file: Path) -> str:
    return ".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts))


Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Equivalence(Strict):
    """One entry of config/equivalences.json: new code that was shown to make the bytes of older code.

    Attributes:
        same_as: the older fingerprint.
        kind: the kind of artifact whose code it is.
        made_on: the machine that showed it.
        artifacts: what was made again, by id the checksum of each file.
    """

    same_as: Fingerprint
    kind: str
    made_on: dict[str, Any]
    artifacts: Annotated[dict[str, Annotated[dict[str, Sha256], Field(min_length=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> "Equivalence":
        if not isinstance(self.made_on.get("python"), str):
            raise PrecfmError(f"made_on: got {self.made_on!r}; the machine that showed it is needed")
        if not all(node_id.startswith(f"{self.kind}/") for node_id in self.artifacts):
            raise PrecfmError(
                f"artifacts: got {', '.join(self.artifacts)}; artifacts of the kind {self.kind} are needed"
            )
        return self


def equivalences() -> Mapping[str, str]:
    """For each accepted fingerprint the older one that it stands for; see `precfm.audit.accept`."""
    return {new: entry["same_as"] for new, entry in read_equivalences().items()}


def read_equivalences() -> dict[str, dict[str, Any]]:
    """What `precfm accept` has recorded, with its evidence: by new fingerprint, the fields of `Equivalence`.

    Raises:
        PrecfmError: the file is damaged, or an entry lacks its evidence.
    """
    return _read_equivalences(EQUIVALENCES) if EQUIVALENCES.is_file() else {}  # an installed library has none


@once_per_state
def _read_equivalences(file: Path) -> dict[str, dict[str, Any]]:
    try:
        accepted = json.loads(file.read_text(encoding="utf-8"))
        TypeAdapter(dict[Fingerprint, Equivalence]).validate_json(json.dumps(accepted))
        return dict(accepted)
    except ValidationError as error:
        problem = sentence(error)
    except (OSError, ValueError, RecursionError) as error:
        problem = f"damaged ({' '.join(str(error).split())[:200]})"
    raise PrecfmError(
        f"{file}: {problem}; it is kept in git: `git checkout -- config/equivalences.json` brings it back"
    )
