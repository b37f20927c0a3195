"""Secant pairs over devices, against one device with the whole batch."""

from mappings import by_mapping_and_loss, largest_difference, on_devices_and_alone

import ncg_optax as ncg


@by_mapping_and_loss
def test_quasi_newton_steps(mapping, reduce_over):
    (found, info), (expected, expected_info) = on_devices_and_alone(
        mapping,
        reduce_over,
        solver=ncg.quasi_newton(ncg.cg(maxiter=2)),
    )
    assert largest_difference(found, expected) < 1e-10
    assert (info.products == 2).all() and expected_info.products == 2
