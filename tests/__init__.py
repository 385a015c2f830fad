"""The tests. A package, so that worker processes can import `tests.loaders` by that name whatever else is installed."""
