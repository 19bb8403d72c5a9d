"""What can be known of a kernel besides its time; `convbackprop profile` prints it."""
