"""Named weights: safetensors files whose header says what they belong to, and the zoos that list
them.

`header` reads, verifies and writes one file; `zoo` lists the files that installed packages ship and
finds the one that a spec names. Pickles are never read. Importing this package loads no torch.
"""
