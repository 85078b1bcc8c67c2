"""Files that belong to the scans, such as masks, found by a template."""

from __future__ import annotations

import os
from collections.abc import Mapping

from medical_diffusion_components.preparation.inventory import Inventory

__all__ = ["add_companions"]


def add_companions(inventory: Inventory, templates: Mapping[str, str]) -> None:
    """Give each case the companions that it has; a scan that is another's companion is no case.

    Args:
        inventory: its cases are changed.
        templates: key -> path with ``{case_id}`` in it.

    Raises:
        ValueError: a template that gives every case the same file, or fits no case.
    """
    with_scan = [case for case in inventory.cases if case.scan]
    paths = {
        case.case_id: {
            key: path
            for key, template in templates.items()
            if os.path.isfile(path := template.replace("{case_id}", case.case_id))
        }
        for case in with_scan
    }
    taken = {os.path.realpath(path) for own in paths.values() for path in own.values()}
    for case in with_scan:
        if os.path.realpath(case.found.path) in taken:
            inventory.drop(case, "companion of a case (mask)")
    with_scan = [case for case in inventory.cases if case.scan]
    for key, template in templates.items():
        if "{case_id}" not in template and len(with_scan) > 1:
            raise ValueError(
                f"{key}: expected a path with {{case_id}} in it, got {template!r}, the same file for every case"
            )
        number = sum(key in paths[case.case_id] for case in with_scan)
        if number == 0:
            tried = template.replace("{case_id}", with_scan[0].case_id)
            raise ValueError(
                f"{key}: none of the {len(with_scan)} cases has the file {template!r}: there is no {os.path.abspath(tried)}"
            )
        if number < len(with_scan):
            inventory.remarks.append(
                f"{key}: {number} of {len(with_scan)} cases have one, {len(with_scan) - number} have none"
            )
    inventory.cases = [case._replace(companions=paths.get(case.case_id, {})) for case in inventory.cases]
