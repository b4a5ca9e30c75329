"""Statistics, comparisons and checks of the runs in a tracking store, and the HTML report."""
