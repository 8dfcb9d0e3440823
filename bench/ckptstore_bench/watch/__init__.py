"""`ckptstore bench watch`: how soon does a process that watches a folder hold the weights that were just published there?"""
