"""The models: the only package that may import a model runtime.

OpenVINO's Python package reports its import to a statistics server, from a process that it forks and that inherits our
pipes. A picture service reports to nobody: its telemetry module is made unimportable before anything here loads it,
for which OpenVINO has a silent stand-in.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how `import` is told no
