import subprocess
import sys
from importlib import resources

import reimpl


def test_typed():
    assert resources.files("reimpl").joinpath("py.typed").is_file()


def test_version():
    assert reimpl.__version__


def test_optim_needs_torch_alone():
    blocked = ["rich", "jinja2", "sklearn", "matplotlib", "pytest", "hypothesis", "mkdocs"]
    blocked += ["reimpl.bench", "reimpl.verify", "reimpl.cli"]
    code = f"""
import sys
import torch
for name in {blocked}:
    sys.modules[name] = None
before = set(sys.modules)
import reimpl.optim
new = {{name.partition('.')[0] for name in set(sys.modules) - before}}
assert new <= {{'reimpl'}} | set(sys.stdlib_module_names), new
"""
    subprocess.run([sys.executable, "-c", code], check=True)
