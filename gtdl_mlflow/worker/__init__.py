"""The framework's side. Everything here runs in a framework's environment: standard library, NumPy, one framework.

The folder boundary is the process boundary; the driver imports from here only what is plain data.
"""
