"""An already quantized checkpoint, measured as it is and compared with the model it was made from."""

from __future__ import annotations

from harness.core.method import Method, MethodParams
from harness.methods.rtn.rtn import enable
from harness.recipe.fields import Commit, Located


class CheckpointParams(MethodParams):
    """``id`` is a folder (a relative path starts at the file it is written in) or a hub id:
    ``OWNER/NAME``, or ``OWNER/NAME/FILE.gguf`` for a GGUF file of a repository.

    A hub id needs ``revision``, a commit.

    ``trust_remote_code`` runs code that comes with this checkpoint, independently of the same setting of the recipe's
    model.
    """

    id: Located
    revision: Commit | None = None
    trust_remote_code: bool = False


CHECKPOINT = Method(
    name="checkpoint",
    version=1,
    summary="an already quantized checkpoint of the model, in the format that its quantization_config names",
    params=CheckpointParams,
    enable=enable,  # the checkpoint may be in the harness's own format
    published=True,
)
