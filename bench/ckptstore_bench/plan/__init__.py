"""`ckptstore bench plan`: what a training job needs of its tiers, what they allow, and how often it should save. Arithmetic, no I/O."""
