"""Trainers that people use, saving into the store, each by a module that is imported by name.

    from ckptstore_client.trainers.lightning import StoreCheckpointIO
    from ckptstore_client.trainers.lightning_sharded import StoreFSDPStrategy, StoreModelParallelStrategy
    from ckptstore_client.trainers.huggingface import StoreTrainer
    from ckptstore_client.trainers.accelerate import StoreAccelerator
    from ckptstore_client.trainers.deepspeed import StoreCheckpoints
    from ckptstore_client.trainers.torchtitan import StoreCheckpointManager

Nothing here is imported by `import ckptstore`, and each framework only by its own module.
"""
