use super::*;

/// A registry of host `a`, whose store is in the folder, registered as an instance of it in place of the one that has ended.
fn registry(folder: &Path, instance: &str, ended: Option<&str>) -> Registry {
    let location = StoreLocation::File(folder.join("cluster.db"));
    let cluster = Cluster::new(Stores::create(&location, None).unwrap());
    let host = HostRecord {
        name: "a".parse().unwrap(),
        api_address: "127.0.0.1:7441".parse().unwrap(),
        replication_ip: "127.0.0.1".parse().unwrap(),
        boot_id: "one".to_owned(),
        domain: None,
        cpus: 1,
        memory_bytes: 1 << 30,
        engines: vec![EngineKind::Soft],
        kvm_processor: None,
        networks: Vec::new(),
        reached: Default::default(),
        maintenance: Default::default(),
        lease: Lease::default(),
        version: String::new(),
        instance: instance.to_owned(),
        folder: folder.to_owned(),
        unknown: Default::default(),
    };
    let lease = cluster.register_host(&host, ended, Duration::from_secs(600)).unwrap();
    let maintenance = Mutex::new(Maintenance::Off);
    Registry { cluster, host, lease: Mutex::new(Some(lease)), maintenance, is_autostart_due: false }
}

/// It wakes after the end of its lease, and starts a VM before it has found out that it is not its host's daemon any more.
#[test]
fn a_daemon_that_stood_still_starts_no_vm_of_the_one_that_serves_its_host_now() {
    let folder = tempfile::tempdir().unwrap();
    let stopped = registry(folder.path(), "1", None);
    let spec = "name = \"shop\"\nkernel = \"/k\"\nmemory = \"64M\"\n";
    stopped
        .cluster
        .create_vm(
            &VmRecord::new("shop".parse().unwrap(), spec.to_owned(), FtSettings::disabled(100, 100), 0),
            &stopped.host.name,
        )
        .unwrap();
    let now = registry(folder.path(), "2", Some("1"));
    let vm = now.vm("shop").unwrap().unwrap();
    let error = stopped.claim_for_start(&vm, false).unwrap_err().to_string();
    assert!(error.contains("another daemon"), "{error}");
    assert_eq!(now.vm("shop").unwrap().unwrap().claim.generation, vm.claim.generation);
    now.claim_for_start(&vm, false).unwrap();
}

/// The thread that renews it may come once more after the daemon has given it up.
#[test]
fn a_lease_that_was_given_up_is_not_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path(), "1", None);
    let lease = lock(&registry.lease).unwrap();
    let is_alive = || registry.cluster.host(&registry.host.name).unwrap().is_alive(&BootTime::now().unwrap());
    // One that ended by itself is taken again.
    registry.cluster.end_lease(lease).unwrap();
    assert!(!is_alive());
    registry.renew_lease().unwrap();
    assert!(is_alive());
    registry.end_lease().unwrap();
    registry.renew_lease().unwrap();
    assert!(!is_alive());
    registry.end_lease().unwrap();
}
