"""`ckptstore bench interference`: how much slower does a training loop get while it saves, and while what it saved drains?"""
