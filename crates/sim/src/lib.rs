//! Seeded simulation of the replication protocol under faults.
