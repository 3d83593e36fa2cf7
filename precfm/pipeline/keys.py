"""Content keys: equal artifacts have equal keys, and are one.

key = short hash of (kind, parameters, the parents' keys, the fingerprint of the code that makes it); for data the
checksum of the source stands among the parameters. Labels are for readers and stay out of the key, so a renamed
method keeps its artifacts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from precfm.core.errors import PrecfmError
from precfm.core.options import shortened
from precfm.pipeline.components import plain
from precfm.pipeline.fingerprints import SCRIPTS, fingerprint, foreign_modules, libraries
from precfm.pipeline.node import TOGETHER, WITHOUT_TORCH, Node, script_name
from precfm.pipeline.plan import Plan

LONGEST_LABEL = 200  # a file's name may have 255; the key and what marks a part-folder need some


class KeyedArtifacts:
    """Adds artifacts to a plan, each under its key.

    Args:
        plan: to which they are added.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[tuple[str, str], Node] = {}
        self._fingerprint, self._libraries = (
            cache(fingerprint),
            cache(libraries),
        )  # the code is taken as it is now

    def add(
        self,
        kind: str,
        label: str,
        params: Mapping[str, Any],
        parents: Mapping[str, Node | Iterable[Node]] | None = None,
        targets: Iterable[str] = (),
        *,
        batch: str = "",
    ) -> Node:
        """Add an artifact, or find the one that is equal to it.

        Args:
            kind: one of `precfm.pipeline.plan.KINDS`.
            label: a readable name.
            params: parts of the configuration, components and plain data.
            parents: the artifacts that it reads, by role.
            targets: import strings `module:name` of what its script loads from the registry.
            batch: with which others of its kind a job makes it.

        Raises:
            PrecfmError: the label is too long for a name of a folder.
        """
        if len(label) > LONGEST_LABEL:
            raise PrecfmError(
                f"names: got {shortened(label)}, of data set, encoder, setting and method together {len(label)} "
                f"characters; at most {LONGEST_LABEL} are possible"
            )
        families = {
            role: (nodes,) if isinstance(nodes, Node) else tuple(nodes)
            for role, nodes in (parents or {}).items()
        }
        targets = tuple(targets)
        code = self._fingerprint(SCRIPTS / script_name(kind, params), targets)
        content = [
            kind,
            plain(params, for_key=True),
            {role: [(node.kind, node.key) for node in nodes] for role, nodes in families.items()},
            code,
        ]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        if (kind, key) not in self._known:
            every, stated = plain(params), plain(params, places=False)
            # A class is loaded by those who read what it has made; reports read tables.
            read = () if kind in WITHOUT_TORCH else (node for nodes in families.values() for node in nodes)
            loaded = {target for node in read for target in node.targets}.union(targets)
            inherited = {name for nodes in families.values() for node in nodes for name in node.packages}
            node = Node(
                kind,
                label,
                key,
                params=every,
                parents={role: tuple(node.id for node in nodes) for role, nodes in families.items()},
                fingerprint=code,
                experiment=self._plan.experiment,
                device=self._plan.device,
                devices=self._plan.devices if kind in TOGETHER else 1,
                targets=targets,
                packages=tuple(sorted(inherited.union(foreign_modules(targets)))),
                batch=batch,
                libraries=self._libraries(SCRIPTS / script_name(kind, params), tuple(sorted(loaded))),
                stated=None if stated == every else stated,
            )
            self._plan.nodes[node.id] = self._known[kind, key] = node
        return self._known[kind, key]
