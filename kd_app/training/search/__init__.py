"""Many runs: what to try next, and what came of it."""
