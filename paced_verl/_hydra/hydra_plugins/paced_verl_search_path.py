"""Hydra's door into paced-verl. Hydra finds it by itself, whether or not verl has loaded the plugin.

It lies in Hydra's namespace package ``hydra_plugins`` once installed (see ``pyproject.toml``).
"""

import importlib
import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PacedSearchPath(SearchPathPlugin):
    """Adds the groups of the wheel (``paced``, ``machine``), and verl's own for recipes in other folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        try:
            importlib.import_module("paced_verl")
        except Exception as error:
            # Without the group, Hydra would take +paced=two_stage for a new key and verl would run without PACED.
            if any(argument.lstrip("+").startswith("paced") for argument in sys.argv[1:]):
                raise SystemExit(
                    f"paced-verl is installed but does not load: {type(error).__name__}: {error}"
                ) from None
            return
        search_path.append("paced-verl", "pkg://paced_verl.configs")
        search_path.append("paced-verl", "pkg://verl.trainer.config")
