"""Plain Hugging Face model folders, out of checkpoints and into them: `export_model`, `import_model`.

Lazy (PEP 562), as the package above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy import lazily

if TYPE_CHECKING:
    from ckptstore_client.model_folders.exporting import Exported as Exported
    from ckptstore_client.model_folders.exporting import export_model as export_model
    from ckptstore_client.model_folders.importing import import_model as import_model

__all__ = ["Exported", "export_model", "import_model"]
_PLACES = {"Exported": "exporting", "export_model": "exporting", "import_model": "importing"}

#: Where in a state the files beside the weights are: config, tokenizer and what else lay in the folder, as arrays of bytes.
FILES_KEY = "hugging_face_files"
INDEX_NAME = "model.safetensors.index.json"

__getattr__ = lazily(__name__, _PLACES)
