"""`ckptstore bench load`: how fast a state comes back, from memory or from a tier, beside the peers."""
