"""One cure for one fault: a torchvision built for CUDA beside a CPU-only torch.

pip gives CPU machines exactly this pair. torchvision's compiled operators cannot be loaded then, so the schema of
`torchvision::nms` is never declared, and `import torchvision` fails at the place that registers its fake kernel;
timm and the image code of transformers fail with it. No backbone calls these operators: declaring their schemas is
enough.
"""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)

FAULT = "operator torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a schema lives as long as its Library


def make_torchvision_importable() -> None:
    """Declare the missing schemas where a plain `import torchvision` raises exactly that error; else do nothing."""
    try:
        import torchvision
    except ImportError:
        return  # not installed: nothing will import it
    except RuntimeError as error:
        if str(error) != FAULT or _declared:
            raise
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        _declared.append(library)
        log.info("torchvision is built for another torch (%s): its two schemas were declared instead", FAULT)
        import torchvision  # noqa: F401
