"""The tools stage: the tree that other stages run in, unpacked from locked packages, a pure function of
them.
"""
