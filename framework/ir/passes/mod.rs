//! Rewrites that need no knowledge of a machine.
