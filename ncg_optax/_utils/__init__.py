"""What every part uses: vector arithmetic, reductions, argument checks, statuses."""
