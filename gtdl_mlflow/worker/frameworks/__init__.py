"""One package per framework: ``adapter.py`` implements ``base.Adapter``, ``network.py`` builds the layers."""
