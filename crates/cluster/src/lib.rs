//! Hosts, the cluster store, placement.
