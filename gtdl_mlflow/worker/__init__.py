"""Code that runs in a framework's environment: standard library, NumPy and one framework.

The driver runs in another process and imports only modules of this folder that need no framework.
"""
