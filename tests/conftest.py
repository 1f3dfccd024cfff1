"""The order of the tests."""

LONGEST = ("test_qwen3_stages", "test_ranks", "test_trainer", "test_launch", "test_recipes", "test_robustness")
"""Files that begin first, so that none is left running alone; workers take whole files of slow tests."""


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
