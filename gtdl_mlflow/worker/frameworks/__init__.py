"""One adapter per file, one interface: ``base.Adapter``."""
