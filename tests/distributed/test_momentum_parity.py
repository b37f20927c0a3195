"""The plane search over devices, against one device with the whole batch."""

from mappings import by_mapping_and_loss, largest_difference, on_devices_and_alone

import ncg_optax as ncg


@by_mapping_and_loss
def test_steps(mapping, reduce_over):
    (found, info), (expected, expected_info) = on_devices_and_alone(
        mapping,
        reduce_over,
        solver=ncg.quadratic_momentum(ncg.cg(maxiter=2)),
        linesearch=None,
    )
    assert largest_difference(found, expected) < 1e-10
    # Two iterations, and the product with the last step.
    assert (info.products == 3).all() and expected_info.products == 3
