"""`ckptstore bench save`: what a save costs a training loop, and how soon it is safe, beside the peers."""
