"""What the comparison of executed chapters leaves out."""


def pytest_collectstart(collector):
    """Compare the plain text beside a figure or an explorer, not its HTML."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html",)
