"""What a solution looks like from near: curvature, landscapes, norms, and the way between two solutions."""
