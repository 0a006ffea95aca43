//! The broker: a small process beside each replica that does for it what the replica itself may not.
//!
//! A replica parses what a guest and a peer send, so it can neither open the cluster store, which holds the claims of all VMs, nor connect to
//! anybody. Its broker has the store, and does three things: it reads and swaps the claim of this one VM, connects to the network ends that the
//! replica's configuration names, and connects to addresses of the cluster's hosts. It starts and ends with its replica.
//!
//! They talk over two socket pairs, a message of JSON each way: one for the claim, which must not wait for anything else, and one for
//! connections, whose answers carry the socket.

mod client;
mod fence;
mod message;
mod server;

pub use client::Broker;
pub use server::serve;
