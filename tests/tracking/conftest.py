"""W&B for each test as in the tests of the integrations."""

from tests.integrations.conftest import one_thread, wandb_directory

__all__ = ["one_thread", "wandb_directory"]
