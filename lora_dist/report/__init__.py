"""Reports: the paper's tables with runs next to its rows, plots, and a browser over the test set."""
