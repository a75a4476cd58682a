"""One set of models for all tests of this folder."""

import pytest
import voices


@pytest.fixture(scope="session")
def models(checkpoint) -> voices.Models:
    return voices.Models(checkpoint)
