//! A cluster moves from one store to another, is interrupted wherever it can be, and no generation is given out twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster::arbiter::StoreArbiter;
use cluster::records::{Cluster, ClusterError, FtSettings, MoveError, MoveStep, StoreMove, VmRecord};
use cluster::store::{MARKER, Op, SqliteStore, Store, StoreError, StoreLocation, Stores};
use protocol::{Arbiter, Claim, Generation, Verdict};
use spec::{HostName, ReplicaId};
use tempfile::TempDir;

const STEPS: [MoveStep; 5] =
    [MoveStep::Begun, MoveStep::Frozen, MoveStep::Copied, MoveStep::Committed, MoveStep::Finished];
/// Longer than anything takes that does not hang.
const HUNG: Duration = Duration::from_secs(60);

/// The store of one machine, with a VM on host `a`, and another one that takes etcd's place.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder };
        Stores::create(&place.location(), None).unwrap();
        SqliteStore::create(&place.new_file()).unwrap();
        let cluster = Cluster::new(place.old());
        cluster.found(&host()).unwrap();
        cluster.create_vm(&vm("v"), &host()).unwrap();
        place
    }

    fn location(&self) -> StoreLocation {
        StoreLocation::File(self.folder.path().join("cluster.db"))
    }

    fn new_file(&self) -> std::path::PathBuf {
        self.folder.path().join("new.db")
    }

    /// Opened anew, as by another process.
    fn old(&self) -> Stores {
        Stores::open(&self.location(), None).unwrap()
    }

    fn new_one(&self) -> Stores {
        Stores::one(Arc::new(SqliteStore::open(&self.new_file()).unwrap()))
    }

    fn mover(&self) -> StoreMove {
        StoreMove::new(self.old(), self.new_one().vms, "there".to_owned(), host())
    }

    /// Goes on alone, one generation after the other: the claim after it.
    fn swap(&self, stores: &Stores) -> Claim {
        let arbiter = StoreArbiter::new(stores.vms.clone(), "v");
        let current = arbiter.read().unwrap();
        let next = Claim { generation: current.generation.next(), ..current.clone() };
        assert_eq!(arbiter.compare_and_swap(current.generation, &next).unwrap(), Verdict::Won);
        next
    }
}

fn host() -> HostName {
    "a".parse().unwrap()
}

fn vm(name: &str) -> VmRecord {
    let spec = format!("name = \"{name}\"\nmemory = \"128M\"\nkernel = \"k\"\n");
    VmRecord::new(name.parse().unwrap(), spec, FtSettings::disabled(100, 50), 0)
}

fn moved(error: &ClusterError) -> Option<bool> {
    match error {
        ClusterError::Store(StoreError::Moved { is_over, .. }) => Some(*is_over),
        _ => None,
    }
}

#[test]
fn a_move_that_is_interrupted_is_gone_on_with_and_at_most_one_store_is_believed() {
    for stop in STEPS {
        let place = Place::new();
        let claim = place.swap(&place.old());
        let last = place.old().vms.list("").unwrap().revision;
        place.mover().run("1", |step| step != stop).unwrap();
        let (old, new) = (Cluster::new(place.old()), Cluster::new(place.new_one()));
        let change = old.update_vm(&"v".parse().unwrap(), |vm| vm.autostart = true).map(drop);
        match stop {
            MoveStep::Begun => change.unwrap(),
            MoveStep::Frozen | MoveStep::Copied => {
                assert_eq!(moved(&change.unwrap_err()), Some(false));
                assert_eq!(old.claim(&"v".parse().unwrap()).unwrap().claim, claim, "it can be read");
            }
            MoveStep::Committed | MoveStep::Finished => {
                assert_eq!(moved(&change.unwrap_err()), Some(true));
                assert_eq!(moved(&old.claim(&"v".parse().unwrap()).unwrap_err()), Some(true));
            }
        }
        assert_eq!(new.is_made().unwrap(), stop == MoveStep::Finished, "after {stop:?}");
        // By another process, which knows of nothing.
        let mut steps = Vec::new();
        place
            .mover()
            .run("2", |step| {
                steps.push(step);
                true
            })
            .unwrap();
        assert_eq!(steps.last(), Some(&MoveStep::Finished));
        assert!(new.is_made().unwrap());
        assert_eq!(new.claim(&"v".parse().unwrap()).unwrap().claim, claim);
        assert_eq!(new.made_by().unwrap(), Some(host()));
        assert_eq!(new.state().unwrap().unreadable, []);
        // Nobody knows any more of VMs that were deleted; their generations are not given out again.
        let first = new.create_vm(&vm("w"), &host()).unwrap().generation;
        assert!(first > Generation::new(last), "{first} after revision {last}");
        assert_eq!(StoreMove::abort(&place.old()), Err(MoveError::Over("there".to_owned())));
    }
}

#[test]
fn a_move_can_be_undone_until_it_is_over() {
    for stop in [MoveStep::Begun, MoveStep::Frozen, MoveStep::Copied] {
        let place = Place::new();
        place.mover().run("1", |step| step != stop).unwrap();
        let undone = StoreMove::abort(&place.old());
        assert_eq!(undone.is_ok(), stop != MoveStep::Begun, "after {stop:?}: {undone:?}");
        assert_eq!(StoreMove::abort(&place.old()), Err(MoveError::NotMoving));
        let claim = place.swap(&place.old());
        let lease = place.old().hosts.grant_lease(Duration::from_secs(600)).unwrap();
        assert!(place.old().hosts.keep_lease(lease).unwrap());
        assert!(!Cluster::new(place.new_one()).is_made().unwrap());
        // What was copied before is not what there is now.
        place.mover().run("2", |_| true).unwrap();
        assert_eq!(Cluster::new(place.new_one()).claim(&"v".parse().unwrap()).unwrap().claim, claim);
        assert!(place.old().hosts.keep_lease(lease).is_err(), "leases are kept where nobody looks");
    }
}

#[test]
fn what_an_interrupted_undoing_has_left_is_in_nobodys_way() {
    let place = Place::new();
    let interrupt = || {
        place.mover().run("1", |step| step != MoveStep::Frozen).unwrap();
        place.old().vms.transact(&[], &[Op::Delete { key: MARKER }]).unwrap();
        assert!(place.old().hosts.grant_lease(HUNG).is_err(), "it was not interrupted");
    };
    interrupt();
    assert_eq!(StoreMove::abort(&place.old()), Ok("there".to_owned()));
    place.old().hosts.grant_lease(HUNG).unwrap();
    interrupt();
    let claim = place.swap(&place.old());
    place.mover().run("2", |_| true).unwrap();
    assert_eq!(Cluster::new(place.new_one()).claim(&"v".parse().unwrap()).unwrap().claim, claim);
}

/// It was stopped after each step, and goes on when another one has done everything and the VM has been taken over since.
#[test]
fn whoever_is_late_undoes_nothing() {
    for stop in [MoveStep::Begun, MoveStep::Frozen, MoveStep::Copied, MoveStep::Committed] {
        let place = Place::new();
        let mut taken = None;
        let late = place.mover().run("1", |step| {
            if step == stop {
                place.mover().run("2", |_| true).unwrap();
                taken = Some(place.swap(&place.new_one()));
                Cluster::new(place.new_one()).create_vm(&vm("w"), &host()).unwrap();
            }
            true
        });
        assert_eq!(late.is_ok(), stop >= MoveStep::Copied, "after {stop:?}: {late:?}");
        let new = Cluster::new(place.new_one());
        assert_eq!(Some(new.claim(&"v".parse().unwrap()).unwrap().claim), taken, "after {stop:?}");
        assert!(new.is_made().unwrap() && new.vm(&"w".parse().unwrap()).is_ok());
    }
}

#[test]
fn a_store_goes_to_one_place_and_not_into_another_cluster() {
    let place = Place::new();
    place.mover().run("1", |step| step != MoveStep::Frozen).unwrap();
    let elsewhere = StoreMove::new(place.old(), place.new_one().vms, "elsewhere".to_owned(), host());
    assert_eq!(elsewhere.run("2", |_| true), Err(MoveError::Elsewhere("there".to_owned())));
    StoreMove::abort(&place.old()).unwrap();
    let other = SqliteStore::create(&place.folder.path().join("other.db")).unwrap();
    let other: Arc<dyn Store> = Arc::new(other);
    Cluster::new(Stores::one(other.clone())).found(&host()).unwrap();
    let taken = StoreMove::new(place.old(), other, "other".to_owned(), host());
    assert_eq!(taken.run("3", |_| true), Err(MoveError::Taken));
    place.swap(&place.old());
}

/// Replicas go on arbitrating all the time, in whichever store they know of.
#[test]
fn no_generation_is_won_twice_while_the_store_moves() {
    let place = Place::new();
    let (is_over, first) = (AtomicBool::new(false), place.swap(&place.old()).generation);
    let won: Vec<Vec<u64>> = thread::scope(|scope| {
        let replicas: Vec<_> = ["a", "b", "c"].map(|name| scope.spawn(|| compete(&place, &is_over, name))).into();
        let mut attempts = 0u32;
        for stop in [MoveStep::Frozen, MoveStep::Copied, MoveStep::Frozen] {
            thread::sleep(Duration::from_millis(20));
            attempts += 1;
            place.mover().run(&attempts.to_string(), |step| step != stop).unwrap();
            StoreMove::abort(&place.old()).unwrap();
        }
        thread::sleep(Duration::from_millis(20));
        place.mover().run("last", |step| step != MoveStep::Committed).unwrap();
        thread::sleep(Duration::from_millis(20));
        place.mover().run("finish", |_| true).unwrap();
        thread::sleep(Duration::from_millis(50));
        is_over.store(true, Ordering::Release);
        replicas.into_iter().map(|replica| replica.join().unwrap()).collect()
    });
    let all: Vec<u64> = won.into_iter().flatten().collect();
    let different: BTreeSet<u64> = all.iter().copied().collect();
    assert_eq!(different.len(), all.len(), "a generation was won twice");
    let last = Cluster::new(place.new_one()).claim(&"v".parse().unwrap()).unwrap().claim.generation.number();
    let expected: BTreeSet<u64> = (first.number() + 1..=last).collect();
    assert_eq!(different, expected, "a generation is missing, or none that is there");
}

/// Goes on alone again and again; the generations won.
fn compete(place: &Place, is_over: &AtomicBool, name: &str) -> Vec<u64> {
    let (mut stores, mut won) = (place.old(), Vec::new());
    let deadline = Instant::now() + HUNG;
    while !is_over.load(Ordering::Acquire) && Instant::now() < deadline {
        let arbiter = StoreArbiter::new(stores.vms.clone(), "v");
        let asked = arbiter.read().and_then(|current| {
            let generation = current.generation.next();
            let claim = Claim { generation, primary: ReplicaId::new(name), secondary: None };
            Ok((generation, arbiter.compare_and_swap(current.generation, &claim)?))
        });
        match asked {
            Ok((generation, Verdict::Won)) => won.push(generation.number()),
            Ok((_, Verdict::Lost(_))) => {}
            // Only what says that it is over says where to go on.
            Err(error) if error.0.contains("was moved to there") => stores = place.new_one(),
            Err(error) => assert!(
                error.0.contains("is being moved to there")
                    || error.0.contains("keeps changing")
                    || error.0.contains("locked"),
                "{}",
                error.0
            ),
        }
    }
    won
}

/// What an older version makes of it: it cannot read the marker, and gives up before it changes anything.
#[test]
fn versions_that_do_not_know_of_moves_find_the_store_unusable() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    #[allow(dead_code)]
    enum Value {
        Text(String),
        Bytes(Vec<u8>),
    }
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Transaction {
        changes: Vec<(String, Option<Value>)>,
    }
    let place = Place::new();
    let before = place.old().vms.list("").unwrap().revision;
    place.mover().run("1", |step| step != MoveStep::Frozen).unwrap();
    let read = |revision: u64| {
        let file: &Path = &place.folder.path().join("cluster.db.vms").join(format!("{revision:016}"));
        serde_json::from_slice::<Transaction>(&std::fs::read(file).unwrap())
    };
    assert!(read(before).is_ok());
    assert!(read(before + 1).unwrap_err().to_string().contains("unknown variant `marker`"));
}
