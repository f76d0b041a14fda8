"""Panels of a symmetric product against the whole product."""

import pytest
import torch

from geomprobe.core.symmetric import assemble, panel_starts, panels, scaled


@pytest.mark.parametrize("n", [0, 1, 64, 65, 129, 256, 257, 258, 400])
def test_panels_are_the_lower_triangle_of_the_product(n: int) -> None:
    a = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    product, parts = a @ a.mT, panels(a)
    before = [part.clone() for part in parts]
    assert len(parts) == len(panel_starts(n)) <= 4
    torch.testing.assert_close(assemble(parts), product, rtol=1e-14, atol=1e-14)
    scale = torch.tensor([3.0, 0.5], dtype=torch.float64).view(2, 1, 1)
    torch.testing.assert_close(scaled(parts, scale).tril(), (scale * product).tril(), rtol=1e-14, atol=1e-14)
    assert all(torch.equal(part, kept) for part, kept in zip(parts, before, strict=True))  # which others may read
