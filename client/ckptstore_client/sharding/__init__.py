"""State that is spread over ranks: what each rank saves of it, and what it reads of it, at any number of ranks.

`slices` is what users say; `spreading` decides what this rank stores; `dtensors` is what PyTorch's DTensors say; `pieces` holds leaves
that are several boxes; `filling_boxes` and `loading` read.
"""
