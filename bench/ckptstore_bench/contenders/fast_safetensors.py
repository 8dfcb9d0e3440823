"""fastsafetensors: parallel reads into one buffer, from which tensors are cut. Here to the CPU, without GPUDirect Storage."""

from __future__ import annotations

from typing import Any

from fastsafetensors import SafeTensorsFileLoader, SingleGroup

from ckptstore_bench.contenders.safetensors_file import SafetensorsLoader


class FastLoader(SafetensorsLoader):
    def load(self) -> dict[str, Any]:
        loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
        try:
            loader.add_filenames({0: [str(self._file)]})
            buffer = loader.copy_files_to_device()
            try:
                # The buffer is freed with the loader, so what stays is a copy, as its own documentation does it.
                return {name: buffer.get_tensor(name).clone() for name in loader.get_keys()}
            finally:
                buffer.close()
        finally:
            loader.close()
