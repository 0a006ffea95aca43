//! What replicas that arbitrate by etcd get told on its bad days: never that both have won, always why nobody has, and an answer when the day is over.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use cluster::arbiter::StoreArbiter;
use cluster::records::{Cluster, FtSettings, VmRecord};
use cluster::store::{Compare, EtcdKeys, EtcdStore, Op, Outcome, Store, StoreError, Stores};
use protocol::{Arbiter, Claim, Unreachable, Verdict};
use spec::{HostName, ReplicaId};

use crate::members::{Members, certify, make_keys};
use crate::{HUNG, put};

/// Two replicas of one VM, each with a connection of its own to the store.
struct Pair {
    claim: Claim,
    arbiters: [StoreArbiter; 2],
}

impl Pair {
    fn new(store: impl Fn() -> Arc<dyn Store>) -> Self {
        let host: HostName = "a".parse().unwrap();
        let spec = "name = \"v\"\nmemory = \"128M\"\nkernel = \"k\"\n".to_owned();
        let vm = VmRecord::new("v".parse().unwrap(), spec, FtSettings::disabled(100, 50), 0);
        let claim = Cluster::new(Stores::one(store())).create_vm(&vm, &host).unwrap();
        // One of them is ready for its swap.
        let ready = store();
        ready.keep_ready().unwrap();
        Self { claim, arbiters: [StoreArbiter::new(ready, "v"), StoreArbiter::new(store(), "v")] }
    }

    /// Both ask to go on alone, at the same time.
    fn both_ask(&self) -> [Result<Verdict, Unreachable>; 2] {
        let ask = |arbiter: &StoreArbiter, name: &str| {
            let generation = self.claim.generation.next();
            let claim = Claim { generation, primary: ReplicaId::new(name), secondary: None };
            arbiter.compare_and_swap(self.claim.generation, &claim)
        };
        let [a, b] = &self.arbiters;
        thread::scope(|scope| {
            let other = scope.spawn(|| ask(b, "b"));
            [ask(a, "a"), other.join().unwrap()]
        })
    }

    /// Both are told why nobody has won.
    fn both_are_told(&self, why: &str) {
        for answer in self.both_ask() {
            match answer {
                Err(Unreachable(text)) => assert!(text.contains(why), "{text}"),
                Ok(verdict) => panic!("{verdict:?}"),
            }
        }
    }

    /// Both go on asking, and one has won.
    fn one_wins(&self) {
        let deadline = Instant::now() + HUNG;
        loop {
            let answers = self.both_ask();
            assert!(Instant::now() < deadline, "{answers:?}");
            let [Ok(a), Ok(b)] = answers else { continue };
            // Whoever has won before learns of it by the claim that it asked for.
            let current = self.arbiters[0].read().unwrap();
            assert_eq!(current.generation, self.claim.generation.next());
            let winner = |verdict: &Verdict, name: &str| match verdict {
                Verdict::Won => true,
                Verdict::Lost(claim) => claim.primary == ReplicaId::new(name),
            };
            assert!(winner(&a, "a") != winner(&b, "b"), "{a:?}, {b:?}");
            return;
        }
    }
}

/// As when its database has reached its quota: etcd raises an alarm, and takes no more writes until somebody has made room and disarmed it.
#[test]
fn a_full_etcd_lets_nobody_win_and_one_when_there_is_room() {
    let members = Members::start(1);
    let pair = Pair::new(|| members.client());
    members.fill_up();
    pair.both_are_told("database space exceeded; compact and defragment etcd, then disarm its alarm");
    // Also to whoever has not written before.
    let fresh = members.client();
    assert!(matches!(fresh.keep_ready(), Err(StoreError::Unreachable(why)) if why.contains("database space exceeded")));
    assert_eq!(pair.arbiters[1].read().unwrap(), pair.claim, "what is there can be read");
    members.make_room();
    pair.one_wins();
    put(&*fresh, "a", b"1");
}

#[test]
fn certificates_that_have_expired_let_nobody_win_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let keys = make_keys(folder.path());
    let mut members = Members::start_with(1, Some(keys.clone()));
    let pair = Pair::new(|| members.client());
    let address = members.address();
    let refused = |keys: &EtcdKeys| match EtcdStore::open(&address, Some(keys)).map(drop) {
        Err(StoreError::Unreachable(why)) => why,
        other => panic!("{other:?}"),
    };
    // This host's own.
    let own = EtcdKeys { cert: folder.path().join("expired.pem"), ..keys.clone() };
    certify(folder.path(), "expired.pem", "-1");
    let why = refused(&own);
    assert!(why.contains("expired.pem has expired: renew it"), "{why}");
    // The member's: connections that are there go on, and none is made any more.
    members.kill(0);
    let good = fs::read(&keys.cert).unwrap();
    fs::copy(&own.cert, &keys.cert).unwrap();
    members.restart(0);
    fs::write(folder.path().join("good.pem"), &good).unwrap();
    let with_good = EtcdKeys { cert: folder.path().join("good.pem"), ..keys.clone() };
    let deadline = Instant::now() + HUNG;
    let told = |why: &str| why.contains("renew the certificate of that member");
    while !told(&refused(&with_good)) {
        assert!(Instant::now() < deadline, "{}", refused(&with_good));
    }
    pair.both_are_told("renew the certificate of that member");
    members.kill(0);
    fs::write(&keys.cert, &good).unwrap();
    members.restart(0);
    pair.one_wins();
}

/// It knows of nothing that was decided since, and does not answer until it does.
#[test]
fn a_member_that_lags_is_not_believed() {
    let members = Members::start(3);
    let last = (members.leader() + 1) % 3;
    let lagging: Arc<dyn Store> = Arc::new(EtcdStore::open(&members.address_of(&[members.port(last)]), None).unwrap());
    let others = members.client();
    let outdated = put(&*others, "claim", b"0");
    assert_eq!(lagging.get("claim").unwrap().unwrap().version, outdated);
    members.signal(last, "STOP");
    for round in 1..=50u8 {
        put(&*others, "claim", &[round]);
    }
    members.signal(last, "CONT");
    // It is asked in the moment in which it has all of that still to learn.
    let op = Op::Put { key: "claim", value: b"mine", lease: None };
    assert_eq!(lagging.transact(&[Compare { key: "claim", version: outdated }], &[op]).unwrap(), Outcome::Conflict);
    let found = lagging.get("claim").unwrap().unwrap();
    assert_eq!((found.value, found.version > outdated), (vec![50], true));
}
