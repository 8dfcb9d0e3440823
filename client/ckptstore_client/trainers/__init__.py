"""Trainers that people use, saving into the store: `lightning`, `huggingface`, `accelerate`, each a module that is imported by name.

    from ckptstore_client.trainers.lightning import StoreCheckpointIO
    from ckptstore_client.trainers.huggingface import StoreTrainer
    from ckptstore_client.trainers.accelerate import StoreAccelerator

Nothing here is imported by `import ckptstore`, and each framework only by its own module.
"""
