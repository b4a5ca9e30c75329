"""The command ``gtdl``."""
