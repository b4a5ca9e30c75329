"""One run in MLflow: what is recorded, how it is delivered, and how an interrupted run is resumed."""
