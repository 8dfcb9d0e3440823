"""`ckptstore bench cache`: how often a reader finds a file on the node, by the cache's policy and by others."""
