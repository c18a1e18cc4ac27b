"""The HTML report and the figure of a comparison."""
