"""Small data: `bayesian_fit` without a setting against Adam with everything tuned.

For each data set and split a fifth of the examples is held out. Both start from the
same weights and get the rest, standardised, in float64.

Adam (with decoupled weight decay, on shuffled batches of 32) sets a fifth of these
aside for validation. Rate and decay are those of a grid with the lowest validation loss
at any epoch, which is where the training stops; the grid grows until they are not at
its edge. The network that was stopped there is scored. A second one is scored that is
trained again, on all training examples, for the same number of epochs.
"""
