//! The stores of one machine.

use std::sync::Arc;

use cluster::store::{FolderStore, SqliteStore, Store, StoreError};

use crate::{HUNG, conformance, leases};

#[test]
fn the_sqlite_store_does_what_a_store_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.db");
    SqliteStore::create(&path).unwrap();
    // Who wants its lock among many may have to wait for long, as whoever asks at the right moment gets it.
    let place = || Arc::new(SqliteStore::open_with_timeout(&path, HUNG).unwrap()) as Arc<dyn Store>;
    conformance::all(&place);
    leases::all(&place);
}

#[test]
fn the_folder_does_what_a_store_does_without_leases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.vms");
    let place = || Arc::new(FolderStore::create(&path).unwrap()) as Arc<dyn Store>;
    conformance::all(&place);
    assert!(matches!(place().grant_lease(std::time::Duration::from_secs(1)), Err(StoreError::Refused(_))));
}
