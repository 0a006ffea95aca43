//! The REST API of the host daemon, as its users see it: JSON over HTTP/1.1 over mutual TLS. What requests and answers hold, and a client. There
//! is no VM in here, so that tools can use it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`messages`] | what requests and answers hold |
//! | [`admission`] | what is kept for restarts, and what would become of VMs if hosts were lost |
//! | [`datastores`] | named storage for disks |
//! | [`events`] | what has happened on hosts |
//! | [`joining`] | how a host joins a cluster: tokens, and what a new host is given |
//! | [`leaving`] | what a host has left behind that left the cluster |
//! | [`maintenance`] | what hosts in maintenance hold |
//! | [`status`], [`figures`] | what a replica says of itself, as part of the answers |
//! | [`suspicion`] | after how much silence a replica takes the other one for lost |
//! | [`unreadable`] | what is said of records that a host cannot make sense of |
//! | [`Problem`] | what a request that fails is answered with |
//! | [`time`] | the time, as answers hold it |
//! | [`client`] | the client, for commands and for daemons among themselves |

pub mod admission;
pub mod backups;
pub mod client;
pub mod datastores;
pub mod events;
pub mod figures;
pub mod joining;
pub mod leaving;
pub mod maintenance;
pub mod messages;
mod problem;
pub mod status;
pub mod suspicion;
pub mod time;
pub mod unreadable;

pub use problem::Problem;
