"""Artifacts as tar files of bounded size, for sharing where there is no DVC remote: `precfm export` and `import`.

An export is a folder of volumes `precfm-0001.tar`, `precfm-0002.tar`, ... with a `manifest.json` that names every file
with its size and SHA-256, and every artifact with the SHA-256 of its record. A volume holds whole artifacts; one that
is larger than the bound is cut into `precfm-0003.tar.001`, `.002`, ..., which joined are a tar file again. The bytes
depend on nothing but the artifacts.

Nothing in an export is trusted. What is read is limited to the sizes that were announced, members must come exactly in
the order of manifest and records (so there is no place for a link, a path that leads elsewhere, or anything unknown),
and no artifact is put in place before all of them have been found right.
"""

from precfm.audit.archive.manifest import MANIFEST, checked_record
from precfm.audit.archive.packing import export_artifacts, find_artifacts, parse_size
from precfm.audit.archive.unpacking import Imported, import_artifacts

__all__ = [
    "MANIFEST",
    "Imported",
    "checked_record",
    "export_artifacts",
    "find_artifacts",
    "import_artifacts",
    "parse_size",
]
