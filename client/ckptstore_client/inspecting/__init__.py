"""Looking into checkpoints without loading them: `numbers` (bytes as numbers), `tensors` (what is in one), `comparing` (what differs)."""
