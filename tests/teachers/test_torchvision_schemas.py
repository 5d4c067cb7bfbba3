"""The torchvision cure acts on its one fault only."""

from __future__ import annotations

import subprocess
import sys
import textwrap

CURE = """
import builtins, logging, sys
from teachers import torchvision_schemas as cure
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
real, failures = builtins.__import__, {failures}
def importing(name, *rest):
    if name == "torchvision" and failures:
        raise failures.pop()
    if name == "torchvision":
        return None
    return real(name, *rest)
builtins.__import__ = importing
try:
    cure.make_torchvision_importable()
    cure.make_torchvision_importable()
    print(len(cure._declared), "declared")
except RuntimeError as error:
    print("raised", error)
"""


def cured(failures: str) -> str:
    code = textwrap.dedent(CURE).replace("{failures}", failures)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_fault_is_cured_once_and_logged() -> None:
    answer = cured("[RuntimeError(cure.FAULT)]")
    assert "torchvision is built for another torch" in answer and answer.endswith("1 declared\n")


def test_a_sound_or_absent_torchvision_is_left_alone() -> None:
    assert cured("[]") == "0 declared\n"
    assert cured("[ImportError('no torchvision')] * 2") == "0 declared\n"


def test_another_fault_is_not_hidden() -> None:
    assert cured("[RuntimeError('something else')]") == "raised something else\n"
