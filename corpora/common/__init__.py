"""What every stage shares: errors, files, randomness, progress, settings.

It lives in `corpora` because imports run one way and `corpora` is the stage that imports no other.
"""
