"""Corruptions of images as batched tensor operations: ImageNet-C's 15 + 4 kinds and the 10 of ImageNet-C-bar.

    import robust
    robust.corrupt(image, "glass_blur", 3, seed=key)

`apply.corrupt` is the door; `names` lists the kinds without torch, `tables` has the severities, `catalogue` says which
file makes a kind. Written from the published definitions; nothing of the originals' code is in here.
"""
