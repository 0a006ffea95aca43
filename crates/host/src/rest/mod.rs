//! Serving the REST API: JSON over HTTP/1.1 over mutual TLS. HTTP statuses are here and nowhere below.
//!
//! | method and path | for | does |
//! | --- | --- | --- |
//! | `GET /v1/host` | both | this host |
//! | `POST /v1/host/stop` | operators | end this daemon |
//! | `GET /v1/hosts` | operators | all hosts, with lease and resources |
//! | `DELETE /v1/hosts/{host}` | operators | remove a host that is gone |
//! | `GET`, `POST /v1/vms` | operators | all VMs; create one |
//! | `GET`, `DELETE /v1/vms/{vm}` | operators | one VM; remove it and its disks |
//! | `POST /v1/vms/{vm}/start`, `.../stop` | operators | power |
//! | `GET /v1/vms/{vm}/console` | operators | the guest's console, upgraded to a stream of raw bytes; `?seen=PLACE`: from there on, `?typist=NUMBER`: what it types is counted |
//! | `POST /v1/vms/{vm}/backups` | operators | write a recovery point to a repository |
//! | `GET /v1/backup/repositories`, `.../{repository}/points` | operators | the repositories that this host knows; what is in one |
//! | `POST /v1/backup/repositories/{repository}/points/{point}/restore` | operators | make a VM on this host of a recovery point |
//! | `DELETE /v1/backup/repositories/{repository}/points/{point}` | operators | forget a recovery point |
//! | `POST /v1/backup/repositories/{repository}/forget`, `.../prune`, `.../verify` | operators | forget what is not to be kept; give space back; read everything |
//! | `GET /v1/vms/{vm}/ft/price` | operators | what protection would reserve, and where |
//! | `POST /v1/vms/{vm}/ft/{action}` | operators | `on`, `mode`, `off`, `suspend`, `resume`, `failover`, `switchover`, `restart-secondary` |
//! | `GET /v1/replicas` | both | the replicas that run on this host |
//! | `PUT`, `DELETE /v1/secondaries/{vm}` | hosts | prepare a secondary here; end it: only for the VM's home |
//! | `GET /v1/kept/vms/{vm}/snapshots`, `DELETE .../{snapshot}` | hosts | snapshots that this host has of a VM that was here before: only for the VM's home |
//! | `GET /v1/vms/{vm}/boot/{file}` | hosts | `kernel` and `initrd` of a VM here: only for a host that prepares its secondary |
//!
//! Who asks is what the client's certificate says ([`replication::channel::Peer`]); whoever asks for what is not for them gets a 403
//! ([`role::Role`]). A client that asks about a VM that runs elsewhere is sent on to its host by a redirection, and goes there with its own
//! certificate ([`home`]). What fails is answered with a status of 4xx or 5xx and [`api::Problem`].

mod backups;
mod capacity;
mod console;
mod handling;
mod home;
mod refusal;
mod role;
mod routes;
pub mod server;
