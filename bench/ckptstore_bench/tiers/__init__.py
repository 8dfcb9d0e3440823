"""`ckptstore bench tiers`: how fast is each tier, how fast is its device without ckptstore, and which setting is best?"""
