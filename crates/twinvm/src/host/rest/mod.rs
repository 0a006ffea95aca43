//! Serving the REST API: JSON over HTTP/1.1 over mutual TLS. HTTP statuses are here and nowhere below.
//!
//! | method and path | does |
//! | --- | --- |
//! | `GET /v1/host` | this host |
//! | `POST /v1/host/stop` | end this daemon |
//! | `GET /v1/hosts` | all hosts, with lease and resources |
//! | `GET`, `POST /v1/vms` | all VMs; create one |
//! | `GET`, `DELETE /v1/vms/{vm}` | one VM; remove it and its disks |
//! | `POST /v1/vms/{vm}/start`, `.../stop` | power |
//! | `GET /v1/vms/{vm}/console` | the guest's console, upgraded to a stream of raw bytes |
//! | `GET /v1/vms/{vm}/ft/price` | what protection would reserve, and where |
//! | `POST /v1/vms/{vm}/ft/{action}` | `on`, `off`, `suspend`, `resume`, `failover`, `switchover`, `restart-secondary` |
//! | `GET /v1/replicas` | the replicas that run on this host |
//! | `PUT`, `DELETE /v1/secondaries/{vm}` | between hosts: prepare a secondary here; end it |
//! | `GET /v1/vms/{vm}/boot/{file}` | between hosts: `kernel` and `initrd` of a VM here |
//!
//! Whoever has a certificate of the cluster may do everything. Requests about a VM that runs elsewhere are passed on to its
//! host. What fails is answered with a status of 4xx or 5xx and [`api::Problem`].

mod forward;
mod refusal;
mod routes;
pub mod server;
