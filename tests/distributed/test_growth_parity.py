"""A growing curvature sample over devices, against one device with the whole batch."""

from mappings import by_mapping_and_loss, largest_difference, on_devices_and_alone

import ncg_optax as ncg


@by_mapping_and_loss
def test_steps(mapping, reduce_over):
    (found, info), (expected, expected_info) = on_devices_and_alone(
        mapping,
        reduce_over,
        solver=ncg.cg(maxiter=3),
        # One step on the sample, the others on the whole batch.
        sampling=ncg.sampling(1 / 4, min_examples=4, grow_below=1.0),
    )
    assert largest_difference(found, expected) < 1e-10
    assert (info.curvature_share == 1).all() and expected_info.curvature_share == 1
