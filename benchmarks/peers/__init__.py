"""The public code of other metanetworks, brought to the same networks, for ``benchmarks/metanet_speed.py``.

One file per repository with a function ``build(case, options, folder)``; the repositories themselves stay outside. Each
file says what has to be aliased or stubbed for the code to run with today's packages.
"""
