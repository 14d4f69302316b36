"""Events as other systems write them, and what they are in ours."""
