"""The torchvision cure acts on its one fault only."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: a schema can be declared once only, and this one may have needed the cure already.
CURE = """
import builtins, logging, sys
from teachers import torchvision_schemas as cure
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
real, failures = builtins.__import__, []
def importing(name, *rest):
    if name == "torchvision" and failures:
        raise failures.pop()
    if name == "torchvision":
        return None
    return real(name, *rest)
builtins.__import__ = importing
for failures in ([], [ImportError("not there")] * 2, [RuntimeError("another fault")], [RuntimeError(cure.FAULT)]):
    try:
        cure.make_torchvision_importable()
        cure.make_torchvision_importable()
        print(len(cure._declared), "declared")
    except RuntimeError as error:
        print("raised", error)
"""


def test_the_fault_is_cured_once_and_nothing_else_is_touched() -> None:
    answer = subprocess.run([sys.executable, "-c", CURE], capture_output=True, text=True, check=True).stdout
    sound, absent, other, said, cured = answer.splitlines()
    assert sound == absent == "0 declared"
    assert other == "raised another fault"
    assert said.startswith("torchvision is built for another torch") and cured == "1 declared"
