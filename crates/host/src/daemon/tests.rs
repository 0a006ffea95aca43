//! What is done to a VM that a secondary may be about to take over: the claim is decided before anything else. The moment of the takeover is
//! injected: it comes right before the first transaction of whoever wants something of the VM.

use std::fs;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use api::messages::{
    CloneVm, CreateVm, DropSecondary, FtAction, PrepareSecondary, RemoveVm, RenameVm, SessionKeys, SetVm, VmContents,
};
use cluster::arbiter::StoreArbiter;
use cluster::controller::{Action, Outcome};
use cluster::records::{OperationKind, Power, VmRecord};
use cluster::store::{
    Changes, Compare, Entry, LeaseId, Listing, Op, Outcome as Transacted, Sight, Store, StoreError, Stores,
};
use protocol::{Arbiter, Claim, Generation, Verdict};
use replication::channel::Peer;
use spec::{EngineKind, HostName, ReplicaId, VmSpec};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::error::Kind;
use crate::init::{InitOptions, Keys, init};
use crate::replica::control::UnprotectReason;
use crate::runtime::VMS_INTERVAL;
use crate::vm_folder::Unfinished;

const VM: &str = "shop";
/// How long anything may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(60);

/// A store in which somebody else is faster, if that is wanted.
struct Racing {
    store: Arc<dyn Store>,
    /// What comes right before the next transaction.
    takeover: Mutex<Option<(Generation, Claim)>>,
    /// Transactions that were tried since.
    transactions: AtomicU32,
    /// How often all entries were read.
    lists: AtomicU32,
}

impl Store for Racing {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key)
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.store.list(prefix)
    }

    fn transact(&self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> Result<Transacted, StoreError> {
        if let Some((expected, claim)) = lock(&self.takeover).take() {
            let taken = StoreArbiter::new(self.store.clone(), VM).compare_and_swap(expected, &claim);
            assert_eq!(taken.unwrap(), Verdict::Won);
        }
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.store.transact(compares, ops)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.store.check_writable()
    }

    fn watch(&self, prefix: &str, since: u64, timeout: Duration) -> Result<Changes, StoreError> {
        self.store.watch(prefix, since, timeout)
    }

    fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant_lease(ttl)
    }

    fn keep_lease(&self, lease: LeaseId) -> Result<bool, StoreError> {
        self.store.keep_lease(lease)
    }

    fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.end_lease(lease)
    }

    fn sight(&self) -> Option<Sight> {
        self.store.sight()
    }
}

/// Host `a`, whose daemon answers nobody and starts nothing by itself, with a VM that is off.
struct Place {
    folder: TempDir,
    _runtime: Runtime,
    daemon: Arc<Daemon>,
    races: Arc<Racing>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = HostFolder::find(Some(&folder.path().join("a"))).unwrap();
        let options = InitOptions {
            keys: Keys::NewCluster,
            name: Some("a".to_owned()),
            listen: ([127, 0, 0, 1], 0).into(),
            metrics: None,
            store: None,
            store_keys: None,
            etcd_setup: None,
            vm_folders: vec![folder.path().to_owned()],
            networks: Vec::new(),
            domain: None,
        };
        init(&host, &options).unwrap();
        let config = HostConfig { vm_uids: None, ..HostConfig::load(&host).unwrap() };
        let stores = Stores::open(&config.store, None).unwrap();
        let races = Arc::new(Racing {
            store: stores.vms,
            takeover: Mutex::default(),
            transactions: AtomicU32::default(),
            lists: AtomicU32::default(),
        });
        let addresses = DaemonAddresses { pid: std::process::id(), api: ([127, 0, 0, 1], 1).into(), metrics: None };
        let registry = Registry::open(&config, host.path(), addresses.api).unwrap();
        let registry = registry.with_vms_in(Stores { vms: races.clone(), hosts: stores.hosts });
        private_folder(&host.vms()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let daemon = {
            let _inside = runtime.enter();
            let identity = Identity::load(&host.keys()).unwrap();
            make(&host, config, &identity, &addresses, registry).unwrap()
        };
        fs::write(folder.path().join("kernel"), "kernel").unwrap();
        storage::disk::create_raw(&folder.path().join("disk.raw"), 1 << 20).unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let spec = format!(
            "name = \"{VM}\"\nmemory = \"64M\"\nkernel = \"{}\"\n[[disk]]\npath = \"{}\"\nformat = \"raw\"\n",
            at("kernel"),
            at("disk.raw")
        );
        let place = Self { folder, _runtime: runtime, daemon, races };
        place.daemon.create(&CreateVm { spec, start: false }).unwrap();
        place
    }

    fn claim(&self) -> Claim {
        self.daemon.known(VM).unwrap().claim
    }

    fn swap(&self, primary: &str, secondary: Option<&str>) -> Claim {
        let expected = self.claim().generation;
        let claim = Claim {
            generation: expected.next(),
            primary: ReplicaId::new(primary),
            secondary: secondary.map(ReplicaId::new),
        };
        let arbiter = StoreArbiter::new(self.races.store.clone(), VM);
        assert_eq!(arbiter.compare_and_swap(expected, &claim).unwrap(), Verdict::Won);
        claim
    }

    /// The VM was protected by another host, and its primary here is gone.
    fn is_undecided(&self) {
        self.daemon.registry.renew_lease().unwrap();
        self.swap("a", Some("b"));
    }

    /// From now on `by` takes it over as soon as somebody wants to change anything in the store.
    fn is_about_to_be_taken_over(&self, by: &str) -> Claim {
        let expected = self.claim().generation;
        let claim = Claim { generation: expected.next(), primary: ReplicaId::new(by), secondary: None };
        *lock(&self.races.takeover) = Some((expected, claim.clone()));
        self.races.transactions.store(0, Ordering::Relaxed);
        claim
    }

    /// All files of VMs, with what they hold.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut files, mut left) = (BTreeMap::new(), vec![self.folder.path().join("a/vms")]);
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    left.push(path);
                } else {
                    files.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        files
    }

    fn records(&self) -> Vec<(String, Entry)> {
        let mut entries = self.races.store.list("vms/").unwrap().entries;
        entries.retain(|(key, _)| !key.ends_with("/claim"));
        entries
    }
}

/// Something that is wanted of the VM.
type Want = fn(&Arc<Daemon>) -> Result<(), HostError>;

const WANTS: [(&str, Want); 5] = [
    ("clone", |daemon| daemon.clone_vm(VM, &CloneVm { name: "copy".to_owned(), forward: None }).map(drop)),
    ("rename", |daemon| daemon.rename_vm(VM, &RenameVm { name: "store".to_owned() }).map(drop)),
    ("rm", |daemon| daemon.remove(VM, RemoveVm { force: false }).map(drop)),
    ("set --grow-disk", |daemon| {
        daemon.set_vm(VM, &SetVm { disk_bytes: [(0, 2 << 20)].into(), ..SetVm::default() }).map(drop)
    }),
    ("set --remove-disk", |daemon| daemon.set_vm(VM, &SetVm { remove_disk: vec![0], ..SetVm::default() }).map(drop)),
];

/// Fault 11 of those that stay mended (ARCHITECTURE.md): what may be the newest is not deleted, moved or copied.
#[test]
fn nothing_is_done_to_a_vm_that_is_taken_over_in_that_moment() {
    let place = Place::new();
    for (what, want) in WANTS {
        place.is_undecided();
        let (files, records) = (place.files(), place.records());
        let taken_over = place.is_about_to_be_taken_over("b");
        let error = want(&place.daemon).unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{what}: {error}");
        assert!(error.to_string().contains("was started or taken over by host b meanwhile"), "{what}: {error}");
        assert_eq!(place.races.transactions.load(Ordering::Relaxed), 1, "{what}: more than the claim was asked for");
        assert_eq!((place.files(), place.records(), place.claim()), (files, records, taken_over), "{what}");
        // It comes back here.
        place.swap("a", None);
    }
}

/// The same where nobody takes it over: each of them has decided the claim by then.
#[test]
fn what_is_undecided_is_decided_and_then_done() {
    for (what, want) in WANTS {
        let place = Place::new();
        place.is_undecided();
        let undecided = place.claim().generation;
        want(&place.daemon).unwrap_or_else(|error| panic!("{what}: {error}"));
        match place.daemon.registry.vm(VM).unwrap() {
            Some(vm) => {
                let expected = Claim { generation: undecided.next(), primary: ReplicaId::new("a"), secondary: None };
                assert_eq!(vm.claim, expected, "{what}");
            }
            None => assert!(what == "rm" || what == "rename", "{what}"),
        }
    }
}

/// Whoever removes a VM of a host that is gone asks another one, which may hold its secondary.
#[test]
fn a_vm_of_a_lost_host_is_not_removed_when_it_is_taken_over_in_that_moment() {
    let place = Place::new();
    place.daemon.registry.renew_lease().unwrap();
    place.swap("gone", Some("a"));
    let (files, records) = (place.files(), place.records());
    let taken_over = place.is_about_to_be_taken_over("a");
    let error = place.daemon.remove(VM, RemoveVm { force: true }).unwrap_err();
    assert!(error.to_string().contains("was started or taken over by host a meanwhile"), "{error}");
    assert_eq!(place.races.transactions.load(Ordering::Relaxed), 1);
    assert_eq!((place.files(), place.records(), place.claim()), (files, records, taken_over));
}

/// `ft off` where nothing runs: whether the secondary takes over is decided when the controller has that carried out, not by the request.
#[test]
fn protection_that_is_turned_off_leaves_the_claim_to_the_controller() {
    let place = Place::new();
    place.is_undecided();
    let name: VmName = VM.parse().unwrap();
    place.daemon.registry.update(VM, |record| record.ft.enabled = true).unwrap();
    let undecided = place.claim();
    let settle = || place.daemon.act(&name, &Action::SettleClaim, None);
    // As long as it is to be protected, it stays the secondary's.
    assert_eq!(settle(), Ok(Outcome::NotWanted));
    let begun = place.daemon.begin_ft(VM, FtAction::Off).unwrap();
    assert_eq!((begun, place.claim()), (None, undecided.clone()));
    let taken_over = place.is_about_to_be_taken_over("b");
    assert!(settle().unwrap_err().contains("taken over by host b meanwhile"));
    assert_eq!(place.claim(), taken_over);
    assert_eq!(settle(), Ok(Outcome::NotWanted), "it is at home elsewhere");
    place.swap("a", Some("b"));
    assert_eq!(settle(), Ok(Outcome::Done));
    assert_eq!(place.claim().secondary, None);
    assert_eq!(settle(), Ok(Outcome::NotWanted), "it is decided");
}

/// A primary says that its secondary is let go, and the claim may say otherwise for a while: until it is decided, that one's disks may be the newest.
#[test]
fn a_secondary_that_is_let_go_is_ended_when_the_claim_is_decided() {
    let place = Place::new();
    place.is_undecided();
    let let_go = || {
        let daemon = place.daemon.clone();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(daemon.let_go(VM, None, UnprotectReason::Off)));
        told
    };
    let told = let_go();
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "it is not decided");
    place.swap("a", None);
    told.recv().unwrap().unwrap();
    place.is_undecided();
    let told = let_go();
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "it is not decided");
    place.swap("b", None);
    let error = told.recv().unwrap().unwrap_err().to_string();
    assert!(error.contains("was taken over by host b meanwhile"), "{error}");
}

/// A host prepares a secondary for the primary's host alone, for the VM that the store describes, and never in place of what may be its newest disks.
#[test]
fn a_secondary_is_prepared_as_the_store_says_or_not_at_all() {
    let place = Place::new();
    let prepare = |generation: Generation| PrepareSecondary {
        primary: "b".to_owned(),
        generation: generation.number(),
        spec: place.daemon.known(VM).unwrap().record.spec.into(),
        engine: EngineKind::Soft,
        contents: VmContents { created_unix_ms: 1, disk_bytes: vec![1 << 20], boot_changes: 0 },
        session: SessionKeys { authority: String::new(), certificate: String::new(), key: String::new() },
    };
    let ask = |client: Peer, prepare: &PrepareSecondary| {
        let error = place.daemon.prepare_secondary(VM, &client, prepare).unwrap_err();
        (error.kind, error.to_string())
    };
    let b = || Peer::Host("b".to_owned());
    let files = place.files();
    let (kind, _) = ask(Peer::Host("c".to_owned()), &prepare(place.claim().generation));
    assert_eq!(kind, Kind::NotEntitled);
    let (kind, text) = ask(b(), &prepare(place.claim().generation));
    assert!(kind == Kind::Refused && text.contains("host a is the primary"), "{text}");
    let claim = place.swap("b", Some("a"));
    let (kind, text) = ask(b(), &prepare(claim.generation));
    assert!(kind == Kind::Refused && text.contains("not decided yet"), "{text}");
    let claim = place.swap("b", None);
    let (kind, text) = ask(b(), &prepare(claim.generation.next()));
    assert!(kind == Kind::Refused && text.contains("have changed meanwhile"), "{text}");
    let other = prepare(claim.generation);
    let other = PrepareSecondary { spec: other.spec.replace("64M", "65M"), ..other };
    let (kind, text) = ask(b(), &other);
    assert!(kind == Kind::Refused && text.contains("another one than its record holds"), "{text}");
    // All else is well: it goes on to where the primary's host would be asked for its files.
    let (_, text) = ask(b(), &prepare(claim.generation));
    assert!(text.contains("host b is not alive"), "{text}");
    assert_eq!(place.files(), files);
}

/// A host ends its secondary for the primary's host alone, and not while the claim names it.
#[test]
fn a_secondary_is_dropped_when_the_claim_names_it_no_more() {
    let place = Place::new();
    let drop_for = |host: &str| {
        let how = DropSecondary { remove_disks: true, ..DropSecondary::default() };
        place.daemon.drop_secondary(VM, &Peer::Host(host.to_owned()), how)
    };
    let refused = |host: &str| {
        let error = drop_for(host).unwrap_err();
        (error.kind, error.to_string())
    };
    let files = place.files();
    assert!(refused("b").1.contains("host a is the primary"));
    place.swap("b", Some("a"));
    assert!(refused("b").1.contains("host a is the secondary"));
    place.swap("b", None);
    assert_eq!(refused("c").0, Kind::NotEntitled);
    assert_eq!(place.files(), files);
    drop_for("b").unwrap();
    assert_ne!(place.files(), files);
}

/// The guest was powered off here, and in the moment in which that is noted another host starts the VM, by force: it was off in the store and ran, and nobody
/// protected it.
#[test]
fn a_vm_that_another_host_starts_is_not_noted_as_off() {
    let place = Place::new();
    place.daemon.registry.renew_lease().unwrap();
    place.daemon.registry.update(VM, |record| record.power = Power::On).unwrap();
    let known = place.daemon.known(VM).unwrap();
    let started = place.is_about_to_be_taken_over("b");
    assert!(place.daemon.power_off(&known).is_err());
    assert_eq!((place.claim(), place.daemon.known(VM).unwrap().record.power), (started, Power::On));
    // What the host before has noted until the other one had the claim does not stand.
    place.daemon.registry.update(VM, |record| record.power = Power::Off).unwrap();
    place.daemon.registry.note_power_on(VM).unwrap();
    assert_eq!(place.daemon.known(VM).unwrap().record.power, Power::On);
    place.swap("a", None);
    place.daemon.power_off(&place.daemon.known(VM).unwrap()).unwrap();
    assert_eq!(place.daemon.known(VM).unwrap().record.power, Power::Off);
}

/// Each primary read the whole store twice a second.
#[test]
fn records_of_vms_are_read_when_they_have_changed_and_not_all_the_time() {
    let place = Place::new();
    let mut known = None;
    let mut look = |expected| {
        place.races.lists.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        for _ in 0..12 {
            place.daemon.wait_for_state(&mut known).unwrap();
        }
        // On a machine that is very busy it is time to look though nothing may have changed.
        let due = u32::try_from(begun.elapsed().as_secs() / VMS_INTERVAL.as_secs()).unwrap();
        let lists = place.races.lists.load(Ordering::Relaxed);
        assert!((expected..=expected + due).contains(&lists), "{lists} times instead of {expected}");
    };
    look(1);
    look(0);
    place.daemon.registry.update(VM, |record| record.autostart = true).unwrap();
    look(1);
}

/// Hosts were read every half second, and what ran under a run lease that had ended waited for that.
#[test]
fn run_leases_are_read_as_soon_as_one_has_begun_or_ended() {
    let place = Place::new();
    let (watching, mut known) = (place.daemon.clone(), None);
    // It goes on as long as the process.
    std::thread::spawn(move || watching.watch_run_leases());
    let host: HostName = "b".parse().unwrap();
    let mut is_seen = || {
        let deadline = Instant::now() + HUNG;
        while !place.daemon.are_run_leases_due.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline, "nobody tells");
            std::thread::sleep(Duration::from_millis(1));
        }
        place.daemon.wait_for_state(&mut known).unwrap();
        known.as_ref().unwrap().state.run_leases.contains(&host)
    };
    assert!(!is_seen());
    assert!(!is_seen(), "only the second time what was known is read again");
    let lease = place.daemon.registry.cluster().take_run_lease(&host, Duration::from_secs(600)).unwrap();
    assert!(is_seen());
    place.daemon.registry.cluster().end_lease(lease).unwrap();
    assert!(!is_seen());
}

/// What a newer version, or a fault, has left in the place of a VM's record could not be removed.
#[test]
fn a_vm_that_cannot_be_read_is_removed_by_force_and_its_files_stay() {
    let place = Place::new();
    let write = |key: &str, value: &[u8]| {
        let done = place.races.store.transact(&[], &[Op::Put { key, value, lease: None }]).unwrap();
        assert!(matches!(done, Transacted::Done { .. }));
    };
    let record = format!("vms/{VM}");
    let claim = format!("vms/{VM}/claim");
    let as_written = place.races.store.get(&record).unwrap().unwrap().value;
    let newer = String::from_utf8(as_written.clone()).unwrap().replace("memory = ", "memroy = ");
    let claim_as_written = place.races.store.get(&claim).unwrap().unwrap().value;
    let files = place.files();
    for (what, record_now, claim_now) in [
        ("a torn record", b"{\"name\"".as_slice(), claim_as_written.as_slice()),
        ("one of a newer version", newer.as_bytes(), &claim_as_written),
        ("an unreadable claim", &as_written, b"?"),
        ("both", b"", b""),
    ] {
        write(&record, record_now);
        write(&claim, claim_now);
        place.daemon.registry.renew_lease().unwrap();
        assert_eq!(place.daemon.home_elsewhere(VM).unwrap(), None, "{what}: it is answered here");
        let listed = place.daemon.unreadable_vms().unwrap();
        assert_eq!(listed.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), [VM], "{what}");
        assert!(place.daemon.vms().unwrap().is_empty());
        let error = place.daemon.remove(VM, RemoveVm { force: false }).unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
        assert!(error.to_string().contains("cannot be read"), "{what}: {error}");
        assert!(listed[0].reason.contains("cannot be read"), "{what}: {listed:?}");
        assert!(error.to_string().contains("--force` removes the VM from the store"), "{what}: {error}");
        assert!(place.races.store.get(&record).unwrap().is_some());
        let removed = place.daemon.remove(VM, RemoveVm { force: true }).unwrap();
        let disks: Vec<PathBuf> = removed.kept.into_iter().map(|disk| disk.path).collect();
        assert_eq!(disks, [place.folder.path().join("a/vms").join(VM).join("disk0.raw")], "{what}");
        assert_eq!((place.records(), place.files()), (Vec::new(), files.clone()), "{what}");
        assert_eq!(place.daemon.remove(VM, RemoveVm { force: true }).unwrap_err().kind, Kind::NotFound);
    }
    // One whose claim can be read may be taken over in that moment.
    write(&record, b"{");
    write(&claim, &claim_as_written);
    let read: Claim = serde_json::from_slice(&claim_as_written).unwrap();
    let taken_over = Claim { generation: read.generation.next(), primary: ReplicaId::new("b"), secondary: None };
    *lock(&place.races.takeover) = Some((read.generation, taken_over));
    assert_eq!(place.daemon.remove(VM, RemoveVm { force: true }).unwrap_err().kind, Kind::Refused);
    assert_eq!((place.records().len(), place.files()), (1, files));
}

/// Each host gives up its own rights, when it has left the cluster.
#[test]
fn rights_are_given_up_by_whose_they_are() {
    let place = Place::new();
    let kind = |host: &str, client: Peer| place.daemon.end_rights(host, &client).map_err(|error| error.kind);
    assert_eq!(kind("b", Peer::Host("c".to_owned())), Err(Kind::NotEntitled));
    assert_eq!(kind("b", Peer::Operator("b".to_owned())), Err(Kind::NotEntitled));
    assert_eq!(kind("a", Peer::Host("a".to_owned())), Err(Kind::Refused), "it is there");
    assert_eq!(kind("b", Peer::Host("b".to_owned())), Ok(()));
}

fn names(place: &Place) -> Vec<String> {
    let mut names: Vec<String> =
        place.daemon.registry.state().unwrap().vms.iter().map(|vm| vm.record.name.to_string()).collect();
    names.sort();
    names
}

/// The daemon was killed in between.
#[test]
fn what_was_half_made_is_taken_back_by_the_next_daemon() {
    let place = Place::new();
    let (daemon, before) = (&place.daemon, place.files());
    // Before the store had its record, and before anything was in its folder.
    daemon.vm_folder(VM).copy_to(&daemon.vm_folder("copy"), &daemon.images).unwrap();
    fs::create_dir(daemon.vm_folder("bare").path()).unwrap();
    daemon.finish_unfinished();
    assert_eq!(place.files(), before);
    assert!(!daemon.vm_folder("bare").path().exists() && !daemon.vm_folder("copy").path().exists());
    // When the store had it.
    daemon.clone_vm(VM, &CloneVm { name: "copy".to_owned(), forward: None }).unwrap();
    let made = place.files();
    daemon.vm_folder("copy").note_unfinished(&Unfinished::Made { disks: None }).unwrap();
    daemon.finish_unfinished();
    assert_eq!((place.files(), names(&place)), (made, vec!["copy".to_owned(), VM.to_owned()]));
    // Somebody else has made a VM of that name meanwhile, on another host.
    let theirs = VmRecord { created_unix_ms: 1, name: "other".parse().unwrap(), ..daemon.known(VM).unwrap().record };
    daemon.registry.add_record(&theirs).unwrap();
    daemon.vm_folder(VM).copy_to(&daemon.vm_folder("other"), &daemon.images).unwrap();
    daemon.finish_unfinished();
    assert!(!daemon.vm_folder("other").path().exists() && names(&place).contains(&"other".to_owned()));
}

/// The VM has one name, and all of it has that one.
#[test]
fn what_was_half_renamed_has_one_name_with_the_next_daemon() {
    let place = Place::new();
    let (daemon, before) = (&place.daemon, place.files());
    let vm = daemon.known(VM).unwrap();
    let spec = VmSpec { name: "store".to_owned(), ..vm.spec.clone() };
    daemon.begin_rename(&vm, &spec).unwrap();
    assert_eq!(names(&place).len(), 2);
    daemon.finish_unfinished();
    assert_eq!((place.files(), names(&place)), (before, vec![VM.to_owned()]));
    daemon.begin_rename(&vm, &spec).unwrap();
    daemon.vm_folder(VM).move_to(&daemon.vm_folder("store"), &daemon.images).unwrap();
    daemon.finish_unfinished();
    assert_eq!(names(&place), ["store"]);
    let folder = daemon.vm_folder("store");
    assert!(folder.contents().is_some() && folder.unfinished().is_none() && !daemon.vm_folder(VM).path().exists());
    // Of two VMs, whatever a note says, none is forgotten.
    daemon.clone_vm("store", &CloneVm { name: "copy".to_owned(), forward: None }).unwrap();
    let name = |name: &str| name.parse().unwrap();
    folder.note_unfinished(&Unfinished::Renamed { from: name("copy"), to: name("store") }).unwrap();
    daemon.finish_unfinished();
    assert_eq!((names(&place), folder.unfinished()), (vec!["copy".to_owned(), "store".to_owned()], None));
}

/// A start that was asked for would be lost with the old name.
#[test]
fn a_vm_of_which_something_was_asked_is_neither_renamed_nor_cloned() {
    let place = Place::new();
    let vm = place.daemon.known(VM).unwrap();
    place.daemon.ask(&vm, OperationKind::Start { from_stale_disks: false, snapshot: None }, None).unwrap();
    for (what, want) in &WANTS[..2] {
        let error = want(&place.daemon).unwrap_err();
        assert!(error.kind == Kind::Refused && error.to_string().contains("start is under way"), "{what}: {error}");
    }
    assert_eq!(names(&place), [VM]);
}
