//! A host: its folder and keys, the daemon that keeps replicas of VMs on it, and the processes that run VMs.
//!
//! | module | holds |
//! | --- | --- |
//! | `folder`, `config` | where things are, and `host.toml` |
//! | `init`, `bundle`, `operator` | making a host, and the keys of further ones and of operators |
//! | `token`, `join`, `joining` | tokens with which hosts join a cluster; both sides of joining, and leaving |
//! | `etcd_setup`, `etcd_access` | the configuration of an etcd on hosts of the cluster; how hosts are let in by it |
//! | `store_move`, `next_store` | the cluster store moves to etcd, and hosts and their replicas follow |
//! | `registry` | the cluster store, as the daemon uses it |
//! | `daemon` | the daemon: what it has, its start and end |
//! | `replicas`, `process` | the replicas that run here: each is a process that outlives the daemon |
//! | `vm_folder`, `bases`, `network_ends` | what a replica needs: disks, kernel, network ends |
//! | `admission` | what is kept for restarts, and what would become of VMs if hosts were lost |
//! | `datastores` | which datastores this host reaches, and what space is left there |
//! | `run_lease`, `restart` | the lease under which VMs run that other hosts may restart; VMs that are restarted here |
//! | `vm_users` | as whom the processes of each VM run |
//! | `vm_files` | which files of this host VM specs may name |
//! | `power`, `launch`, `settings`, `names`, `secondary`, `protection`, `views`, `hardware` | what the daemon does for VMs, and how it shows them |
//! | `unfinished` | VMs that were being made or renamed when a daemon was killed |
//! | `snapshots`, `disk_jobs` | snapshots of VMs, in the VMs' folders; what is done with the disks of VMs that are off |
//! | `backups`, `repositories` | recovery points of VMs; the repositories that the host knows, with their keys |
//! | `owner` | the thread in which whatever changes a VM's state here happens |
//! | `runtime` | reports to the controller, and carries out what it decides |
//! | `operations` | what administrators ask for that happens once: written down, waited for, carried out |
//! | `migration` | moves of VMs that run |
//! | `maintenance` | a host that its VMs leave |
//! | `events` | what has happened on the host, kept in its folder |
//! | `metrics` | what Prometheus reads |
//! | `replica` | the process of one replica |
//! | `foreground` | a VM without a daemon, in the foreground of a terminal |
//! | `sandbox` | what processes give up before they read what a guest or a peer sends |
//! | `passing` | messages with which descriptors come |
//! | `log_file` | logs that do not grow without end |
//! | `paths` | where twinvm keeps things |

mod admission;
mod backups;
mod bases;
mod bundle;
pub mod config;
mod daemon;
mod datastores;
mod disk_jobs;
mod error;
mod etcd_access;
pub mod etcd_setup;
mod events;
pub mod folder;
pub mod foreground;
pub mod hardware;
pub mod init;
mod join;
mod joining;
mod launch;
pub mod log_file;
mod maintenance;
mod metrics;
mod migration;
mod names;
mod network_ends;
mod next_store;
mod operations;
pub mod operator;
mod owner;
mod passing;
pub mod paths;
mod power;
mod process;
mod protection;
mod registry;
pub mod replica;
mod replicas;
pub mod repositories;
mod rest;
mod restart;
mod run_lease;
mod runtime;
pub mod sandbox;
mod secondary;
mod settings;
mod snapshots;
pub mod store_move;
pub mod token;
mod unfinished;
mod views;
mod vm_files;
mod vm_folder;
mod vm_users;

/// Says that a test, or a part of it, is not run here: past what captures the output of tests that pass. `make test` counts these lines.
#[cfg(test)]
fn skipped(why: &str) {
    let thread = std::thread::current();
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("SKIPPED {}: {why}\n", thread.name().unwrap_or("a test")),
    );
}

pub use daemon::{Daemon, run};
pub use vm_folder::VM_CONTENTS;
