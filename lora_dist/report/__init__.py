"""The paper's tables with runs next to them."""
