"""`ckptstore bench checkpoint`: the checkpointing workload of MLPerf Storage, and beside its metrics what it does not measure."""
