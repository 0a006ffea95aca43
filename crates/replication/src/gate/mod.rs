//! Where output waits for its commit.
