"""Code that runs in a framework's environment: standard library, NumPy and one framework.

The folder boundary is the process boundary. The driver imports only plain data types from here.
"""
