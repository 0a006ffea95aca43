//! Hosts, the cluster store, placement.
//!
//! | module | holds |
//! | --- | --- |
//! | [`store`] | a small transactional key-value store with watches, which all hosts of a cluster share |
//! | [`records`] | what is kept there: hosts with their leases, VMs, and the claim of each VM |
//! | [`arbiter`] | the compare-and-swap on a VM's claim, which lets exactly one replica go on alone |
//! | [`planner`] | where replicas go: state in, place out, no I/O and no clock |
//! | [`controller`] | what a host does next about its VMs: what is wanted and what is seen in, actions with reasons out, no I/O and no clock |

pub mod arbiter;
pub mod controller;
pub mod planner;
pub mod records;
pub mod store;
