"""`make bench`: the store's figures, each as a ratio to what it is compared with in the same run. docs/bench.md says how to read them."""
